"""Order and randomness of the data, both pure functions of (seed, epoch, place)."""

from __future__ import annotations

import numpy as np

# What a generator is for. The tag keeps streams of one seed apart that have the same remaining key.
EPOCH_ORDER, SHARD_ORDER, BLOCK_ORDER, CROP, AUGMENTATION, SAMPLE = 1, 2, 3, 4, 5, 6


def keyed_generator(seed: int, purpose: int, *key: int) -> np.random.Generator:
    """Generator that depends on nothing but its arguments (all >= 0)."""
    return np.random.default_rng(np.random.SeedSequence((seed, purpose, *key)))


def epoch_order(rows: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Order of an epoch: one permutation of all rows (rows,), int64, another one in every epoch."""
    if not shuffle:
        return np.arange(rows)
    return keyed_generator(seed, EPOCH_ORDER, epoch).permutation(rows)


def shard_order(shards: int, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """Order in which the shards of a stream are dealt to the readers."""
    if not shuffle:
        return list(range(shards))
    return keyed_generator(seed, SHARD_ORDER, epoch).permutation(shards).tolist()


def block_order(length: int, seed: int, epoch: int, shard: int, block: int, shuffle: bool) -> list[int]:
    """Order inside one block of a shard. Unlike a shuffle buffer it can be recomputed for any block at any time."""
    if not shuffle:
        return list(range(length))
    return keyed_generator(seed, BLOCK_ORDER, epoch, shard, block).permutation(length).tolist()
