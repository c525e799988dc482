"""What `scripts/compare_methods.py` reports: numbers computed by hand, tables, plots, and what is missing."""

from __future__ import annotations

import csv
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ncu_hf.errors import InputError
from ncu_hf.evaluation.outcomes import OUTCOMES_FILE, save_outcomes
from ncu_hf.evaluation.pairwise import RetrievalItems, ZeroShotItems
from ncu_hf.evaluation.suites import Measurement

LABELS = torch.tensor([0, 0, 1, 1])


def write_run(folder: Path, recalls: list[int], correct: dict[str, list[int]], before: dict | None = None) -> None:
    """Output of a run on four images with a caption each, which are found (1) or not (0), both ways alike."""
    folder.mkdir(parents=True)
    ranks = torch.tensor([1 if found else 20 for found in recalls])
    groups = torch.arange(4)
    measured = [
        Measurement("retrieval", "held-out pairs", {}, RetrievalItems((ranks, ranks), (groups, groups)), images="e"),
        *(
            Measurement("zero_shot", name, {}, ZeroShotItems(2 - torch.tensor(found), LABELS), images="i")
            for name, found in correct.items()
        ),
    ]
    save_outcomes(folder / OUTCOMES_FILE, {"after": measured})
    sides = {
        "retrieval": {"held-out pairs": {"after": {"mean_recall": sum(recalls) / 4}}},
        "zero_shot": {
            name: {"after": {"accuracy": sum(found) / 4, "primary": "accuracy"}} for name, found in correct.items()
        },
        "phases": [{"name": "contrastive", "steps": 8, "seconds": 1.5}],
        "forget_set": before or {},
    }
    (folder / "results.json").write_text(json.dumps(sides))


@pytest.fixture
def report(config, small, study, make_units, tmp_path):
    """Numbers of two seeds: clip, ncu and their reference, some of them missing."""
    module, writer = importlib.import_module("compare_report"), importlib.import_module("study_writer")

    def make(missing: tuple[str, ...] = (), **changes) -> dict[str, Any]:
        (tmp_path / "out").mkdir()
        outcomes = {
            "0/reference": ([1, 0, 0, 0], {"color": [1, 0, 0, 0], "size": [1, 1, 0, 0]}),
            "0/clip": ([1, 1, 0, 0], {"color": [1, 1, 0, 0], "size": [1, 1, 0, 0]}),
            "0/ncu": ([1, 1, 1, 0], {"color": [1, 1, 1, 0], "size": [1, 1, 1, 1]}),
            "1/reference": ([0, 0, 0, 0], {"color": [0, 0, 0, 0], "size": [0, 1, 0, 0]}),
            "1/clip": ([0, 1, 0, 0], {"color": [0, 1, 0, 0], "size": [0, 1, 0, 0]}),
            "1/ncu": ([1, 1, 1, 0], {"color": [0, 1, 1, 0], "size": [0, 1, 1, 1]}),
        }
        found = {"auroc": 0.75, "precision": 0.5}
        for place, (recalls, correct) in outcomes.items():
            if place not in missing:
                stages = {"before": found, "negative_prompt": found | {"auroc": 0.5}, "after": found}
                folder = tmp_path / "out" / "runs" / "0.4" / place
                write_run(folder, recalls, correct, stages if place.endswith("ncu") else None)
        comparison = config.parse_comparison(small | changes)
        units = make_units(**changes)
        module.write_report(comparison, writer.StudyFiles.open(study), units, tmp_path / "out")
        return json.loads((tmp_path / "out" / "comparison.json").read_text())

    return make


