"""Models side by side: the numbers of `scripts/evaluate.py` for the terminal, as Markdown, and as CSV.

All functions read the content of its `--json` file: `models`, `results` {model: {group: {set: numbers}}}, `paired`
(tests on the same items) and `published` (see `ncu_hf.reporting.published`). Differences are always to the first model.
A value that is missing or not finite is a dash, or an empty cell of the CSV.
"""

from __future__ import annotations

import csv
import io
import shutil
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ncu_hf.reporting.markdown import one_line, plain, table
from ncu_hf.reporting.published import published_beside, published_label, published_notes
from ncu_hf.reporting.results import finite, publishable
from ncu_hf.reporting.rows import DIRECTIONS, MOST_CLASSES_WITHOUT_TOP5, PROBE, RECALLS, RETRIEVAL, ZERO_SHOT

GROUPS = {"zero_shot": ZERO_SHOT, "retrieval": RETRIEVAL, "linear_probe": PROBE}
# A metric with a space lies one level deeper: "image_to_text R@1" is numbers["image_to_text"]["R@1"].
RANKED = tuple(f"{direction} {key}" for direction in DIRECTIONS for key in (*RECALLS, "median_rank"))
METRICS = {
    "zero_shot": ("accuracy", "mean_per_class", "top5"),
    "retrieval": (*RANKED, "mean_recall", "rsum"),
    "linear_probe": ("accuracy", "mean_per_class"),
}
COLUMNS = (
    *("group", "set", "metric", "model", "kind", "value", "low", "high", "n", "primary"),
    *("baseline", "test", "p_value", "hub_id", "revision", "hash", "source"),
)
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # what makes a spreadsheet run a cell
DASH = "-"
GAP = 2  # blanks between two columns
NARROWEST, WIDEST = 60, 160
HEAD, SHORTEST, LONGEST = 12, 12, 44  # widths: of a wrapped heading at least, of a label at least and at most
CONFUSIONS = 20

Column = tuple[str, list[str]]


@dataclass(frozen=True)
class Estimate:
    """One number, as far as it is known: a share in [0, 1], a rank, rsum, or a difference of two of them.

    `low` and `high` bound its 95 % interval; `p_value` and `test` are of a difference; `n` items were measured.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    test: str | None = None
    n: int | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of one set for all models; `primary` tells whether the set is judged by it.

    `values` and `differences` (to the first model) are by model, `published` by label of the published model. What is
    not known, or not finite, is missing.
    """

    group: str
    set: str
    metric: str
    primary: bool
    values: dict[str, Estimate]
    differences: dict[str, Estimate]
    published: dict[str, Estimate]

    @property
    def label(self) -> str:
        """The metric in words, with a star if it is the primary one."""
        return self.metric.replace("top5", "top 5").replace("_", " ") + " *" * self.primary

    @property
    def n(self) -> str:
        """Number of items; several where models differ."""
        return " / ".join(dict.fromkeys(f"{found.n:,}" for found in self.values.values() if found.n is not None))

    def text(self, estimate: Estimate | None, signed: bool = False) -> str:
        """Value, interval and p-value in the unit of the table."""
        if estimate is None:
            return DASH
        text = self._number(estimate.value, signed)
        if estimate.low is not None and estimate.high is not None:
            text += f" [{self._number(estimate.low, signed)}, {self._number(estimate.high, signed)}]"
        if estimate.p_value is not None:
            text += " p<0.001" if estimate.p_value < 0.001 else f" p={estimate.p_value:.3f}"
        return text

    def _number(self, value: float, signed: bool) -> str:
        sign = "+" if signed else ""
        unit = 1 if self.metric.endswith(("median_rank", "rsum")) else 100
        text = f"{unit * value:{sign}{'.4g' if self.metric.endswith('median_rank') else '.1f'}}"
        return text if float(text) else text.replace("-", sign)  # never minus zero


