"""A comparison as CSV, one number a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict

from ncu_hf.reporting.comparison.rows import ComparisonRow, comparison_rows, hub_id, model_names, numbers_of
from ncu_hf.reporting.markdown import one_line
from ncu_hf.reporting.published import published_label

COLUMNS = (
    *("group", "set", "metric", "model", "kind", "value", "low", "high", "n", "primary"),
    *("baseline", "test", "p_value", "hub_id", "revision", "hash", "source"),
)
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # what makes a spreadsheet run a cell


def comparison_csv(comparison: dict) -> str:
    """One line for each number: measured, published, or a difference to `baseline`; shares in [0, 1], as measured.

    Text that a spreadsheet would run starts with an apostrophe. Published numbers of all sets are there.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    lines = [line for row in comparison_rows(comparison) for line in _csv_lines(comparison, row)]
    for entry in comparison.get("published") or []:
        line = {key: entry[key] for key in ("group", "set", "metric", "value")} | {"source": entry.get("source")}
        lines.append(line | {"model": published_label(entry), "kind": "published"})
    writer.writerows({key: _guarded(value) for key, value in line.items()} for line in lines)
    return file.getvalue()


def _csv_lines(comparison: dict, row: ComparisonRow) -> Iterable[dict]:
    shared = {"group": row.group, "set": row.set, "metric": row.metric, "primary": str(row.primary).lower()}
    baseline = model_names(comparison)[0]
    for model, numbers in numbers_of(comparison, row.group, row.set).items():
        origin = {"hub_id": hub_id(numbers), "revision": numbers.get("data", {}).get("revision")}
        line = shared | origin | {"model": model, "hash": numbers.get("hash")}
        value, difference = row.values.get(model), row.differences.get(model)
        yield line | {"kind": "measured"} | (asdict(value) if value else {})
        if difference:
            yield line | {"kind": "difference", "baseline": baseline} | asdict(difference)


def _guarded(value: object) -> object:
    if isinstance(value, str):
        value = one_line(value, len(value))  # a carriage return would end the row
        return f"'{value}" if value.startswith(FORMULA) else value
    return value
