"""The files of a comparison: JSON, Markdown, CSV, plots; from whatever is complete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compare_collect import collect, differences, interpolations, summarise
from compare_config import Comparison
from compare_plots import draw_plots
from compare_tables import comparison_csv, comparison_markdown
from compare_units import Unit
from study_writer import StudyFiles

from ncu_hf.checkpoint import write_json
from ncu_hf.environment import command, environment, machine

PLOTS = "plots"


def write_report(comparison: Comparison, study: StudyFiles, units: list[Unit], output: Path) -> None:
    """Write `comparison.json`, `.md`, `.csv` and `plots/` below `output`."""
    numbers = report(comparison, study, units)
    write_json(output / "comparison.json", numbers)
    plots = draw_plots(numbers, output / PLOTS)
    names = {name: f"{PLOTS}/{path.name}" for name, path in plots.items()}
    (output / "comparison.md").write_text(comparison_markdown(numbers, names), encoding="utf-8")
    (output / "comparison.csv").write_text(comparison_csv(numbers), encoding="utf-8", newline="")


def report(comparison: Comparison, study: StudyFiles, units: list[Unit]) -> dict[str, Any]:
    """All numbers, as in the JSON file."""
    records = collect(units)
    return {
        "study": {"name": study.folder.name, **study.description},
        "comparison": described(comparison),
        "missing": [unit.name for unit in units if not unit.complete],
        "runs": [record.to_json() for record in records],
        "summary": summarise(comparison, records),
        "differences": differences(comparison, records),
        "interpolation": interpolations(units),
        "machines": _distinct(record.results["machine"] for record in records if "machine" in record.results),
        "reported_on": machine() | environment(),
        "command": command(),
    }


def _distinct(machines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the runs were trained on, each once: a comparison may go on elsewhere, and be reported elsewhere."""
    found: list[dict[str, Any]] = []
    found += (one for one in machines if one not in found)
    return found


def described(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values, as it was read."""
    content = asdict(comparison)
    content["study"] = None if comparison.study is None else comparison.study.name
    content["parts"] = {f"{share:g}": entry.name for share, entry in comparison.parts().items()}
    return content
