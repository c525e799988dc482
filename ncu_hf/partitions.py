"""The matrix S of similarities, and log partition functions of s·S along its rows and columns, in blocks of rows: no
second matrix is made."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ncu_hf.distributed import Shard

# Entries of a block: on a CPU what fits its caches, on an accelerator what keeps it busy, but not more than a share of
# the matrix, so that what is made of a block stays small beside it.
_BLOCK_CPU, _BLOCK, _FEWEST_BLOCKS = 2**19, 2**24, 4
_ALIGNED = 16  # entries that the distance between two rows is a multiple of


def empty_matrix(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows, columns), not initialised, whose rows lie 64 bytes (in float32) or a multiple of it apart.

    A matrix product written into rows of N + 1 entries that are not takes half as long again on a CPU.
    """
    return like.new_empty(rows, -(-columns // _ALIGNED) * _ALIGNED)[:, :columns]


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Slices of the rows of a matrix (B, C), one after the other, that are worked on at once."""
    entries = _BLOCK_CPU if matrix.device.type == "cpu" else min(_BLOCK, -(-matrix.numel() // _FEWEST_BLOCKS))
    rows = max(1, entries // matrix.shape[1])
    return (slice(start, start + rows) for start in range(0, len(matrix), rows))


def row_log_partition(similarity: Tensor, scale: Tensor) -> Tensor:
    """log Σ_j exp(s S_ij): (B, C) -> (B,)."""
    found = similarity.new_empty(len(similarity))
    for rows in row_blocks(similarity):
        found[rows] = (scale * similarity[rows]).logsumexp(1)
    return found


def column_log_partition(similarity: Tensor, scale: Tensor, shard: Shard) -> Tensor:
    """log Σ_i exp(s S_ij) over the rows of all processes: (B, C) -> (C,), the same on each."""
    columns = similarity.shape[1]
    highest = similarity.amax(0) if len(similarity) else similarity.new_full((columns,), -torch.inf)
    peak = scale * shard.largest(highest)
    total = similarity.new_zeros(columns)
    for rows in row_blocks(similarity):
        total += (scale * similarity[rows]).sub_(peak).exp_().sum(0)
    return peak + shard.sum(total).log()