def one_measurement(group: str, numbers: dict) -> str:
    """The primary metric of one model on one set, in a few words for a log."""
    metric = _primary(group, [numbers])
    found = _estimate(numbers, metric)
    row = ComparisonRow(group, "", metric, False, {"": found} if found else {}, {}, {})
    return f"{row.label} {row.text(found)}, n {row.n or DASH}"


def model_names(comparison: dict) -> list[str]:
    """Names of the models in order, each once."""
    return list(dict.fromkeys(model["name"] for model in comparison["models"]))


def comparison_rows(comparison: dict) -> list[ComparisonRow]:
    """All measured sets, group by group, in the order of the first model that has them."""
    return [
        row for group in GROUPS for name in _sets(comparison, group) for row in _rows_of_set(comparison, group, name)
    ]


def _sets(comparison: dict, group: str) -> list[str]:
    return list(dict.fromkeys(name for model in model_names(comparison) for name in _group(comparison, model, group)))


def _group(comparison: dict, model: str, group: str) -> dict:
    return comparison.get("results", {}).get(model, {}).get(group) or {}


def _numbers(comparison: dict, group: str, name: str) -> dict[str, dict]:
    """Of one set, by model; empty for a model that has none."""
    return {model: _group(comparison, model, group).get(name) or {} for model in model_names(comparison)}


def _rows_of_set(comparison: dict, group: str, name: str) -> list[ComparisonRow]:
    numbers = _numbers(comparison, group, name)
    primary, rows = _primary(group, numbers.values()), []
    for metric in METRICS[group]:
        values = {model: found for model, part in numbers.items() if (found := _estimate(part, metric))}
        if values or metric == primary:
            differences = _differences(comparison, (group, name, metric), values)
            beside = published_beside(comparison.get("published") or [], group, name, metric)
            published = {label: Estimate(value) for label, value in beside.items()}
            rows.append(ComparisonRow(group, name, metric, metric == primary, values, differences, published))
    return rows


def _primary(group: str, numbers: Iterable[dict]) -> str:
    named = (part["primary"] for part in numbers if part.get("primary"))
    return "mean_recall" if group == "retrieval" else next(named, "accuracy")


def _estimate(numbers: dict, metric: str) -> Estimate | None:
    *way, key = metric.split(" ")
    part = numbers.get(way[0], {}) if way else numbers
    value = finite(part.get(key))
    if metric == "top5" and numbers.get("n_classes", 0) <= MOST_CLASSES_WITHOUT_TOP5:
        value = None  # 1 by definition
    interval = _interval(part.get("interval", {}).get(key))
    return None if value is None else Estimate(value, *interval, n=_count(numbers, metric))


def _interval(bounds: Any) -> tuple[float | None, float | None]:
    low, high = map(finite, bounds or (None, None))
    return (None, None) if low is None or high is None else (low, high)


def _count(numbers: dict, metric: str) -> int | None:
    if "n_images" not in numbers:
        return numbers.get("n")
    counts = {"image_to_text": numbers["n_images"], "text_to_image": numbers["n_captions"]}
    return counts.get(metric.split(" ")[0], sum(counts.values()))


def _differences(comparison: dict, key: tuple[str, str, str], values: dict[str, Estimate]) -> dict[str, Estimate]:
    """Of the paired tests where there is one, else of the two values."""
    first, *others = model_names(comparison)
    found = {}
    for entry in comparison.get("paired") or []:
        value = finite(entry["difference"])
        if (entry["group"], entry["set"], entry["metric"]) == key and entry["baseline"] == first and value is not None:
            tested = {"p_value": finite(entry.get("p_value")), "test": entry.get("test"), "n": entry.get("n")}
            found[entry["model"]] = Estimate(value, *_interval(entry.get("interval")), **tested)
    for model in values.keys() - found.keys() if first in values else ():
        found[model] = Estimate(values[model].value - values[first].value)
    return {model: found[model] for model in others if model in found}


