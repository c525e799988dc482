"""What a run measures: evaluation pairs grouped by image and caption, and an unbiased sample for the forget set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from ncu_hf import assessment
from ncu_hf.assessment import assess_forget_set, collect_pairs
from ncu_hf.config import MethodArguments
from ncu_hf.data import PairSource, Record, open_pairs


class Rows(PairSource):
    name = format = fingerprint = "rows"

    def __init__(self, rows: list[tuple[bytes, str]]):
        self.rows, self.problems = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return Record(str(index), *self.rows[index])

    def shard_of(self, index: int) -> str:
        return "rows"


def test_rows_of_one_image_or_one_caption_belong_together(png: Callable[..., bytes]):
    red, blue, green, black = (png(i) for i in range(4))
    source = Rows([(red, "a"), (red, "b"), (blue, "c"), (green, "b"), (black, "d"), (b"broken", "e"), (blue, "")])
    pairs = collect_pairs(source)
    assert pairs.captions == ["a", "b", "c", "b", "d"]
    assert pairs.keys == ["0", "2", "3", "4"]
    groups = pairs.image_groups.tolist()
    # red and green share the caption b
    assert groups[0] == groups[2] and len(set(groups)) == 3
    assert pairs.caption_groups.tolist() == [groups[0], groups[0], groups[1], groups[2], groups[3]]
    assert sum(pairs.skipped.values()) == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sample_does_not_follow_the_noise_of_the_same_seed(seed, scenes, clip_folder, monkeypatch):
    monkeypatch.setattr(assessment, "FORGET_SET_PAIRS", 48)
    source = open_pairs(
        str(scenes), image_column="image", caption_column="caption", limit=90, noise_share=0.3, noise_seed=seed
    )
    known = sum(source[i].mismatched for i in range(90)) / 90
    clip, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    found = assess_forget_set(
        clip, processor, source, MethodArguments(), batch_size=16, device=torch.device("cpu"), seed=seed
    )
    assert found["n"] == 48
    # were it drawn as the noise was, the sample would hold more than half as many again
    assert abs(found["n_mismatched"] / 48 - known) < 0.15
