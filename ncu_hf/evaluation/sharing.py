"""Batches shared by processes: process r of W takes batches r, r + W, ...; their rows come back in order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ncu_hf.distributed import gather_rows, world

# Rows that go through a collective at a time: 1.3 million vectors at once would not fit beside a model.
_GATHER_ROWS = 65_536


def cut(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """`rows` in batches of `size`, the last one shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def own_share(batches: list[Sequence[int]]) -> list[Sequence[int]]:
    """The batches of this process."""
    rank, processes = world()
    return batches[rank::processes]


def gather_batches(
    parts: list[Tensor],
    batches: list[Sequence[int]],
    width: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Results of all batches, each row at its own place; a collective.

    Args:
        parts (`list[Tensor]`): Of each batch of [`own_share`] its rows (B, width), of type `dtype`.
        batches (`list[Sequence[int]]`): All batches; together they are a permutation of 0..N-1.
        width (`int`): Length of a row.
        device (`torch.device`): Of the collective.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of the results.

    Returns:
        `Tensor`: (N, width) on the CPU.
    """
    local = torch.cat(parts) if parts else torch.empty(0, width, dtype=dtype)
    processes = world()[1]
    places = [[row for batch in batches[rank::processes] for row in batch] for rank in range(processes)]
    gathered = torch.empty(sum(map(len, places)), width, dtype=dtype)
    for start in range(0, max(map(len, places)), _GATHER_ROWS):
        chosen = [rows[start : start + _GATHER_ROWS] for rows in places]
        block = local[start : start + _GATHER_ROWS]
        if processes > 1:
            block = gather_rows(block.to(device), [len(rows) for rows in chosen]).cpu()
        gathered[[row for rows in chosen for row in rows]] = block
    return gathered