def average_rows(rows: list[ComparisonRow], names: list[str]) -> list[ComparisonRow]:
    """Unweighted means over the sets of one group: of the primary metrics, and of what published numbers stand beside.

    Only sets that every model of the group has count, so that the means of two models are of the same sets.
    """
    primary = [row for row in rows if row.primary]
    beside = [row for row in rows if row.metric == "accuracy" and row.published]
    averages = [_average(primary, names, "primary metric")]
    averages += [_average(beside, names, "accuracy")] if beside != primary else []
    return [row for row in averages if row]


def _average(rows: list[ComparisonRow], names: list[str], metric: str) -> ComparisonRow | None:
    present = [name for name in names if any(name in row.values for row in rows)]
    common = [row for row in rows if present and all(name in row.values for name in present)]
    if len(common) < 2:
        return None
    values = {name: Estimate(fmean(row.values[name].value for row in common)) for name in present}
    first = values.get(names[0])
    differences = {name: Estimate(values[name].value - first.value) for name in present if first and name != names[0]}
    labels = [label for label in common[0].published if all(label in row.published for row in common)]
    published = {label: Estimate(fmean(row.published[label].value for row in common)) for label in labels}
    sets = f"average ({len(common)} sets)" if len(common) == len(rows) else f"average ({len(common)} of {len(rows)})"
    return ComparisonRow(rows[0].group, sets, metric, False, values, differences, published)


def comparison_table(comparison: dict, width: int | None = None) -> str:
    """Aligned text for a terminal: shares in percent with their 95 % interval, differences to the first model.

    Args:
        comparison (`dict`): Content of the `--json` file of `scripts/evaluate.py`.
        width (`int`, *optional*): Of a line, 60 to 160; by default that of the terminal. Columns are stacked to fit.

    Returns:
        `str`: without line break at the end; empty if nothing was measured.
    """
    width = _line_width(width)
    parts = []
    for title, (sets, metrics), columns in _tables(comparison):
        once = ["" if index and name == sets[1][index - 1] else name for index, name in enumerate(sets[1])]
        parts.append(_titled(title, [(sets[0], once), metrics], columns, width))
    if not parts:
        return ""
    return "\n\n".join([_filled(_models(comparison), width), *parts, _filled(_notes(comparison), width)])


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
        local = [row.set for row in beside if not any(map(_hub_id, _numbers(comparison, row.group, row.set).values()))]
        notes += published_notes(comparison["published"], {(row.group, row.set) for row in beside}, other, local)
    return notes


def _hub_id(numbers: dict) -> str | None:
    return numbers.get("data", {}).get("hub_id")


def _markdown(labels: list[Column], columns: list[Column]) -> str:
    labels = [(head, [plain(cell) for cell in cells]) for head, cells in labels]
    heads, cells = zip(*labels, *columns, strict=True)
    return table(list(map(plain, heads)), list(zip(*cells, strict=True)), left=len(labels))


def _note(line: str) -> str:
    """Escaped in pieces: a note with many names is longer than any one text may be."""
    return " ".join(map(plain, textwrap.wrap(line, 100)))


