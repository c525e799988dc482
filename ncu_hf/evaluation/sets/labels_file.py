"""`labels.csv`: which class each image is of, and which split it belongs to."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ncu_hf.data.sources.tables import check_csv, text_lines
from ncu_hf.errors import InputError, nearest

LABELS_FILE = "labels.csv"
IMAGE, LABEL, SPLIT = "image", "label", "split"
DEFAULT_SPLIT = "test"
# A column of integers with a gap is written by pandas as 3.0.
_INTEGER = re.compile(r"([+-]?\d{1,18})(?:\.0*)?")


class Row(NamedTuple):
    """A row as it is written; `line` is its last line in the file."""

    line: int
    image: str
    label: str
    split: str


@dataclass(frozen=True)
class LabelsFile:
    """Rows of a `labels.csv`, by split.

    Attributes:
        path (`Path`): The file.
        rows (`dict[str, list[Row]]`): By split, in small letters; all of them under `"test"` without such a column.
        integers (`bool`): Whether every label is an index; otherwise all are names of classes.
    """

    path: Path
    rows: dict[str, list[Row]]
    integers: bool

    @classmethod
    def read(cls, path: Path) -> LabelsFile:
        """Read the whole file.

        Raises:
            InputError: no such column, no rows, not a UTF-8 csv.
        """
        rows: dict[str, list[Row]] = {}
        integers = True
        for row in _rows(path):
            rows.setdefault(row.split, []).append(row)
            integers = integers and (not row.label or _INTEGER.fullmatch(row.label) is not None)
        if not rows:
            raise InputError(f"{path}: the data is empty (a header and 0 rows).")
        return cls(path, rows, integers)

    def labels(self, splits: list[str], classes: list[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Index of the class of each image, and how many rows are of no use, by reason.

        Args:
            splits (`list[str]`): Of the rows to take.
            classes (`list[str]`): C class names.

        Raises:
            InputError: a label is no class, or an image has two labels; the message names the line.
        """
        rows = [row for split in splits for row in self.rows[split]]
        usable = [row for row in rows if row.image and row.label]
        values = self._indices(usable, classes) if self.integers else self._named(usable, classes)
        found: dict[str, int] = {}
        for row, value in zip(usable, values, strict=True):
            if found.setdefault(os.path.normpath(row.image), value) != value:
                first = found[os.path.normpath(row.image)]
                raise InputError(f"{self._place(row)}: {row.image!r} has label {value}, but {first} before. Keep one.")
        skipped = {
            "missing_image": sum(not row.image for row in rows),
            "missing_label": sum(bool(row.image) and not row.label for row in rows),
            "duplicate_row": len(usable) - len(found),
        }
        return found, {reason: count for reason, count in skipped.items() if count}

    def _indices(self, rows: list[Row], classes: list[str]) -> list[int]:
        values = [int(_INTEGER.fullmatch(row.label)[1]) for row in rows]
        check_range(values, len(classes), lambda number: self._place(rows[number]))
        return values

    def _named(self, rows: list[Row], classes: list[str]) -> list[int]:
        index: dict[str, int] = {}
        for number, name in enumerate(classes):
            if index.setdefault(name.strip(), number) != number:
                raise InputError(f"{self.path}: {name!r} is the name of two classes. Write labels as integers from 0.")
        for row in rows:
            if row.label not in index:
                hint = nearest(row.label, index)
                raise InputError(f"{self._place(row)}: no class is called {row.label!r:.80}.{hint}")
        return [index[row.label] for row in rows]

    def _place(self, row: Row) -> str:
        return f"{self.path}, line {row.line}"


def check_range(labels: Sequence[int], classes: int, place: Callable[[int], str]) -> None:
    """Check that labels are 0 to `classes` - 1; `place(i)` says where label i is written.

    Raises:
        InputError: one is not; says so if they seem to start at 1.
    """
    for number, label in enumerate(labels):
        if not 0 <= label < classes:
            starts_at_1 = min(labels) == 1 and max(labels) == classes
            hint = " Labels seem to start at 1 here: subtract 1 from each." if starts_at_1 else ""
            raise InputError(f"{place(number)}: label {label}, but the {classes} classes are 0 to {classes - 1}.{hint}")


def _rows(path: Path) -> Iterator[Row]:
    columns = [name.strip() for name in check_csv(path, ",").columns]
    for name in (IMAGE, LABEL):
        if name not in columns:
            raise InputError(f"{path}: no column {name!r}.{nearest(name, columns)} Columns: {', '.join(columns)}.")
    places = [columns.index(name) if name in columns else None for name in (IMAGE, LABEL, SPLIT)]
    reader = csv.reader(text_lines(path), strict=True)
    header = True
    for cells in reader:
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue
        if header:
            header = False
            continue
        image, label, split = (DEFAULT_SPLIT if place is None else cells[place].strip() for place in places)
        yield Row(reader.line_num, image, label, split.lower())
