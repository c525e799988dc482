"""Captions that are wrong in part: some of their words are those of another caption."""

from __future__ import annotations

import numpy as np

# The least and the largest share of the words that are replaced.
LEAST, MOST = 1 / 3, 1 / 2


def mix_captions(caption: str, other: str, rng: np.random.Generator) -> str:
    """Replace a part of a caption by a part of another one.

    One run of a third to a half of the words (at least one word) gives way to a run of as many words of the other
    caption, or to all of them where it has fewer; both runs lie where the text comes to differ. If they do so nowhere
    ("a a" and "a"), the other caption takes the place of the whole.

    Args:
        caption, other (`str`): Words separated by single blanks.
        rng (`np.random.Generator`): Source of all randomness.

    Returns:
        `str`: differs from `caption` if `other` does.
    """
    words, donor = caption.split(" "), other.split(" ")
    length = max(1, round(rng.uniform(LEAST, MOST) * len(words)))
    taken = min(length, len(donor))
    firsts = rng.permutation(len(donor) - taken + 1).tolist()
    for start in rng.permutation(len(words) - length + 1).tolist():
        for first in firsts:
            if (run := donor[first : first + taken]) != words[start : start + length]:
                return " ".join([*words[:start], *run, *words[start + length :]])
    return other
