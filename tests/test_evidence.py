"""docs/evidence.md says what the numbers beside it say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "evidence.md").read_text(encoding="utf-8")
SECTIONS = {"scenes": "### Scenes", "emoji": "### Emoji", "photos": "### Photos"}
STUDIES = sorted(path.parent.name for path in DOCS.glob("evidence/*/comparison.json"))
ROW = re.compile(r"^\| `(\w+)` \| ([\d.]+) ± ([\d.]+) \|[^|]*\| ([\d.]+) ± ([\d.]+) \|", flags=re.MULTILINE)


def numbers(study: str) -> dict:
    return json.loads((DOCS / "evidence" / study / "comparison.json").read_text(encoding="utf-8"))


def rows(study: str) -> list[tuple[str, ...]]:
    section = TEXT.split(SECTIONS[study])[1].split("\n##")[0]
    return ROW.findall(section)


@pytest.mark.parametrize("study", SECTIONS)
def test_tables_are_those_of_the_json(study):
    summary = {
        (one["entry"], one["metric"]): (one["mean"], one["sd"])
        for one in numbers(study)["summary"]
        if one["noise_share"] == 0.4
    }
    found = rows(study)
    assert {"reference", "clip", "ncu", "clip_retained", "sdd"} <= {row[0] for row in found}
    for entry, *told in found:
        stored = (*summary[entry, "mean_recall"], *summary[entry, "zero_shot"])
        assert told == [f"{100 * value:.1f}" for value in stored], entry


@pytest.mark.parametrize("study", STUDIES)
def test_every_number_is_of_three_seeds_at_least(study):
    seeds: dict[tuple[float, str], set[int]] = {}
    for run in numbers(study)["runs"]:
        seeds.setdefault((run["noise_share"], run["entry"]), set()).add(run["seed"])
    assert {cell: len(found) for cell, found in seeds.items() if len(found) < 3} == {}


@pytest.mark.parametrize("study", STUDIES)
def test_numbers_name_no_machine(study):
    text = (DOCS / "evidence" / study / "comparison.json").read_text(encoding="utf-8")
    assert re.findall(r'"/[a-z]+/[^"]*"', text) == []


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", TEXT)
    assert targets
    assert [target for target in targets if not (DOCS / target).exists()] == []


def test_differences_by_kind_are_those_of_the_json():
    section = TEXT.split("## Over the kind of noise")[1].split("\n## ")[0]
    lines = dict(re.findall(r"^\| `(\w+)`:[^|]*\|(.*)\|$", section, flags=re.MULTILINE))
    assert list(lines) == ["shuffled", "hard", "partial", "generic"]
    for name, line in lines.items():
        _auroc, _clip, *cells = (cell.strip() for cell in line.split("|"))
        stored = {
            (one["entry"], one["metric"]): one["difference"]
            for one in numbers("scenes" if name == "shuffled" else f"scenes_{name}")["differences"]
            if one["noise_share"] == 0.4 and one["against"] == "clip"
        }
        wanted = [("ncu", "mean_recall"), ("ncu", "zero_shot")]
        wanted += [(entry, "mean_recall") for entry in ("clip_retained", "sdd", "clip_on_matched")]
        for cell, key in zip(cells, wanted, strict=True):
            assert cell.replace("*", "").split()[0] == f"{100 * stored[key]:+.1f}", (name, key)
