"""Make the captions of a chosen share of the pairs wrong, in one of several ways."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ncu_hf.data.noise.exchange import derangement
from ncu_hf.data.noise.generic import generic_caption
from ncu_hf.data.noise.hard import shuffle_in_classes, take_near_captions
from ncu_hf.data.noise.partial import mix_captions
from ncu_hf.errors import InputError, one_of

logger = logging.getLogger(__name__)

SHUFFLED, HARD, GENERIC, PARTIAL = NOISE_KINDS = ("shuffled", "hard", "generic", "partial")


@dataclass(frozen=True)
class Noise:
    """What is done to which pairs. The chosen pairs depend on `share` and `seed` alone, so that kinds can be compared.

    Args:
        share (`float`): Share of the pairs to choose, in [0, 1].
        seed (`int`, *optional*, defaults to 0): Seed of the choice, and of what is done.
        kind (`str`, *optional*, defaults to `"shuffled"`): `shuffled`: the captions of the chosen pairs among
            themselves; `hard`: captions of the same class or, without classes, near ones; `generic`: a text that the
            web puts beside any image; `partial`: a part of the words, those of another chosen caption.
        class_column (`str`, *optional*): Of `hard`: where the class of a pair is stored.

    Raises:
        InputError: the share is outside [0, 1], the kind is unknown, or classes are given to a kind without.
    """

    share: float
    seed: int = 0
    kind: str = SHUFFLED
    class_column: str | None = None

    def __post_init__(self):
        if not 0.0 <= self.share <= 1.0:
            raise InputError(
                f"noise share: {self.share} is outside [0, 1]. Give the share of the pairs to change, e.g. 0.3."
            )
        one_of("--noise_kind", self.kind, NOISE_KINDS)
        if self.class_column is not None and self.kind != HARD:
            raise InputError(
                f"--noise_class_column {self.class_column}: only --noise_kind {HARD} has classes, not {self.kind}."
            )

    @property
    def told(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: for the fingerprint; of `shuffled`, that of releases which had no other kind."""
        kind = () if self.kind == SHUFFLED else (self.kind, self.class_column or "")
        return "noise", str(self.share), str(self.seed), *kind


class Injected(NamedTuple):
    """Captions with noise.

    Attributes:
        captions (`list[str]`): One caption a pair (N,).
        mismatched (`np.ndarray`): The ground truth (N,), bool: True where the caption differs from the one before.
        chosen (`list[int]`): The pairs that were chosen, in order; of these, some may have to keep their caption.
    """

    captions: list[str]
    mismatched: np.ndarray
    chosen: list[int]


def inject_noise(captions: Sequence[str], noise: Noise, classes: Sequence[Hashable] | None = None) -> Injected:
    """Make the captions of a share of the pairs wrong.

    `round(share * N)` pairs are chosen; two where that is one, who has nobody to swap with (none if N is 1). In a
    shuffle, a caption text that occurs twice never comes back to a pair that had it, unless more than half of the
    pairs that swap share that text; as few as possible keep it then, and these still match. A warning counts them.

    Args:
        captions (`Sequence[str]`): One caption a pair (N,).
        noise (`Noise`): What to do.
        classes (`Sequence[Hashable]`, *optional*): Class of each pair (N,), for `hard`.
    """
    rng = np.random.default_rng(noise.seed)
    chosen = rng.permutation(len(captions))[: _count(noise.share, len(captions))].tolist()
    changed = list(captions)
    for index, caption in _replacements(captions, chosen, noise, classes, rng).items():
        changed[index] = caption
    mismatched = np.array([new != old for new, old in zip(changed, captions, strict=True)], dtype=bool)
    _tell(noise, len(chosen), int(mismatched.sum()))
    return Injected(changed, mismatched, sorted(chosen))


def _count(share: float, total: int) -> int:
    """How many of `total` pairs are chosen."""
    count = round(share * total)
    if count == 1:
        return 2 if total > 1 else 0
    return count


def _replacements(
    captions: Sequence[str],
    chosen: list[int],
    noise: Noise,
    classes: Sequence[Hashable] | None,
    rng: np.random.Generator,
) -> dict[int, str]:
    """New captions by index."""
    if noise.kind == GENERIC:
        return {index: generic_caption(rng, captions[index]) for index in chosen}
    if noise.kind == HARD and classes is not None:
        return shuffle_in_classes(captions, chosen, classes, rng)
    if noise.kind == HARD:
        new, alone = take_near_captions(captions, chosen, rng)
        if alone:
            logger.warning(
                "Noise: %d of %d chosen captions share no word with another; any other takes their place.",
                alone,
                len(chosen),
            )
        return new
    pairs = [(chosen[target], chosen[source]) for target, source in derangement([captions[i] for i in chosen], rng)]
    if noise.kind == PARTIAL:
        return {target: mix_captions(captions[target], captions[source], rng) for target, source in pairs}
    return {target: captions[source] for target, source in pairs}


def _tell(noise: Noise, chosen: int, mismatched: int) -> None:
    logger.info("Noise (%s): %d pairs chosen, %d mismatched.", noise.kind, chosen, mismatched)
    if mismatched < chosen:
        why = "most of these have the same text"
        if noise.kind == HARD:
            why = "there is no other text" + (" in their class" if noise.class_column else "")
        kept = chosen - mismatched
        logger.warning("Noise (%s): %d of %d chosen pairs keep their caption: %s.", noise.kind, kept, chosen, why)
