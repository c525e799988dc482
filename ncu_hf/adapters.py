"""LoRA adapters (peft) on the towers of a `CLIPModel`, and how they go back into plain weights."""

from __future__ import annotations

import copy
from pathlib import Path

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel

ADAPTER_FOLDER = "adapter"
_FILE = "adapter_model.safetensors"
_LINEAR = "q_proj|k_proj|v_proj|out_proj|fc1|fc2"


def add_adapters(clip: CLIPModel, towers: tuple[str, ...], rank: int, alpha: float | None) -> None:
    """Put LoRA adapters on every linear layer of the blocks of `towers` (`"text"`, `"vision"`), in place.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. The adapters start as a
    zero update. There is no dropout: a batch determines its loss.
    """
    pattern = rf"(?:{'|'.join(towers)})_model\.encoder\.layers\.\d+\.(?:self_attn|mlp)\.(?:{_LINEAR})"
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=pattern)
    inject_adapter_in_model(config, clip)


def has_adapters(clip: nn.Module) -> bool:
    return any(isinstance(module, LoraLayer) for module in clip.modules())


def is_adapter(name: str) -> bool:
    """Whether the parameter `name` belongs to an adapter."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """Name of the `CLIPModel` weight that the parameter `name` stands for or adapts."""
    if is_adapter(name):
        return name.split(".lora_")[0] + ".weight"
    return name.replace(".base_layer.", ".")


def merged(clip: CLIPModel) -> CLIPModel:
    """A plain `CLIPModel` with the adapters' updates inside its weights; `clip` itself where it has no adapters."""
    if not has_adapters(clip):
        return clip
    plain = copy.deepcopy(clip)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
    return plain


def save_adapters(clip: CLIPModel, folder: str | Path) -> None:
    """Write the adapters, if any, to `folder/adapter`, so that training can go on from them exactly."""
    if has_adapters(clip):
        path = Path(folder) / ADAPTER_FOLDER
        path.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(clip).items()}
        save_file(state, path / _FILE, metadata={"format": "pt"})


def load_adapters(clip: CLIPModel, folder: str | Path) -> None:
    """Load what [`save_adapters`] wrote into the adapters of `clip`."""
    set_peft_model_state_dict(clip, load_file(Path(folder) / ADAPTER_FOLDER / _FILE))
