"""Order and randomness of the data, all pure functions of (seed, epoch, place)."""

from __future__ import annotations

import numpy as np

# What a generator is for. The tag keeps streams of one seed apart that have the same remaining key.
EPOCH_ORDER, SEGMENT_ORDER, BLOCK_ORDER, CROP, AUGMENTATION, SAMPLE, SUBSET = range(1, 8)


def keyed_generator(seed: int, purpose: int, *key: int) -> np.random.Generator:
    """Generator that depends on nothing but its arguments (all >= 0)."""
    return np.random.default_rng(np.random.SeedSequence((seed, purpose, *key)))


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Order of an epoch of an indexable source: one permutation of all rows (rows,), int64."""
    return keyed_generator(seed, EPOCH_ORDER, epoch).permutation(rows)


def segment_order(segments: int, seed: int, epoch: int, round_number: int) -> list[int]:
    """Order in which the segments of a stream are dealt to the readers."""
    return keyed_generator(seed, SEGMENT_ORDER, epoch, round_number).permutation(segments).tolist()


def block_order(length: int, seed: int, place: tuple[int, ...]) -> list[int]:
    """Order inside one block; `place` = (epoch, round, reader, block).

    Unlike a shuffle buffer it can be recomputed for any block at any time.
    """
    return keyed_generator(seed, BLOCK_ORDER, *place).permutation(length).tolist()
