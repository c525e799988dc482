"""What a run measures on one model: all sets, and an unbiased sample for the forget set."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from ncu_hf import assessment
from ncu_hf.assessment import assess, assess_forget_set
from ncu_hf.config import MethodArguments
from ncu_hf.data import PairSource, Record, open_pairs
from ncu_hf.evaluation import ClipEncoder, EmbeddingCache, LabelledSet, Origin, encode
from ncu_hf.evaluation.sets.captioned import captioned_set


@pytest.fixture(scope="module")
def encoder(clip_folder):
    return ClipEncoder(CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder))


class Rows(PairSource):
    name = format = fingerprint = "rows"

    def __init__(self, rows: list[tuple[bytes, str, bool]]):
        self.rows, self.problems = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        image, caption, mismatched = self.rows[index]
        return Record(str(index), image, caption, mismatched)

    def shard_of(self, index: int) -> str:
        return "rows"


def test_all_sets_are_measured_and_the_similarity_is_that_of_the_first_pairs(encoder, scenes):
    pairs = captioned_set(open_pairs(str(scenes), image_column="image", caption_column="caption"), 20)
    labelled = LabelledSet(
        origin=Origin(name="half", fingerprint="f", stamp="s"),
        images=[pairs.images[row] for row in range(4)],
        labels=torch.tensor([0, 1, 0, 1]),
        classes=["one", "two"],
        templates=["{c}"],
    )
    found = assess(encoder, [labelled, pairs])
    assert set(found.numbers) == {"zero_shot", "retrieval", "similarity"}
    assert found.numbers["zero_shot"]["half"]["n"] == 4
    assert len(found.distributions["positives"]) == 20
    without = assess(encoder, [labelled])
    assert set(without.numbers) == {"zero_shot"} and without.distributions is None
    assert assess(encoder, []) is None


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sample_does_not_follow_the_noise_of_the_same_seed(seed, scenes, encoder, monkeypatch):
    monkeypatch.setattr(assessment, "SAMPLE_PAIRS", 48)
    source = open_pairs(
        str(scenes), image_column="image", caption_column="caption", limit=90, noise_share=0.3, noise_seed=seed
    )
    known = sum(source[i].mismatched for i in range(90)) / 90
    found = assess_forget_set(encoder, source, MethodArguments(), batch_size=16, seed=seed)
    assert found["n"] == 48
    # were it drawn as the noise was, the sample would hold more than half as many again
    assert abs(found["n_mismatched"] / 48 - known) < 0.15


def test_pairs_that_cannot_be_used_are_no_part_of_the_forget_set(encoder, png):
    good = [(png(row), f"caption {row}", row % 2 == 0) for row in range(6)]
    bad = [(b"broken", "caption", True), (png(9), "", True), (png(10)[:50], "cut", False)]
    found = assess_forget_set(encoder, Rows(good + bad), MethodArguments(), batch_size=4, seed=0)
    assert found["n"] == 6 and found["n_mismatched"] == 3


def test_nothing_is_said_where_the_mismatches_are_not_known_or_all_of_one_kind(encoder, png):
    for truth in (None, True, False):
        source = Rows([(png(row), f"caption {row}", truth) for row in range(4)])
        assert assess_forget_set(encoder, source, MethodArguments(), batch_size=4, seed=0) is None


@pytest.mark.parametrize("stored", ["bytes", "files"])
def test_images_of_the_forget_set_are_decoded_once_a_vision_tower(clip_folder, png, tmp_path, monkeypatch, stored):
    rows = [(png(row), f"caption {row}", row % 2 == 0) for row in range(6)]
    if stored == "files":
        for row, (image, *_) in enumerate(rows):
            (tmp_path / f"{row}.png").write_bytes(image)
        rows = [(str(tmp_path / f"{row}.png"), *rest) for row, (_, *rest) in enumerate(rows)]

    def quality(rows, scale):
        clip = CLIPModel.from_pretrained(clip_folder)
        with torch.no_grad():
            clip.text_projection.weight *= scale  # as after a phase that trained texts alone
        cached = ClipEncoder(clip, CLIPProcessor.from_pretrained(clip_folder), cache=EmbeddingCache(tmp_path / "cache"))
        return assess_forget_set(cached, Rows(rows), MethodArguments(), batch_size=4, seed=0)

    first = quality(rows, 1)
    monkeypatch.setattr(encode, "load_pixels", None)
    assert quality(rows, 1) == first
    assert quality(rows, -1)["auroc"] != first["auroc"]
    with pytest.raises(TypeError):  # another image is another content
        quality([*rows[:-1], (png(99), "caption 5", False)], 1)
