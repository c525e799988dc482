"""Wrong captions that are hard to tell from right ones: of the same class, or of nearly the same words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from ncu_hf.data.noise.exchange import OtherTexts, derangement
from ncu_hf.data.noise.neighbours import WordIndex


def shuffle_in_classes(
    captions: Sequence[str], chosen: list[int], classes: Sequence[Hashable], rng: np.random.Generator
) -> dict[int, str]:
    """Shuffle the captions of the chosen pairs of each class among themselves.

    A chosen pair that would keep its text so (it is alone, or most of them have its text) takes a text from all pairs
    of its class, and keeps its own only if the class has no other.

    Args:
        captions (`Sequence[str]`): N captions.
        chosen (`list[int]`): The chosen pairs.
        classes (`Sequence[Hashable]`): Class of each pair (N,).
        rng (`np.random.Generator`): Source of all randomness.

    Returns:
        `dict[int, str]`: the new caption of each chosen pair.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index in chosen:
        members[classes[index]].append(index)
    texts: dict[Hashable, set[str]] = {label: set() for label in members}
    for caption, label in zip(captions, classes, strict=True):
        if label in texts:
            texts[label].add(caption)
    new = {index: captions[index] for index in chosen}
    for label, indices in members.items():
        for target, source in derangement([captions[index] for index in indices], rng):
            new[indices[target]] = captions[indices[source]]
        kept = [index for index in indices if new[index] == captions[index]]
        others = OtherTexts(texts[label] if kept else ())
        new |= {index: others.draw(captions[index], rng) for index in kept}
    return new


def take_near_captions(
    captions: Sequence[str], chosen: list[int], rng: np.random.Generator
) -> tuple[dict[int, str], int]:
    """Give each chosen pair the caption of another pair that shares most with its own, see [`WordIndex.nearest`].

    That pair keeps it too: unlike in a shuffle, a caption may occur more often than before, and another one not at all.
    Where no other caption shares a word, any one that differs is taken.

    Args:
        captions (`Sequence[str]`): N captions.
        chosen (`list[int]`): The chosen pairs.
        rng (`np.random.Generator`): Source of all randomness.

    Returns:
        `tuple[dict[int, str], int]`: the new caption of each chosen pair, and how many of them share no word with it.
    """
    if not chosen:
        return {}, 0
    index = WordIndex(captions, rng)
    nearest = {pair: index.nearest(pair) for pair in chosen}
    alone = [pair for pair, other in nearest.items() if other is None]
    others = OtherTexts(captions if alone else ())
    new = {pair: captions[other] for pair, other in nearest.items() if other is not None}
    return new | {pair: others.draw(captions[pair], rng) for pair in alone}, len(alone)
