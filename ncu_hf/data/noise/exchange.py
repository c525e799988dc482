"""Captions that pairs give each other: a shuffle without fixed points, and any other text where that is not enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np


def derangement(texts: Sequence[str], rng: np.random.Generator) -> list[tuple[int, int]]:
    """A shuffle in which as few places as possible keep their text.

    Equal texts are laid side by side on a circle (in random order), and everything moves on by `shift` places. If
    the largest group of equal texts has g <= k/2 members, each shift in [g, k - g] takes every text out of its group;
    if it is larger, a shift of g leaves 2g - k texts where they were, which is the least possible.

    Args:
        texts (`Sequence[str]`): The texts (k,), perhaps equal ones among them.
        rng (`np.random.Generator`): Source of all randomness.

    Returns:
        `list[tuple[int, int]]`: (target, source) of a permutation; empty if k < 2.
    """
    if len(texts) < 2:
        return []
    different = sorted(set(texts))
    # Numbers are shuffled and not the texts: an array of these takes the longest one's place for each.
    rank = {different[j]: i for i, j in enumerate(rng.permutation(len(different)).tolist())}
    circle = sorted(rng.permutation(len(texts)).tolist(), key=lambda i: rank[texts[i]])
    largest, total = max(Counter(texts).values()), len(texts)
    if 2 * largest <= total:
        shift = int(rng.integers(largest, total - largest + 1))
    else:
        shift = largest if largest < total else 1
    return [(circle[i], circle[(i + shift) % total]) for i in range(total)]


class OtherTexts:
    """Draws a text that differs from a given one.

    Args:
        texts (`Iterable[str]`): What to draw from; each different text once, whatever their number.
    """

    def __init__(self, texts: Iterable[str]):
        self._texts = sorted(set(texts))
        self._place = {text: place for place, text in enumerate(self._texts)}

    def draw(self, text: str, rng: np.random.Generator) -> str:
        """Another text than `text`, which is one of them; `text` itself if there is no other."""
        if len(self._texts) < 2:
            return text
        drawn = int(rng.integers(len(self._texts) - 1))
        return self._texts[drawn + (drawn >= self._place[text])]
