"""Injected noise: captions shuffled among a chosen share of the pairs, so that the mismatches are known."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ncu_hf.errors import InputError


def shuffle_captions(captions: list[str], share: float, seed: int) -> tuple[list[str], np.ndarray]:
    """Shuffle the captions of a share of the pairs among themselves; no chosen pair keeps its caption.

    `round(share * N)` pairs are chosen; a single one has nobody to swap with, so that two are chosen then (none
    if N is 1). A caption text that occurs twice among the chosen never comes back to a pair that had it, unless
    more than half of the chosen pairs share that text; as few as possible keep it then, and these still match.

    Args:
        captions (`list[str]`): One caption a pair (N,).
        share (`float`): Share of the pairs to choose, in [0, 1].
        seed (`int`): Seed of the choice and of the permutation.

    Returns:
        `tuple[list[str], np.ndarray]`: the captions (N,) and the ground truth (N,), bool: True where the caption
        differs from the one that the pair had.

    Raises:
        InputError: if `share` is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"noise share: {share} is outside [0, 1]. Give the share of the pairs to shuffle, e.g. 0.3.")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(captions))[: _count(share, len(captions))]
    shuffled = list(captions)
    for target, source in _derangement([captions[i] for i in chosen], rng):
        shuffled[chosen[target]] = captions[chosen[source]]
    mismatched = np.array([new != old for new, old in zip(shuffled, captions, strict=True)], dtype=bool)
    return shuffled, mismatched


def _count(share: float, total: int) -> int:
    """How many of `total` pairs are chosen."""
    count = round(share * total)
    if count == 1:
        return 2 if total > 1 else 0
    return count


def _derangement(texts: list[str], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs (target, source) of a permutation without fixed points; source and target differ in text.

    Equal texts are laid side by side on a circle (in random order), and everything moves on by `shift` places. If
    the largest group of equal texts has g <= k/2 members, each shift in [g, k - g] takes every text out of its group;
    if it is larger, a shift of g leaves 2g - k texts where they were, which is the least possible.
    """
    if len(texts) < 2:
        return []
    rank = {text: i for i, text in enumerate(rng.permutation(sorted(set(texts))).tolist())}
    circle = sorted(rng.permutation(len(texts)).tolist(), key=lambda i: rank[texts[i]])
    largest, total = max(Counter(texts).values()), len(texts)
    if 2 * largest <= total:
        shift = int(rng.integers(largest, total - largest + 1))
    else:
        shift = largest if largest < total else 1
    return [(circle[i], circle[(i + shift) % total]) for i in range(total)]
