"""Sub-batches by length: the cheapest ones, in which every row is encoded as it is alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ncu_hf.text_batches import caption_lengths, cut_lengths, encode_by_length, sub_batch_overhead

END = 99


def cost(cuts: list[tuple[int, int]], overhead: int) -> int:
    return sum(rows * length + overhead for rows, length in cuts)


def least_cost(lengths: list[int], overhead: int) -> int:
    """Over every way to cut the sorted rows, also between equal ones."""
    ordered, costs = sorted(lengths), []
    for inner in itertools.chain.from_iterable(
        itertools.combinations(range(1, len(lengths)), n) for n in range(len(lengths))
    ):
        groups = [ordered[a:b] for a, b in itertools.pairwise((0, *inner, len(lengths)))]
        costs.append(sum(len(group) * max(group) + overhead for group in groups))
    return min(costs)


@pytest.mark.parametrize("overhead", [0, 1, 3, 10, 100])
@pytest.mark.parametrize("seed", range(6))
def test_cuts_are_the_cheapest(seed, overhead):
    generator = random.Random(seed)
    lengths = [generator.randint(2, 12) for _ in range(generator.randint(1, 10))]
    cuts = cut_lengths(lengths, overhead)
    assert cost(cuts, overhead) == least_cost(lengths, overhead)
    start = 0
    for rows, length in cuts:
        assert rows > 0 and sorted(lengths)[start + rows - 1] == length
        start += rows
    assert start == len(lengths)


def test_rows_of_one_length_stay_together():
    assert cut_lengths([7] * 5, 0) == [(5, 7)]
    assert cut_lengths([7], 0) == [(1, 7)]


def test_free_sub_batches_encode_no_padding_and_dear_ones_are_one():
    lengths = [3, 20, 5, 5, 3, 11]
    assert cost(cut_lengths(lengths, 0), 0) == sum(lengths)
    assert cut_lengths(lengths, 10**6) == [(6, 20)]


def captions(lengths: list[int], width: int) -> Tensor:
    """Rows that tell themselves apart, padded with the end token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, END, (len(lengths), width), generator=generator)
    return torch.where(torch.arange(width) >= torch.tensor(lengths)[:, None] - 1, END, ids)


@pytest.fixture
def encode() -> Callable[[Tensor], Tensor]:
    """Sums of the ids before the end token and their squares (b, 2); remembers the shapes that it was given."""

    def sums(ids: Tensor) -> Tensor:
        sums.shapes.append(tuple(ids.shape))
        words = ids * (ids != END)
        return torch.stack([words.sum(1), (words**2).sum(1)], dim=1).double()

    sums.shapes = []
    return sums


RAGGED = [3, 40, 5, 5, 3, 11, 77, 6, 2, 9] * 12


def test_order_is_kept_and_only_what_the_cuts_say_is_encoded(encode):
    ids = captions(RAGGED, 77)
    expected = encode(ids)
    encode.shapes.clear()
    assert torch.equal(encode_by_length(encode, ids, RAGGED), expected)
    overhead = sub_batch_overhead(ids.device)
    assert len(encode.shapes) > 2
    assert sum(rows * length + overhead for rows, length in encode.shapes) == cost(
        cut_lengths(RAGGED, overhead), overhead
    )
    assert sum(rows * length for rows, length in encode.shapes) < 1.2 * sum(RAGGED) < 0.3 * ids.numel()


@pytest.mark.parametrize(("lengths", "shape"), [([6] * 9, (9, 6)), ([4], (1, 4)), ([2, 3, 2], (3, 3))])
def test_what_is_not_worth_a_cut_is_one_batch_as_long_as_its_longest(lengths, shape, encode):
    ids = captions(lengths, 10)
    expected = encode(ids)
    encode.shapes.clear()
    assert torch.equal(encode_by_length(encode, ids, lengths), expected)
    assert encode.shapes == [shape]


def test_without_lengths_every_row_counts_as_long_as_the_batch(encode):
    encode_by_length(encode, captions(RAGGED, 77))
    assert encode.shapes == [(len(RAGGED), 77)]


@pytest.mark.parametrize("eos_token_id", [END, 2])
def test_lengths_count_the_end_token(eos_token_id):
    assert caption_lengths(captions(RAGGED, 77), eos_token_id) == tuple(RAGGED)
