"""Shuffled captions: no fixed points, known ground truth, determinism."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ncu_hf.data.noise import shuffle_captions
from ncu_hf.errors import InputError


def unique(count: int) -> list[str]:
    return [f"caption {i}" for i in range(count)]


@pytest.mark.parametrize(("count", "share"), [(2, 1.0), (7, 0.5), (101, 0.3), (1000, 0.2), (13, 1.0)])
def test_exactly_the_share_changes_and_nobody_keeps_a_caption(count, share):
    captions = unique(count)
    shuffled, mismatched = shuffle_captions(captions, share, seed=3)
    changed = [i for i in range(count) if shuffled[i] != captions[i]]
    assert len(changed) == round(share * count)
    assert changed == np.flatnonzero(mismatched).tolist()
    assert Counter(shuffled) == Counter(captions)
    assert mismatched.dtype == bool and mismatched.shape == (count,)


@pytest.mark.parametrize("seed", range(20))
def test_equal_texts_never_come_back(seed):
    captions = ["a"] * 4 + ["b"] * 3 + ["c", "d"]
    shuffled, mismatched = shuffle_captions(captions, 1.0, seed)
    assert all(new != old for new, old in zip(shuffled, captions, strict=True))
    assert mismatched.all()
    assert Counter(shuffled) == Counter(captions)


def test_majority_text_keeps_as_few_as_possible():
    captions = ["a"] * 7 + ["b"] * 3
    shuffled, mismatched = shuffle_captions(captions, 1.0, seed=0)
    assert mismatched.sum() == 6  # three b's can free three a's: 2 * 3 pairs change, 7 - 3 a's must stay
    assert mismatched.tolist() == [new != old for new, old in zip(shuffled, captions, strict=True)]


def test_all_texts_equal_is_no_mismatch():
    shuffled, mismatched = shuffle_captions(["a"] * 5, 1.0, seed=0)
    assert shuffled == ["a"] * 5 and not mismatched.any()


def test_seed_determines_the_result_and_input_stays():
    captions = unique(50)
    first, again, other = (shuffle_captions(captions, 0.4, seed) for seed in (1, 1, 2))
    assert first[0] == again[0] and (first[1] == again[1]).all()
    assert first[0] != other[0]
    assert captions == unique(50)


def test_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()
    shuffle_captions(unique(20), 0.5, seed=0)
    assert (np.random.get_state()[1] == before).all()


def test_one_chosen_pair_becomes_two():
    assert shuffle_captions(unique(10), 0.1, seed=0)[1].sum() == 2
    assert shuffle_captions(unique(1), 1.0, seed=0)[1].sum() == 0


def test_nothing_to_do():
    assert shuffle_captions([], 0.5, seed=0)[0] == []
    captions = unique(9)
    shuffled, mismatched = shuffle_captions(captions, 0.0, seed=0)
    assert shuffled == captions and not mismatched.any()


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan"), float("inf")])
def test_share_outside_zero_one_is_refused(share):
    with pytest.raises(InputError, match="outside"):
        shuffle_captions(unique(4), share, seed=0)
