"""Which other caption shares most with a caption: the cosine of their words, weighted by rarity.

Sizes: N captions, V different words, n words in all captions together. The index takes some 30 bytes for each of the n
words; a search touches at most `CANDIDATES` captions, however many there are, hence N searches take O(N) time.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence

import numpy as np

# Captions that one search compares, at most.
CANDIDATES = 512
_WORD = re.compile(r"\w+")
# Cosines that agree to this many digits count as equal, whatever the machine that sums them up.
_DIGITS = 9


class WordIndex:
    """The captions that hold a word, for every word.

    A caption is the set of its words (letters and digits, in small letters), each weighted by log(1 + N / f), where f
    captions of N hold it (inverse document frequency), at unit length.

    Args:
        captions (`Sequence[str]`): N captions.
        rng (`np.random.Generator`): Of the order in which the captions of a word are looked at.
    """

    def __init__(self, captions: Sequence[str], rng: np.random.Generator):
        vocabulary: dict[str, int] = {}
        words, lengths = array("i"), array("i")
        for caption in captions:
            found = sorted({vocabulary.setdefault(word, len(vocabulary)) for word in _WORD.findall(caption.lower())})
            words.extend(found)
            lengths.append(len(found))
        self._rng = rng
        self._words = np.array(words, dtype=np.int32)  # (n,): the words of caption i lie in starts[i] : starts[i + 1]
        self._lengths = np.array(lengths, dtype=np.int64)
        self._starts = _starts(self._lengths)
        self._counts = np.bincount(self._words, minlength=len(vocabulary))  # (V,)
        owners = np.repeat(np.arange(len(captions), dtype=np.int32), self._lengths)
        rarity = np.log(1 + len(captions) / np.maximum(self._counts, 1))[self._words]
        norms = np.sqrt(np.bincount(owners, rarity**2, minlength=len(captions)))
        self._weights = rarity / norms[owners]  # (n,)
        # The captions that hold word w lie, in random order, in holder_starts[w] : holder_starts[w + 1].
        self._holders = owners[np.lexsort((rng.permutation(len(captions))[owners], self._words))]  # (n,)
        self._holder_starts = _starts(self._counts)
        self._query = np.zeros(len(vocabulary))

    def nearest(self, index: int) -> int | None:
        """The caption that is nearest to caption `index` among those that do not have just the same words.

        Compared are the captions that hold its rarest words, at most `CANDIDATES` places of the index, of the last
        word that still fits in a random part: exact where the captions of all of its words are no more than that.
        Equally near ones are drawn from.

        Returns:
            `int`, *optional*: index of a caption; `None` if no other one that was compared shares a word with it.
        """
        candidates = self._candidates(index)
        if not len(candidates):
            return None
        cosines = np.round(self._cosines(index, candidates), _DIGITS)
        cosines[cosines >= 1] = 0  # the same words say the same
        nearest = np.flatnonzero(cosines == cosines.max())
        return None if not cosines[nearest[0]] else int(candidates[nearest[self._rng.integers(len(nearest))]])

    def _candidates(self, index: int) -> np.ndarray:
        """Captions that share a word with caption `index`, itself included, sorted."""
        words = self._words[self._starts[index] : self._starts[index + 1]]
        found, left = [], CANDIDATES
        for word in words[np.argsort(self._counts[words], kind="stable")].tolist():
            holders = self._holders[self._holder_starts[word] : self._holder_starts[word + 1]]
            if len(holders) > left:
                holders = holders.take(np.arange(left) + self._rng.integers(len(holders)), mode="wrap")
            found.append(holders)
            left -= len(holders)
            if not left:
                break
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int32)

    def _cosines(self, index: int, candidates: np.ndarray) -> np.ndarray:
        """Cosine of caption `index` with each candidate (k,)."""
        own = slice(self._starts[index], self._starts[index + 1])
        self._query[self._words[own]] = self._weights[own]
        lengths = self._lengths[candidates]
        firsts = _starts(lengths)
        places = np.repeat(self._starts[candidates] - firsts[:-1], lengths) + np.arange(firsts[-1])
        cosines = np.add.reduceat(self._query[self._words[places]] * self._weights[places], firsts[:-1])
        self._query[self._words[own]] = 0
        return cosines


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where parts of these lengths start, and where the last one ends (k + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths)])
