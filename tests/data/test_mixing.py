from __future__ import annotations

import numpy as np
import pytest

from ncu_hf.data.mixing import measure_mixing
from ncu_hf.errors import InputError


def test_a_permutation_mixes_fully_and_stored_order_not_at_all():
    order = np.random.default_rng(1).permutation(6400)
    full = measure_mixing(order, 100)
    assert full.displacement == pytest.approx(1, abs=0.03) and full.entropy == pytest.approx(1, abs=0.01)
    stored = measure_mixing(np.arange(6400), 100)
    assert stored.displacement == 0 and stored.entropy == 0  # a batch is one of the 64 parts


def test_entropy_by_hand():
    # batches of two from parts (0, 1), (0, 1), ...: ln 2; random pairs of 128 records are nearly always of two parts
    places = np.array([x for i in range(0, 128, 4) for x in (i, i + 2, i + 1, i + 3)])
    found = measure_mixing(places, 2)
    assert found.entropy == pytest.approx(1, abs=0.05) and found.displacement < 0.02


def test_only_the_order_counts_not_the_numbers():
    order = np.random.default_rng(1).permutation(300)
    assert measure_mixing(order, 10) == measure_mixing(order * 7 + 5, 10)


def test_too_little_data():
    with pytest.raises(InputError, match="15 records of 10"):
        measure_mixing(np.arange(15), 10)
