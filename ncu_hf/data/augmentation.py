"""Word augmentation of captions for the negative branch: swap, delete, insert.

After EDA (Wei and Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification
Tasks"). Two differences: there is no synonym replacement, which would need a thesaurus that the project does not
carry, and an inserted word is one of the caption's own.
"""

from __future__ import annotations

import numpy as np

# Share of the words that one operation touches (EDA's alpha).
WORD_SHARE = 0.1


def augment_caption(caption: str, rng: np.random.Generator) -> str:
    """Apply one random operation to max(1, 10 %) of the words.

    A caption of one word stays as it is under swap and delete: an augmented caption is never empty.

    Args:
        caption (`str`): Clean caption (words separated by single blanks).
        rng (`np.random.Generator`): Source of all randomness.

    Returns:
        `str`: the augmented caption.
    """
    words = caption.split(" ")
    operation = (_swap, _delete, _insert)[rng.integers(3)]
    for _ in range(max(1, round(WORD_SHARE * len(words)))):
        operation(words, rng)
    return " ".join(words)


def _swap(words: list[str], rng: np.random.Generator) -> None:
    if len(words) > 1:
        i, j = rng.choice(len(words), size=2, replace=False)
        words[i], words[j] = words[j], words[i]


def _delete(words: list[str], rng: np.random.Generator) -> None:
    if len(words) > 1:
        words.pop(rng.integers(len(words)))


def _insert(words: list[str], rng: np.random.Generator) -> None:
    words.insert(rng.integers(len(words) + 1), words[rng.integers(len(words))])
