"""The numbers of a comparison, one row for each metric of each set, whatever shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ncu_hf.reporting.published import published_beside
from ncu_hf.reporting.results import finite
from ncu_hf.reporting.rows import DIRECTIONS, MOST_CLASSES_WITHOUT_TOP5, PROBE, RECALLS, RETRIEVAL, ZERO_SHOT

GROUPS = {"zero_shot": ZERO_SHOT, "retrieval": RETRIEVAL, "linear_probe": PROBE}
# A metric with a space lies one level deeper: "image_to_text R@1" is numbers["image_to_text"]["R@1"].
RANKED = tuple(f"{direction} {key}" for direction in DIRECTIONS for key in (*RECALLS, "median_rank"))
METRICS = {
    "zero_shot": ("accuracy", "mean_per_class", "top5"),
    "retrieval": (*RANKED, "mean_recall", "rsum"),
    "linear_probe": ("accuracy", "mean_per_class"),
}
DASH = "-"


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
        row for group in GROUPS for name in sets_of(comparison, group) for row in _rows_of_set(comparison, group, name)
    ]


def sets_of(comparison: dict, group: str) -> list[str]:
    return list(dict.fromkeys(name for model in model_names(comparison) for name in _group(comparison, model, group)))


def _group(comparison: dict, model: str, group: str) -> dict:
    return comparison.get("results", {}).get(model, {}).get(group) or {}


def numbers_of(comparison: dict, group: str, name: str) -> dict[str, dict]:
    """Of one set, by model; empty for a model that has none."""
    return {model: _group(comparison, model, group).get(name) or {} for model in model_names(comparison)}


def _rows_of_set(comparison: dict, group: str, name: str) -> list[ComparisonRow]:
    numbers = numbers_of(comparison, group, name)
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


def hub_id(numbers: dict) -> str | None:
    return numbers.get("data", {}).get("hub_id")
