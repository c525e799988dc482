"""Blocks of rows: all rows once, and how much is worked on at a time."""

from __future__ import annotations

import pytest
import torch

from ncu_hf import partitions
from ncu_hf.distributed import Shard


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 4), (256, 257), (2048, 2049), (5000, 9)])
def test_blocks_hold_every_row_once(shape, device):
    matrix = torch.empty(shape, device=device)
    rows = [row for block in partitions.row_blocks(matrix) for row in range(shape[0])[block]]
    assert rows == list(range(shape[0]))


@pytest.mark.parametrize("n", [256, 2048, 8192, 40_000])
def test_an_accelerator_works_on_a_quarter_of_the_matrix_at_most(n):
    """What is made of a block then adds little to the matrix itself; `meta` stands for any device but a CPU."""
    sizes = [len(range(n)[block]) for block in partitions.row_blocks(torch.empty(n, n + 1, device="meta"))]
    assert max(sizes) * (n + 1) <= min(2**24, -(-n * (n + 1) // 4))
    assert len(sizes) <= max(5, n * (n + 1) // 2**24 + 2)


def test_partitions_are_those_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(partitions, "_BLOCK_CPU", 100)
    similarity = torch.randn(37, 23, dtype=torch.float64)
    scale = torch.tensor(7.0, dtype=torch.float64)
    rows = partitions.row_log_partition(similarity, scale)
    columns = partitions.column_log_partition(similarity, scale, Shard.whole(37))
    torch.testing.assert_close(rows, (scale * similarity).logsumexp(1))
    torch.testing.assert_close(columns, (scale * similarity).logsumexp(0))
