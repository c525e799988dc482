"""The nearest caption by its words, against a brute-force search; captions without a neighbour; time."""

from __future__ import annotations

import logging
import math
import re
import time

import numpy as np
import pytest

from ncu_hf.data.noise import Noise, inject_noise, neighbours
from ncu_hf.data.noise.neighbours import WordIndex


def corpus(count: int, seed: int = 0, vocabulary: int = 60, longest: int = 8) -> list[str]:
    """Captions whose words are as unequally frequent as those of a language."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocabulary + 1)
    lengths = rng.integers(1, longest + 1, count)
    words = rng.choice(vocabulary, size=(count, longest), p=weights / weights.sum())
    return [" ".join(f"w{word}" for word in row[:length]) for row, length in zip(words, lengths, strict=True)]


def cosines(captions: list[str]) -> np.ndarray:
    """Cosine of the weighted word sets of all captions (N, N), written down as it is defined."""
    sets = [set(re.findall(r"\w+", caption.lower())) for caption in captions]

    def weight(word: str) -> float:
        return math.log(1 + len(sets) / sum(word in other for other in sets))

    weights = {word: weight(word) for word in set().union(*sets)}
    norm = [math.sqrt(sum(weights[word] ** 2 for word in words)) for words in sets]
    found = np.zeros((len(sets), len(sets)))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            if a and b and a != b:
                found[i, j] = sum(weights[word] ** 2 for word in a & b) / norm[i] / norm[j]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_against_brute_force(seed, monkeypatch):
    monkeypatch.setattr(neighbours, "CANDIDATES", 10_000)  # more than all captions of all words: exact
    captions = [*corpus(90, seed), "A dog, a DOG!", "a dog", "lonely", "🐶", "Straße ÉTÉ", "straße été im wald"]
    expected = cosines(captions)
    index = WordIndex(captions, np.random.default_rng(seed))
    for i, caption in enumerate(captions):
        found = index.nearest(i)
        if not expected[i].any():
            assert found is None, caption
        else:
            assert expected[i][found] == pytest.approx(expected[i].max(), abs=1e-8), (caption, captions[found])


def test_equally_near_captions_are_drawn_from():
    captions = ["red dog", *(f"red thing{i}" for i in range(8))]
    found = {WordIndex(captions, np.random.default_rng(seed)).nearest(0) for seed in range(60)}
    assert found == set(range(1, 9))


def test_few_candidates_still_find_a_near_caption(monkeypatch):
    captions = list(dict.fromkeys(corpus(800, vocabulary=400)))
    expected = cosines(captions)
    means = {}
    for candidates in (1, 20, 100, 10_000):
        monkeypatch.setattr(neighbours, "CANDIDATES", candidates)
        index = WordIndex(captions, np.random.default_rng(0))
        nearest = {i: index.nearest(i) for i in range(0, len(captions), 5)}
        means[candidates] = np.mean([expected[i][j] for i, j in nearest.items() if j is not None])
    assert means[20] < means[100] <= means[10_000] + 1e-12
    assert means[100] > 0.9 * means[10_000] > 2 * expected.mean()


def test_a_search_looks_at_no_more_captions_than_it_may(monkeypatch):
    captions = corpus(2000)
    index = WordIndex(captions, np.random.default_rng(0))
    looked_at, cosines_of = [], WordIndex._cosines

    def spy(self, query, candidates):
        looked_at.append(len(candidates))
        return cosines_of(self, query, candidates)

    monkeypatch.setattr(WordIndex, "_cosines", spy)
    for i in range(200):
        index.nearest(i)
    assert 0 < max(looked_at) <= neighbours.CANDIDATES < 2000


def test_near_captions_share_words_and_shuffled_ones_do_not():
    captions = corpus(1500, vocabulary=3000)
    shared = {}
    for kind in ("hard", "shuffled"):
        noisy, mismatched, chosen = inject_noise(captions, Noise(0.3, 0, kind))
        rows = np.flatnonzero(mismatched)
        assert rows.tolist() == chosen
        shared[kind] = np.mean([len(set(noisy[i].split()) & set(captions[i].split())) for i in rows])
    assert shared["hard"] > 2 * shared["shuffled"]


def test_captions_that_share_no_word_take_any_other(caplog):
    captions = ["🐶", "🐱", "one", "two", "three four", "four five"]
    for seed in range(10):
        caplog.clear()
        noisy, mismatched, _ = inject_noise(captions, Noise(1.0, seed, "hard"))
        assert mismatched.all()
        assert noisy[4] == "four five" and noisy[5] == "three four"
        assert set(noisy) <= set(captions)
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
            "Noise: 4 of 6 chosen captions share no word with another; any other takes their place."
        ]


def test_only_a_text_that_is_alone_keeps_its_place(caplog):
    noisy, mismatched, _ = inject_noise(["a dog"] * 9, Noise(1.0, 0, "hard"))
    assert noisy == ["a dog"] * 9 and not mismatched.any()
    assert "9 of 9 chosen pairs keep their caption: there is no other text." in caplog.text
    noisy, mismatched, _ = inject_noise(["a dog"] * 9 + ["A dog."], Noise(1.0, 0, "hard"))
    assert mismatched.all()  # the same words, but nothing else is left


@pytest.mark.slow
def test_fifty_thousand_captions_take_less_than_a_minute():
    captions = corpus(50_000, vocabulary=30_000, longest=20)
    started = time.perf_counter()
    result = inject_noise(captions, Noise(0.5, 0, "hard"))
    assert time.perf_counter() - started < 60
    assert len(result.chosen) == 25_000
