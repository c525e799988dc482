"""Outcomes on each item survive the file, with what tells which items they are of."""

from __future__ import annotations

import pytest
import torch

from ncu_hf.errors import InputError
from ncu_hf.evaluation.outcomes import load_outcomes, save_outcomes
from ncu_hf.evaluation.pairwise import RetrievalItems, ZeroShotItems
from ncu_hf.evaluation.suites import Measurement


def test_what_is_written_is_read(tmp_path):
    labels = ZeroShotItems(torch.tensor([1, 3, 2]), torch.tensor([0, 1, 1]))
    pairs = RetrievalItems(
        (torch.tensor([1, 2]), torch.tensor([1, 4, 2])), (torch.tensor([0, 1]), torch.tensor([0, 1, 1]))
    )
    after = [
        Measurement("zero_shot", "color", {}, labels, images="a"),
        Measurement("retrieval", "held-out pairs", {}, pairs, images="b"),
    ]
    before = [Measurement("zero_shot", "color", {}, ZeroShotItems(labels.ranks + 1, labels.labels), images="a")]
    save_outcomes(tmp_path / "outcomes.safetensors", {"before": before, "after": after})
    found = load_outcomes(tmp_path / "outcomes.safetensors")
    assert {side: set(sets) for side, sets in found.items()} == {
        "before": {("zero_shot", "color")},
        "after": {("zero_shot", "color"), ("retrieval", "held-out pairs")},
    }
    assert found["after"]["zero_shot", "color"].images == "a"
    assert found["after"]["retrieval", "held-out pairs"].images == "b"
    assert found["before"]["zero_shot", "color"].items.ranks.tolist() == [2, 4, 3]
    assert found["after"]["zero_shot", "color"].items.labels.tolist() == [0, 1, 1]
    items = found["after"]["retrieval", "held-out pairs"].items
    assert [part.tolist() for part in (*items.ranks, *items.groups)] == [[1, 2], [1, 4, 2], [0, 1], [0, 1, 1]]


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 20])
def test_what_is_no_such_file_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "outcomes.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="outcomes cannot be read") as error:
        load_outcomes(path)
    assert "\n" not in str(error.value)
