from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ncu_hf.data.augmentation import augment_caption

CAPTION = "a red circle above a small blue square on grey"


def test_same_generator_same_caption_and_other_seeds_differ():
    results = [augment_caption(CAPTION, np.random.default_rng(seed)) for seed in range(20)]
    assert results == [augment_caption(CAPTION, np.random.default_rng(seed)) for seed in range(20)]
    assert len(set(results)) > 10


def test_each_operation_changes_the_words_as_its_name_says():
    words = Counter(CAPTION.split())
    seen = set()
    for seed in range(200):
        result = Counter(augment_caption(CAPTION, np.random.default_rng(seed)).split())
        added, removed = result - words, words - result
        assert (added.total(), removed.total()) in {(0, 0), (1, 0), (0, 1)}  # 10 words: one operation
        assert set(result) <= set(words)
        seen.add((added.total(), removed.total()))
    assert seen == {(0, 0), (1, 0), (0, 1)}


def test_longer_captions_get_more_operations():
    caption = " ".join(f"word{i}" for i in range(50))
    lengths = {len(augment_caption(caption, np.random.default_rng(seed)).split()) for seed in range(50)}
    assert lengths == {45, 50, 55}


@pytest.mark.parametrize("seed", range(10))
def test_one_word_is_never_lost(seed):
    assert set(augment_caption("dog", np.random.default_rng(seed)).split()) == {"dog"}
