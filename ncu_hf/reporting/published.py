"""Numbers that the paper prints (Tables 1 to 5): facts to stand beside our own, never measured by us.

`published.csv` holds one printed number a line, in percent as printed. Sets and metrics are named as in our numbers.
The authors' code reports plain accuracy for every set, so all top-1 numbers are `accuracy`, also of sets whose primary
metric is the mean per class. The names of the four sets of Table 3 are not legible in the copy that was transcribed:
they are called `column 1` to `column 4` and are never set beside a measured set.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ncu_hf.errors import InputError, nearest

FILE = Path(__file__).with_name("published.csv")
PAPER = "Han et al. 2025, arXiv:2507.03434"
# Not names of data sets: the mean of Table 1 (of its first 15 columns, without ImageNet-1K), the columns of Table 3.
NOT_A_SET = ("average", "column 1", "column 2", "column 3", "column 4")
KEYS = ("group", "set", "metric", "training_data", "architecture", "method")


def published_numbers(selector: str) -> list[dict[str, Any]]:
    """The paper's numbers, all or those of one kind of model.

    Args:
        selector (`str`): `"paper"`, `"paper/cc3m"` or `"paper/cc3m/vit-b-16"`: training data and architecture, in any
            case, with or without their punctuation (`ViT-B/16` and `vit-b-16` are the same).

    Returns:
        `list[dict]`: `group`, `set`, `metric`, `training_data`, `architecture`, `method`, `value` in [0, 1], `table`
        (its number in the paper) and `source`. A number that several tables print is there once for each of them.

    Raises:
        InputError: no number is selected; names the nearest selector and all selectors.
    """
    numbers = _all_numbers()
    wanted = _plain(selector)
    found = [entry for entry in numbers if wanted in map(_plain, _selectors(entry))]
    if not found:
        known = list(dict.fromkeys(name for entry in numbers for name in _selectors(entry)))
        hint = nearest(selector.lower(), known)
        raise InputError(f"Published numbers: unknown selector {selector!r}.{hint} Known: {', '.join(known)}.")
    return [dict(entry) for entry in found]


def published_label(entry: dict[str, Any]) -> str:
    """Name of the model that a number belongs to: method, training data, architecture."""
    return " ".join(str(entry[key]) for key in ("method", "training_data", "architecture"))


def published_beside(entries: Iterable[dict[str, Any]], group: str, name: str, metric: str) -> dict[str, float]:
    """The published values of one metric of a measured set, by [`published_label`]."""
    if name in NOT_A_SET:
        return {}
    found = (entry for entry in entries if (entry["group"], entry["set"], entry["metric"]) == (group, name, metric))
    return {published_label(entry): entry["value"] for entry in found}


def published_notes(
    entries: Iterable[dict[str, Any]],
    shown: set[tuple[str, str]],
    other_primary: Iterable[str],
    not_from_hub: Iterable[str],
) -> list[str]:
    """What a reader of a table with published columns must know.

    Args:
        entries (`Iterable[dict]`): As from [`published_numbers`].
        shown (`set[tuple[str, str]]`): Group and set of those that the table shows.
        other_primary (`Iterable[str]`): Measured sets whose primary metric is not accuracy.
        not_from_hub (`Iterable[str]`): Measured sets that need not be the ones of the paper.
    """
    cited = (entry.get("source") or "a publication" for entry in entries if (entry["group"], entry["set"]) in shown)
    sources = "; ".join(dict.fromkeys(cited))
    sources = sources.replace(f"; {PAPER}, Table", ", Table")  # the citation once, then the other tables
    notes = [f"(published): printed in {sources}; not measured here. Matched to our sets by name."]
    if others := ", ".join(dict.fromkeys(other_primary)):
        notes.append(
            "The published top-1 numbers are plain accuracy for every set, so they stand beside accuracy, not beside"
            f" the primary metric, of: {others}."
        )
    if local := ", ".join(dict.fromkeys(not_from_hub)):
        notes.append(f"Not from the Hub, so perhaps not the data of the published numbers: {local}.")
    return notes


@cache
def _all_numbers() -> tuple[dict[str, Any], ...]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(_entry(line) for line in csv.DictReader(file))


def _entry(line: dict[str, str]) -> dict[str, Any]:
    table = int(line["table"])
    # Printed with at most two decimals: rounding gives 0.071 for 7.1, not 0.07099999999999999.
    value = round(float(line["percent"]) / 100, 6)
    return {key: line[key] for key in KEYS} | {"value": value, "table": table, "source": f"{PAPER}, Table {table}"}


def _selectors(entry: dict[str, Any]) -> tuple[str, str, str]:
    data = f"paper/{entry['training_data'].lower()}"
    return "paper", data, f"{data}/{entry['architecture'].lower().replace('/', '-')}"


def _plain(selector: str) -> str:
    return re.sub(r"[^a-z0-9]", "", selector.lower())