def test_numbers_are_those_computed_by_hand(report, row):
    numbers = report(recommended="ncu")
    assert numbers["missing"] == []
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", numbers["reported_on"]["commit"] or 40 * "0")
    clip = row(numbers["summary"], entry="clip", metric="mean_recall")
    assert (clip["mean"], clip["n"]) == (0.375, 2)
    assert clip["sd"] == pytest.approx(0.25 / 2**0.5)
    ncu = row(numbers["summary"], entry="ncu", metric="zero_shot")
    assert ncu["by_seed"] == {"0": 0.875, "1": 0.625}
    gain = row(numbers["differences"], entry="ncu", against="clip", metric="mean_recall")
    # Differences of 1/4 and 1/2: mean 3/8, deviation 0.1768, t of one degree of freedom 12.706.
    assert gain["difference"] == 0.375 and gain["by_seed"] == {"0": 0.25, "1": 0.5}
    half = 12.706204736 * 0.1767766953 / 2**0.5
    assert gain["over_seeds"] == pytest.approx([0.375 - half, 0.375 + half])
    # Per item the mean gain is 1/2, 0, 1, 0: the interval of 4 draws of these.
    assert gain["over_items"] == pytest.approx([0, 0.75])
    zero = row(numbers["differences"], entry="ncu", against="clip", metric="zero_shot")
    assert zero["difference"] == pytest.approx((0.25 + 0.5) / 4 + (0.25 + 0.5) / 4)
    assert row(numbers["differences"], entry="clip", against="reference", metric="mean_recall")["difference"] == 0.25
    assert {(one["entry"], one["against"]) for one in numbers["differences"]} == {
        ("ncu", "clip"),
        ("ncu", "reference"),
        ("clip", "reference"),
    }


def test_tables(report, row, tmp_path):
    report(recommended="ncu")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| clip | 37.5 ± 17.7 | 37.5 ± 17.7 | 37.5 ± 17.7 | 37.5 ± 17.7 | 2 |" in text
    assert "| ncu | +37.5 [-121.3, +196.3] [+0.0, +75.0] |" in text
    assert "| ncu | 75.0 / 50.0 | 50.0 / 50.0 | 75.0 / 50.0 |" in text
    assert "Difference of ncu to each other entry:" in text and "Incomplete" not in text
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = row(rows, entry="ncu", against="clip", metric="mean_recall")
    assert (found["value"], found["n"], found["items_high"]) == ("0.375", "2", "0.75")
    assert row(rows, entry="clip", against="", metric="mean_recall")["value"] == "0.375"


def test_what_is_complete_is_told_and_what_is_missing(report, row, tmp_path):
    numbers = report(missing=("0/ncu", "1/clip"))
    assert numbers["missing"] == ["noise 0.4, seed 0, ncu", "noise 0.4, seed 1, clip"]
    assert (
        "**Incomplete: 2 runs are missing** (noise 0.4, seed 0, ncu; noise"
        in (tmp_path / "out" / "comparison.md").read_text()
    )
    # No seed has both.
    assert not [one for one in numbers["differences"] if (one["entry"], one["against"]) == ("ncu", "clip")]
    alone = row(numbers["differences"], entry="ncu", against="reference", metric="mean_recall")
    assert (alone["n"], alone["over_seeds"], alone["difference"]) == (1, None, 0.75)
    assert row(numbers["summary"], entry="ncu", metric="mean_recall")["sd"] is None
    assert "| ncu | +75.0 [-] [+25.0, +100.0] † |" in (tmp_path / "out" / "comparison.md").read_text()


def test_a_comparison_of_which_nothing_is_complete(report, tmp_path):
    numbers = report(missing=tuple(f"{seed}/{name}" for seed in (0, 1) for name in ("reference", "clip", "ncu")))
    assert len(numbers["missing"]) == 6 and numbers["summary"] == numbers["differences"] == []
    assert "Nothing is complete." in (tmp_path / "out" / "comparison.md").read_text()


def test_plots_are_drawn_where_there_is_something_to_draw(report, tmp_path):
    report()
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == {"differences.png", "detection.png"}


def test_a_complete_run_of_other_settings_is_refused(report, small, make_units):
    units = importlib.import_module("compare_units")
    report()
    for unit in make_units():
        if not unit.weights:
            settings = units.run_settings(unit.arguments())
            (unit.folder / "run.json").write_text(json.dumps(settings))
    units.check_units(make_units())
    changed = small["fine_tuning"] | {"plan_weight": 0.5}
    with pytest.raises(InputError, match=r"seed 0, clip is complete, with other settings: plan_weight was 0.7, is 0.5"):
        units.check_units(make_units(fine_tuning=changed))
