"""Accuracy of each class, and which classes are confused, for the terminal."""

from __future__ import annotations

from ncu_hf.reporting.comparison.grid import Column, line_width, titled
from ncu_hf.reporting.comparison.rows import DASH, numbers_of, sets_of
from ncu_hf.reporting.markdown import one_line
from ncu_hf.reporting.results import finite

CONFUSIONS = 20


def per_class_tables(comparison: dict, width: int | None = None) -> str:
    """[`per_class_table`] of every zero-shot set that has one."""
    tables = (per_class_table(comparison, name, width) for name in sets_of(comparison, "zero_shot"))
    return "\n\n".join(filter(None, tables))


def per_class_table(comparison: dict, name: str, width: int | None = None) -> str:
    """Accuracy of each class of a zero-shot set, and the pairs of classes that are confused most often by any model.

    A pair that is not among the most frequent ones of a model has a dash. Empty if no model has numbers of classes.
    """
    numbers, width = numbers_of(comparison, "zero_shot", name), line_width(width)
    kinds = {"accuracy per class (percent)": _class_columns, "most frequent confusions (images)": _confusion_columns}
    tables = [(f"{name}: {title}", *columns(numbers)) for title, columns in kinds.items()]
    return "\n\n".join(titled(title, labels, found, width) for title, labels, found in tables if labels[0][1])


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
