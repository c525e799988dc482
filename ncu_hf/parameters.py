"""Which parameters train in a phase, and in which optimizer group."""

from __future__ import annotations

from typing import Any

from torch import nn

from ncu_hf.adapters import is_adapter, plain_name
from ncu_hf.config import NCUTrainingArguments
from ncu_hf.errors import InputError
from ncu_hf.modeling import NCUModel
from ncu_hf.objectives import Objective

_PROMPT = "negative_prompt."


def freeze(model: NCUModel, objective: Objective, adapted_towers: tuple[str, ...] = ()) -> None:
    """Let exactly the parameters train that `objective` names.

    In a tower with LoRA adapters the adapters train in place of the tower's own weights; projections, `logit_scale`
    and prompt are not part of a tower.

    Args:
        model (`NCUModel`): Changed in place (`requires_grad`).
        objective (`Objective`): Its `trains` decides by the name of the plain weight.
        adapted_towers (`tuple[str, ...]`): `"text"` and/or `"vision"`.

    Raises:
        InputError: more blocks are to be frozen than there are.
    """
    layers = model.clip.config.text_config.num_hidden_layers
    frozen = objective.arguments.text_blocks_to_freeze(layers)
    if not 0 <= frozen <= layers:
        raise InputError(f"--frozen_text_blocks {frozen}: the text tower has {layers} blocks.")
    towers = tuple(f"clip.{tower}_model." for tower in adapted_towers)
    for name, parameter in model.named_parameters():
        adapted = name.startswith(towers) if towers else False
        parameter.requires_grad_(objective.trains(plain_name(name), layers) and adapted == is_adapter(name))


def parameter_groups(model: nn.Module, args: NCUTrainingArguments) -> list[dict[str, Any]]:
    """Optimizer groups: towers with and without weight decay, the prompt with its own rate and decay, and log s.

    Normalisation weights, biases and `logit_scale` do not decay (released code); embeddings do. `logit_scale` is alone
    as the one that is never sharded: an optimizer works on a group at a time.
    """
    undecayed = {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    groups: dict[str, list] = {"decay": [], "no_decay": [], "prompt": [], "scale": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(_PROMPT):
            groups["prompt"].append(parameter)
        elif name.endswith("logit_scale"):
            groups["scale"].append(parameter)
        elif name in undecayed or name.endswith(".bias"):
            groups["no_decay"].append(parameter)
        else:
            groups["decay"].append(parameter)
    options = {
        "decay": {"weight_decay": args.weight_decay},
        "no_decay": {"weight_decay": 0.0},
        "prompt": {"weight_decay": args.prompt_weight_decay, "lr": args.prompt_learning_rate},
        "scale": {"weight_decay": 0.0},
    }
    return [{"params": members, **options[kind]} for kind, members in groups.items() if members]
