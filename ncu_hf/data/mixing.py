"""How well an order mixes the data, measured against a full permutation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ncu_hf.errors import InputError

# The stored order is cut into so many equal parts, as if it were so many shards.
_PARTS = 64


class Mixing(NamedTuple):
    """Figures of one epoch; 1.0 is what a full permutation gives.

    Attributes:
        displacement (`float`): Mean distance between a record's place in the stored order and its place in the
            epoch, over the mean of a full permutation, n/3.
        entropy (`float`): Mean entropy of the parts of the data that a batch's records come from (64 equal parts of
            the stored order), over that of random batches of the same size.
    """

    displacement: float
    entropy: float


def measure_mixing(places: np.ndarray, batch_size: int) -> Mixing:
    """Figures of an order.

    Args:
        places (`np.ndarray`): (n,) stored place of each record, in the order of the epoch.
        batch_size (`int`): Records that are compared with each other, N.

    Raises:
        InputError: fewer than two batches.
    """
    places = np.argsort(np.argsort(places))  # 0 ... n-1, also where a tail was dropped
    rows = len(places)
    if rows < 2 * batch_size:
        raise InputError(
            f"Mixing is measured on two batches or more; there are {rows} records of {batch_size} a batch."
        )
    displacement = np.abs(places - np.arange(rows)).mean() / (rows / 3)
    random = np.random.default_rng(0).permutation(rows)
    return Mixing(float(displacement), _entropy(places, batch_size) / _entropy(random, batch_size))


def _entropy(places: np.ndarray, batch_size: int) -> float:
    """Mean entropy, in nats, of the parts of the data in a batch."""
    parts = places * _PARTS // len(places)
    batches = parts[: len(parts) // batch_size * batch_size].reshape(-1, batch_size)
    shares = np.stack([np.bincount(batch, minlength=_PARTS) for batch in batches]) / batch_size
    return float(-np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0).sum(axis=1).mean())
