"""A comparison as tables, for the terminal and as Markdown."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable

from ncu_hf.reporting.comparison.grid import Column, filled, line_width, titled
from ncu_hf.reporting.comparison.rows import (
    DASH,
    GROUPS,
    ComparisonRow,
    average_rows,
    comparison_rows,
    hub_id,
    model_names,
    numbers_of,
)
from ncu_hf.reporting.markdown import one_line, plain, table
from ncu_hf.reporting.published import published_notes
from ncu_hf.reporting.results import publishable


def comparison_table(comparison: dict, width: int | None = None) -> str:
    """Aligned text for a terminal: shares in percent with their 95 % interval, differences to the first model.

    Args:
        comparison (`dict`): Content of the `--json` file of `scripts/evaluate.py`.
        width (`int`, *optional*): Of a line, 60 to 160; by default that of the terminal. Columns are stacked to fit.

    Returns:
        `str`: without line break at the end; empty if nothing was measured.
    """
    width = line_width(width)
    parts = []
    for title, (sets, metrics), columns in _tables(comparison):
        once = ["" if index and name == sets[1][index - 1] else name for index, name in enumerate(sets[1])]
        parts.append(titled(title, [(sets[0], once), metrics], columns, width))
    if not parts:
        return ""
    return "\n\n".join([filled(_models(comparison), width), *parts, filled(_notes(comparison), width)])


def comparison_markdown(comparison: dict) -> str:
    """The same as Markdown: the models, one table a group, notes. Folders of this machine are left out."""
    tables = list(_tables(comparison))
    if not tables:
        return ""
    parts = [f"### {title}\n\n{_markdown(labels, columns)}" for title, labels, columns in tables]
    models, notes = (
        "\n".join(f"- {_note(line)}" for line in part) for part in (_models(comparison), _notes(comparison))
    )
    return "\n\n".join([models, *parts, notes])


def _tables(comparison: dict) -> Iterable[tuple[str, list[Column], list[Column]]]:
    """Title, the two columns that name a row, and the columns of numbers of each group that was measured."""
    everything, names = comparison_rows(comparison), model_names(comparison)
    for group, title in GROUPS.items():
        if rows := [row for row in everything if row.group == group]:
            rows += average_rows(rows, names)
            labels = [("set", [one_line(row.set) for row in rows]), ("metric", [row.label for row in rows])]
            yield title, labels, _columns(rows, names)


def _columns(rows: list[ComparisonRow], names: list[str]) -> list[Column]:
    labels = dict.fromkeys(label for row in rows for label in row.published)
    heads = [(name, "values", name) for name in names]
    heads += [(f"{name} minus {names[0]}", "differences", name) for name in names[1:]]
    heads += [(f"{label} (published)", "published", label) for label in labels]
    columns = [
        (one_line(head), [row.text(getattr(row, part).get(key), part == "differences") for row in rows])
        for head, part, key in heads
    ]
    return [*columns, ("n", [row.n for row in rows])]


def _models(comparison: dict) -> list[str]:
    """Name and origin of each model; a folder keeps its last part only."""
    lines, shown = [], {"source": "", "revision": "revision ", "weights_sha256": "weights sha256 "}
    for model in map(publishable, comparison["models"]):
        words = [prefix + str(model[key])[: 12 if prefix else None] for key, prefix in shown.items() if key in model]
        lines.append(f"{model['name']}: {', '.join(words) or DASH}")
    return lines


def _notes(comparison: dict) -> list[str]:
    rows = comparison_rows(comparison)
    notes = ["Shares in percent with 95 % intervals. * is the primary metric of a set. Averages are unweighted."]
    if any(row.metric.endswith("median_rank") for row in rows):
        notes.append("Of a median rank, lower is better. rsum is the sum of the six recalls, 0 to 600.")
    differences = [estimate for row in rows for estimate in row.differences.values()]
    if any(estimate.p_value is not None for estimate in differences):
        notes.append("p-values are of paired tests on the same items, not corrected for the number of comparisons.")
    if any(estimate.low is None for estimate in differences):
        notes.append("A difference without an interval is that of the two values; no paired test was made.")
    for name, times in Counter(model["name"] for model in comparison["models"]).items():
        if times > 1:
            notes.append(f"{times} models are called {name}: there is one column for the name.")
    beside = [row for row in rows if row.published]
    if beside:
        other = [row.set for row in beside if row.metric == "accuracy" and not row.primary]
        local = [row.set for row in beside if not any(map(hub_id, numbers_of(comparison, row.group, row.set).values()))]
        notes += published_notes(comparison["published"], {(row.group, row.set) for row in beside}, other, local)
    return notes


def _markdown(labels: list[Column], columns: list[Column]) -> str:
    labels = [(head, [plain(cell) for cell in cells]) for head, cells in labels]
    heads, cells = zip(*labels, *columns, strict=True)
    return table(list(map(plain, heads)), list(zip(*cells, strict=True)), left=len(labels))


def _note(line: str) -> str:
    """Escaped in pieces: a note with many names is longer than any one text may be."""
    return " ".join(map(plain, textwrap.wrap(line, 100)))
