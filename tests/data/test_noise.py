"""Noise of every kind: which pairs, known ground truth, determinism; what each kind does to a caption."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter

import numpy as np
import pytest

from ncu_hf.data.noise import NOISE_KINDS, Injected, Noise, inject_noise
from ncu_hf.data.noise.generic import GENERIC_CAPTIONS
from ncu_hf.errors import InputError


def unique(count: int) -> list[str]:
    return [f"caption {i}" for i in range(count)]


def shuffle(captions: list[str], share: float, seed: int) -> tuple[list[str], np.ndarray]:
    shuffled, mismatched, _ = inject_noise(captions, Noise(share, seed))
    return shuffled, mismatched


def sentences(count: int, seed: int = 0) -> list[str]:
    """Captions of 1 to 9 words, some of them equal."""
    rng = np.random.default_rng(seed)
    words = ["a", "the", "red", "dog", "cat", "Straße", "犬", "émoji", "🐶", "on", "grass,", "at", "night", "with"]
    return [" ".join(rng.choice(words, rng.integers(1, 10))) for _ in range(count)]


CORPORA = {
    "unique": unique(40),
    "sentences": sentences(200),
    "one_word": ["dog", "cat", "dog", "bird", "犬", "🐶", "🐱", "dog", "cat", "é"],
    "generic": ["image", "photo", "untitled", "icon", "logo"] * 8,
    "majority": ["a dog"] * 30 + ["a cat", "a bird", "a a"],
    "same_words": ["a b", "b a", "A b.", "b, a"] * 5,
    "repeated_word": ["a", "a a", "a a a"] * 6,
    "empty": ["", " ", "a", "b c", ""] * 4,
    "all_equal": ["a dog"] * 12,
    **{f"of_{n}": unique(n) for n in range(4)},
}


# Every kind


@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_truth_is_exact_and_only_chosen_pairs_change(kind, corpus, share):
    captions = CORPORA[corpus]
    before = list(captions)
    noisy, mismatched, chosen = inject_noise(captions, Noise(share, 3, kind))
    assert captions == before and len(noisy) == len(captions)
    assert mismatched.dtype == bool and mismatched.shape == (len(captions),)
    assert mismatched.tolist() == [new != old for new, old in zip(noisy, captions, strict=True)]
    wanted = round(share * len(captions))
    assert len(chosen) == (min(2, len(captions) // 2 * 2) if wanted == 1 else wanted)
    assert chosen == sorted(set(chosen))
    assert set(np.flatnonzero(mismatched)) <= set(chosen)


@pytest.mark.parametrize("corpus", CORPORA)
def test_all_kinds_choose_the_same_pairs(corpus):
    found = [inject_noise(CORPORA[corpus], Noise(0.4, 5, kind)).chosen for kind in NOISE_KINDS]
    labels = [len(caption) % 3 for caption in CORPORA[corpus]]
    found += [inject_noise(CORPORA[corpus], Noise(0.4, 5, "hard", "label"), labels).chosen]
    assert all(chosen == found[0] for chosen in found)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_every_chosen_pair_of_captions_that_differ_is_mismatched(kind):
    captions = list(dict.fromkeys(sentences(300)))
    for seed in range(5):
        result = inject_noise(captions, Noise(0.3, seed, kind))
        assert np.flatnonzero(result.mismatched).tolist() == result.chosen


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_seed_determines_the_result(kind):
    captions = sentences(150)
    first, again, other = (inject_noise(captions, Noise(0.4, seed, kind)) for seed in (1, 1, 2))
    assert first.captions == again.captions and first.chosen == again.chosen
    assert first.captions != other.captions and first.chosen != other.chosen


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_global_generator_is_left_alone(kind):
    before = np.random.get_state()[1].copy()
    inject_noise(unique(20), Noise(0.5, 0, kind))
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan"), float("inf")])
def test_share_outside_zero_one_is_refused(share):
    with pytest.raises(InputError, match="outside"):
        Noise(share)


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"--noise_kind: unknown value 'hrad'. Did you mean 'hard'\? Known: shuffled"):
        Noise(0.3, kind="hrad")
    with pytest.raises(InputError, match="--noise_class_column label: only --noise_kind hard has classes, not generic"):
        Noise(0.3, kind="generic", class_column="label")


def test_what_a_fingerprint_is_told():
    assert Noise(0.3, 4).told == ("noise", "0.3", "4")  # as before there were other kinds: runs of then can go on
    others = [Noise(0.3, 4, kind).told for kind in NOISE_KINDS] + [Noise(0.3, 4, "hard", "label").told]
    assert len(set(others)) == len(others)


# Shuffled


@pytest.mark.parametrize(("count", "share"), [(2, 1.0), (7, 0.5), (101, 0.3), (1000, 0.2), (13, 1.0)])
def test_exactly_the_share_changes_and_nobody_keeps_a_caption(count, share):
    captions = unique(count)
    shuffled, mismatched = shuffle(captions, share, seed=3)
    changed = [i for i in range(count) if shuffled[i] != captions[i]]
    assert len(changed) == round(share * count)
    assert changed == np.flatnonzero(mismatched).tolist()
    assert Counter(shuffled) == Counter(captions)


def test_a_shuffle_is_the_one_of_earlier_releases():
    """Known answers: a run that was started by one of them goes on with the same captions."""
    assert "".join(shuffle(list("abcdefghij"), 0.5, 0)[0]) == "abgehfdcij"
    assert "".join(shuffle(list("aabbcdefgh"), 1.0, 7)[0]) == "bbcgaadehf"
    captions = [f"caption {i % 400}" for i in range(1000)]
    digest = hashlib.sha256("\n".join(shuffle(captions, 0.3, 5)[0]).encode()).hexdigest()
    assert digest == "1d9b7237efcc31a57312320b824aac6007175ae19e1a308935e7be89a7fc7c97"


@pytest.mark.parametrize("seed", range(20))
def test_equal_texts_never_come_back(seed):
    captions = ["a"] * 4 + ["b"] * 3 + ["c", "d"]
    shuffled, mismatched = shuffle(captions, 1.0, seed)
    assert all(new != old for new, old in zip(shuffled, captions, strict=True))
    assert mismatched.all()
    assert Counter(shuffled) == Counter(captions)


def test_majority_text_keeps_as_few_as_possible(caplog):
    captions = ["a"] * 7 + ["b"] * 3
    shuffled, mismatched = shuffle(captions, 1.0, seed=0)
    assert mismatched.sum() == 6  # three b's can free three a's: 2 * 3 pairs change, 7 - 3 a's must stay
    assert mismatched.tolist() == [new != old for new, old in zip(shuffled, captions, strict=True)]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "Noise (shuffled): 4 of 10 chosen pairs keep their caption: most of these have the same text."
    ]


def test_all_texts_equal_is_no_mismatch():
    shuffled, mismatched = shuffle(["a"] * 5, 1.0, seed=0)
    assert shuffled == ["a"] * 5 and not mismatched.any()


def test_one_chosen_pair_becomes_two():
    assert shuffle(unique(10), 0.1, seed=0)[1].sum() == 2
    assert shuffle(unique(1), 1.0, seed=0)[1].sum() == 0


# Hard, with classes


def in_classes(captions: list[str], labels: list, share: float, seed: int = 0) -> Injected:
    return inject_noise(captions, Noise(share, seed, "hard", "label"), labels)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_captions_stay_in_their_class(share, seed):
    captions = list(dict.fromkeys(sentences(300)))
    labels = [f"class {len(caption) % 7}" for caption in captions]
    label_of = dict(zip(captions, labels, strict=True))
    noisy, mismatched, chosen = in_classes(captions, labels, share, seed)
    assert [label_of[caption] for caption in noisy] == labels
    alone = [i for i in chosen if labels.count(labels[i]) == 1]
    assert sorted(np.flatnonzero(mismatched)) == sorted(set(chosen) - set(alone))
    if share == 1.0:
        assert Counter(noisy) == Counter(captions)  # nobody has to take a caption twice


def test_a_class_keeps_its_captions_only_if_it_has_one_text(caplog):
    captions = ["a", "b", "b", "c", "c", "c", "c", "d", "e"]
    labels = ["alone", "one text", "one text", "mixed", "mixed", "mixed", "mixed", "mixed", "lonely"]
    for seed in range(10):
        caplog.clear()
        noisy, mismatched, _ = in_classes(captions, labels, 1.0, seed)
        assert mismatched.tolist() == [label == "mixed" for label in labels]
        assert noisy[3:7] == ["d"] * 4 and noisy[7] == "c"
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
            "Noise (hard): 4 of 9 chosen pairs keep their caption: there is no other text in their class."
        ]


def test_a_single_chosen_pair_of_a_class_takes_a_caption_of_the_others():
    captions = unique(20)
    labels = [i // 2 for i in range(20)]
    for seed in range(10):
        noisy, mismatched, chosen = in_classes(captions, labels, 0.2, seed)
        assert mismatched.sum() == len(chosen) == 4
        assert all(noisy[i] == captions[i ^ 1] for i in chosen)


def test_one_class_is_everybody():
    captions = unique(30)
    assert in_classes(captions, ["x"] * 30, 1.0).mismatched.all()


# Generic


def test_generic_captions_fit_no_image():
    assert 30 <= len(set(GENERIC_CAPTIONS)) == len(GENERIC_CAPTIONS) <= 60
    captions = sentences(3000)
    noisy, mismatched, chosen = inject_noise(captions, Noise(1.0, 0, "generic"))
    assert mismatched.all() and len(chosen) == 3000
    forms = [re.escape(text) for text in GENERIC_CAPTIONS]
    forms = [text.replace(r"\{number\}", r"\d{4}").replace(r"\{date\}", r"20\d\d-\d\d-\d\d") for text in forms]
    found = Counter(next(form for form in forms if re.fullmatch(form, text)) for text in noisy)
    assert set(found) == set(forms)
    assert max(found.values()) < 3 * min(found.values())  # 3,000 draws, some 55 of each
    assert len(set(noisy)) > 5 * len(forms)


def test_a_generic_caption_gets_another_one():
    captions = ["image"] * 2000
    noisy, mismatched, _ = inject_noise(captions, Noise(1.0, 0, "generic"))
    assert mismatched.all() and "image" not in noisy


# Partial


def runs(words: list[str], replaced: list[str]) -> list[tuple[int, int, list[str]]]:
    """Every (start, length, new words) that turns `words` into `replaced` as one run."""
    return [
        (start, length, new)
        for length in range(len(words) + 1)
        for start in range(len(words) - length + 1)
        if words[:start]
        + (new := replaced[start : len(replaced) - (len(words) - start - length)])
        + words[start + length :]
        == replaced
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_run_of_a_third_to_a_half_is_of_another_chosen_caption(seed):
    captions = sentences(200, seed)
    noisy, mismatched, chosen = inject_noise(captions, Noise(0.3, seed, "partial"))
    donors = {captions[i] for i in chosen}
    for i in np.flatnonzero(mismatched):
        words, found = captions[i].split(" "), noisy[i].split(" ")
        ways = [
            (start, length, new)
            for start, length, new in runs(words, found)
            if max(1, round(len(words) / 3)) <= length <= max(1, round(len(words) / 2))
            and any(new == donor.split(" ")[k : k + len(new)] for donor in donors for k in range(10))
        ]
        assert ways or noisy[i] in donors, (captions[i], noisy[i])
    assert mismatched.sum() == len(chosen)
    if seed == 0:
        kept = [len(set(noisy[i].split(" ")) & set(captions[i].split(" "))) for i in chosen if " " in captions[i]]
        assert np.mean([number > 0 for number in kept]) > 0.9


@pytest.mark.parametrize(
    ("caption", "other", "possible"),
    [
        ("a", "b", {"b"}),
        ("a", "b c", {"b", "c"}),
        ("a a", "a", {"a"}),
        ("a b", "a", {"a a"}),
        (
            "a b c d",
            "c d",
            {"c d c d", "a c d d", "a b c d", "c b c d", "d b c d", "a c c d", "a d c d", "a b d d"} | {"a b c c"},
        ),
        ("", "b", {"b"}),
        ("b", "", {""}),
    ],
)
def test_what_partial_noise_can_make_of_a_caption(caption, other, possible):
    found = {inject_noise([caption, other], Noise(1.0, seed, "partial")).captions[0] for seed in range(60)}
    assert found <= possible - {caption} and found