def _line_width(width: int | None) -> int:
    return min(max(width or shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def _titled(title: str, labels: list[Column], columns: list[Column], width: int) -> str:
    """Aligned lines of at most `width`; columns that do not fit beside the labels go into further blocks."""
    widest = max(map(_column_width, columns))
    longest = max(SHORTEST, min(LONGEST, width - widest - GAP - sum(GAP + _column_width(c) for c in labels[1:])))
    labels = [(labels[0][0], [shorten(cell, longest) for cell in labels[0][1]]), *labels[1:]]
    free = width + GAP - sum(_column_width(column) + GAP for column in labels)
    blocks, room = [[]], free
    for column in columns:
        room -= GAP + _column_width(column)
        if room < 0 and blocks[-1]:
            blocks.append([])
            room = free - GAP - _column_width(column)
        blocks[-1].append(column)
    heading = f"-- {shorten(one_line(title), width - 4)} ".ljust(width, "-")
    return heading + "\n" + "\n\n".join(_aligned(labels, block) for block in blocks)


def _filled(lines: list[str], width: int) -> str:
    return "\n".join(textwrap.fill(one_line(line, len(line)), width, subsequent_indent="  ") for line in lines)


def _head_lines(column: Column) -> list[str]:
    return textwrap.wrap(column[0], max([HEAD, *map(_width, column[1])])) or [""]


def _column_width(column: Column) -> int:
    return max(map(_width, [*_head_lines(column), *column[1]]))


def _aligned(labels: list[Column], columns: list[Column]) -> str:
    everything = [*labels, *columns]
    height = max(len(_head_lines(column)) for column in everything)
    padded = []
    for index, column in enumerate(everything):
        heads, width = _head_lines(column), _column_width(column)
        cells = [""] * (height - len(heads)) + heads + column[1]
        blanks = [" " * (width - _width(cell)) for cell in cells]
        padded.append([c + b if index < len(labels) else b + c for c, b in zip(cells, blanks, strict=True)])
    return "\n".join((" " * GAP).join(line).rstrip() for line in zip(*padded, strict=True))


def _width(text: str) -> int:
    """Cells of a terminal that a text takes: two for a wide letter, none for a combining one."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def shorten(text: str, width: int) -> str:
    """Text with its middle left out if it is too long: names differ at their ends."""
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[: len(text) // 2] + text[len(text) // 2 + 1 :]
    return f"{text[: len(text) // 2]}…{text[len(text) // 2 :]}"


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
    for model, numbers in _numbers(comparison, row.group, row.set).items():
        origin = {"hub_id": _hub_id(numbers), "revision": numbers.get("data", {}).get("revision")}
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


def per_class_tables(comparison: dict, width: int | None = None) -> str:
    """[`per_class_table`] of every zero-shot set that has one."""
    tables = (per_class_table(comparison, name, width) for name in _sets(comparison, "zero_shot"))
    return "\n\n".join(filter(None, tables))


def per_class_table(comparison: dict, name: str, width: int | None = None) -> str:
    """Accuracy of each class of a zero-shot set, and the pairs of classes that are confused most often by any model.

    A pair that is not among the most frequent ones of a model has a dash. Empty if no model has numbers of classes.
    """
    numbers, width = _numbers(comparison, "zero_shot", name), _line_width(width)
    kinds = {"accuracy per class (percent)": _class_columns, "most frequent confusions (images)": _confusion_columns}
    tables = [(f"{name}: {title}", *columns(numbers)) for title, columns in kinds.items()]
    return "\n\n".join(_titled(title, labels, found, width) for title, labels, found in tables if labels[0][1])


def _class_columns(numbers: dict[str, dict]) -> tuple[list[Column], list[Column]]:
    found: dict[tuple[int, str], dict[str, dict]] = {}  # by position too: two classes may have one name
    for model, part in numbers.items():
        for position, entry in enumerate(part.get("per_class") or []):
            found.setdefault((position, entry["class"]), {})[model] = entry
    columns = [("n", [str(next(iter(line.values()))["n"]) for line in found.values()])]
    for model in numbers:
        shares = [finite(line.get(model, {}).get("accuracy")) for line in found.values()]
        columns.append((one_line(model), [DASH if share is None else f"{100 * share:.1f}" for share in shares]))
    return [("class", [one_line(name) for _, name in found])], columns


def _confusion_columns(numbers: dict[str, dict]) -> tuple[list[Column], list[Column]]:
    found: dict[tuple[str, str], dict[str, int]] = {}
    for model, part in numbers.items():
        for entry in part.get("confusions") or []:
            found.setdefault((entry["true"], entry["predicted"]), {})[model] = entry["n"]
    pairs = sorted(found, key=lambda pair: -max(found[pair].values()))[:CONFUSIONS]
    columns = [(one_line(model), [str(found[pair].get(model, DASH)) for pair in pairs]) for model in numbers]
    return [("true -> predicted", [" -> ".join(map(one_line, pair)) for pair in pairs])], columns
