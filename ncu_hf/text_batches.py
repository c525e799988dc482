"""Texts of different lengths, encoded without their padding: sorted by length, in sub-batches that are cut to size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

# What one more sub-batch costs, in tokens that could be encoded in its time: on a CPU the weights are read, and their
# gradients added, once more; elsewhere some hundred kernels are launched, while a token is next to nothing, in half
# precision even less. `scripts/benchmark.py text` measures it. What is minimised is flat: a factor of two here hardly
# shows.
_OVERHEAD_CPU = 64
_OVERHEAD, _OVERHEAD_HALF = 1024, 4096


def caption_end(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Position at which `CLIPModel` pools each row of `input_ids` (B, L).

    A config whose `eos_token_id` is 2 predates the fix of transformers PR #24773 and pools at the largest id; any
    other pools at the first end token.

    Returns:
        `Tensor`: (B,) int64.
    """
    if eos_token_id == 2:
        return input_ids.argmax(dim=-1)
    return (input_ids == eos_token_id).int().argmax(dim=-1)


def caption_lengths(input_ids: Tensor, eos_token_id: int) -> tuple[int, ...]:
    """Tokens of each row of `input_ids` (B, L) up to its end token, that one included.

    It reads values, and should be called before the ids leave the CPU: a GPU would have to be waited for.
    """
    return tuple((caption_end(input_ids, eos_token_id) + 1).tolist())


def sub_batch_overhead(device: torch.device) -> int:
    """Tokens that a further sub-batch costs on `device`, under autocast or not."""
    if device.type == "cpu":
        return _OVERHEAD_CPU
    return _OVERHEAD_HALF if torch.is_autocast_enabled(device.type) else _OVERHEAD


def cut_lengths(lengths: Sequence[int], overhead: int) -> list[tuple[int, int]]:
    """The sub-batches of rows of these lengths that cost least: Σ (rows · longest row + overhead).

    Rows of a length are never parted, so that the cuts lie between distinct lengths, of which a context has few: the
    best cut of the rows up to each of them follows from the best cuts of fewer rows.

    Returns:
        `list[tuple[int, int]]`: rows and padded length of each sub-batch, the shortest rows first.
    """
    counts = sorted(Counter(lengths).items())
    rows_up_to = [0, *accumulate(rows for _, rows in counts)]
    best = [(0, 0)]  # least cost of the rows up to each length, and where the last sub-batch of that cut starts
    for stop, (length, _) in enumerate(counts, start=1):
        rows = rows_up_to[stop]
        best.append(min((best[i][0] + (rows - rows_up_to[i]) * length + overhead, i) for i in range(stop)))
    bounds = [len(counts)]
    while bounds[-1]:
        bounds.append(best[bounds[-1]][1])
    return [(rows_up_to[b] - rows_up_to[a], counts[b - 1][0]) for a, b in pairwise(reversed(bounds))]


def encode_by_length(
    encode: Callable[[Tensor], Tensor], input_ids: Tensor, lengths: Sequence[int] | None = None
) -> Tensor:
    """Encode each row of `input_ids` (B, L) beside rows of like length.

    Exact for an `encode` that encodes each row by itself and looks at nothing behind its end, as a causal text tower.

    Args:
        encode (`Callable`): (b, l) ids -> (b, D).
        input_ids (`Tensor`): (B, L).
        lengths (`Sequence[int]`, *optional*): Of the rows, end token included, at most L each. Without them, which the
            ids on a GPU do not tell without being waited for, every row counts as L long.

    Returns:
        `Tensor`: (B, D), in the order of the rows.
    """
    if lengths is None:
        return encode(input_ids)
    cuts = cut_lengths(lengths, sub_batch_overhead(input_ids.device))
    if len(cuts) == 1:
        return encode(input_ids[:, : cuts[0][1]])
    # From ordinary memory, the copy to a GPU is staged by the driver: the host goes on at once.
    order = torch.tensor(sorted(range(len(lengths)), key=lengths.__getitem__))
    order = order.to(input_ids.device, non_blocking=True)
    parts = input_ids.index_select(0, order).split([rows for rows, _ in cuts])
    encoded = torch.cat([encode(part[:, :length]) for part, (_, length) in zip(parts, cuts, strict=True)])
    return encoded.index_select(0, order.argsort())
