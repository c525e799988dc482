"""Low-rank updates of a text tower that are active in some passes only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

# Linear layers of a block of CLIP's text tower, below `encoder.layers.<block>.`.
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
_MLP = ("mlp.fc1", "mlp.fc2")


class LowRankUpdate(nn.Module):
    """x -> 2 x Aᵀ Bᵀ, to be added to what a linear layer gives for x; A (rank, inputs), B (outputs, rank).

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, with its scaling α / r at 2.
    B starts at zero, hence as no update.
    """

    scaling = 2.0

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        self.reset()

    def reset(self) -> None:
        """A as in LoRA (uniform, by fan-in), B zero."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaling * F.linear(F.linear(x, self.down.weight), self.up.weight)


class TextTowerUpdates(nn.Module):
    """One [`LowRankUpdate`] for every linear layer of the blocks of a CLIP text tower.

    They stand beside the tower, not in it: the tower's own weights, names and other passes stay as they are. (Adapters
    of `peft` live inside the layers, and would be part of every pass and of the tower's state.)

    Args:
        layers (`int`): Number of blocks.
        width (`int`): Hidden size of the tower.
        mlp_width (`int`): Width inside its MLPs.
        rank (`int`): Of every update.

    Attributes:
        active (`bool`): Whether they take part at the moment.
    """

    def __init__(self, layers: int, width: int, mlp_width: int, rank: int):
        super().__init__()
        sizes = dict.fromkeys(_ATTENTION, (width, width)) | dict(
            zip(_MLP, ((width, mlp_width), (mlp_width, width)), strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleDict({_key(name): LowRankUpdate(*size, rank) for name, size in sizes.items()})
            for _ in range(layers)
        )
        self.active = False

    @contextmanager
    def added_to(self, text_model: nn.Module) -> Iterator[None]:
        """The updates take part in what `text_model` (a `CLIPTextModel`) computes meanwhile."""
        handles = [
            text_model.get_submodule(f"encoder.layers.{index}.{name}").register_forward_hook(_adding(block[_key(name)]))
            for index, block in enumerate(self.blocks)
            for name in (*_ATTENTION, *_MLP)
        ]
        self.active = True
        try:
            yield
        finally:
            self.active = False
            for handle in handles:
                handle.remove()


def _key(name: str) -> str:
    return name.split(".")[1]


def _adding(update: LowRankUpdate):
    return lambda _module, args, output: output + update(args[0]).to(output.dtype)
