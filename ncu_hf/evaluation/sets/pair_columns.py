"""Which columns of a table of image-text pairs to read, and whether a csv file is one."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ncu_hf.data.shards.tar_samples import DEFAULT_CAPTION, DEFAULT_IMAGE
from ncu_hf.data.sources.folders import METADATA_FILES
from ncu_hf.data.sources.tables import text_lines, unescape
from ncu_hf.errors import InputError, one_line
from ncu_hf.evaluation.sets.labels_file import LABEL

# Columns that are looked for if none is named: as released for retrieval, then as for training.
_IMAGE_COLUMNS = ("image", DEFAULT_IMAGE, "jpg", "png")
_CAPTION_COLUMNS = ("caption", "captions", DEFAULT_CAPTION, "txt")


@dataclass(frozen=True)
class Pairs:
    """How image-text pairs are stored, as far as the user says.

    Attributes:
        image_column, caption_column (`str`, *optional*): Columns to read; whichever are there by default.
        image_root (`str` or `Path`, *optional*): Folder of relative image paths.
        delimiter (`str`, *optional*): Of a csv whose header it divides; of others a comma, of a tsv a tab.
        likely (`tuple[str, str]`, *optional*): Columns of image and caption that are looked for first, and that are
            read where columns cannot be looked up: those of the training data.
    """

    image_column: str | None = None
    caption_column: str | None = None
    image_root: str | Path | None = None
    delimiter: str | None = None
    likely: tuple[str, str] | None = None

    def options(self, path: Path | None) -> dict[str, Any]:
        """Arguments of `open_pairs` for a file or folder here, or for a data set of the Hub (`None`)."""
        table = None if path is None else _table(path)
        existing = None if table is None else self._table_columns(table)
        if existing is None:
            image, caption = self.likely or (DEFAULT_IMAGE, DEFAULT_CAPTION)
        else:
            image, caption = (next((name for name in names if name in existing), names[0]) for names in self._known)
        return {
            "image_column": self.image_column or image,
            "caption_column": self.caption_column or caption,
            "image_root": self.image_root,
            "delimiter": "," if table is None else self._delimiter(table),
        }

    def are_labels(self, path: Path) -> bool:
        """Whether a file is a csv of labels instead: it has a column of those, and none of captions."""
        columns = self._csv_columns(path) if _is_csv(path) else []
        captions = {self.caption_column} if self.caption_column else {self._known[1][0], "caption", DEFAULT_CAPTION}
        return LABEL in columns and not captions & set(columns)

    @property
    def _known(self) -> list[list[str]]:
        """Columns of images and of captions that are looked for, in this order."""
        likely = [[name] for name in self.likely] if self.likely else [[], []]
        return [[*first, *known] for first, known in zip(likely, (_IMAGE_COLUMNS, _CAPTION_COLUMNS), strict=True)]

    def _table_columns(self, path: Path) -> list[str] | None:
        """Columns of a csv or parquet file; `None` of anything else."""
        if _is_csv(path):
            return self._csv_columns(path)
        if path.suffix.lower() not in (".parquet", ".pq"):
            return None
        try:
            return pq.read_schema(path).names
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a readable parquet file ({one_line(error)}).") from error

    def _csv_columns(self, path: Path) -> list[str]:
        """Names in the header of a csv file; empty if it has none that can be read."""
        return _header(path, self._delimiter(path))

    def _delimiter(self, path: Path) -> str:
        if self.delimiter and _is_csv(path) and len(_header(path, delimiter := unescape(self.delimiter))) > 1:
            return delimiter
        return "\t" if path.suffix.lower() == ".tsv" else ","


def _table(path: Path) -> Path:
    """The first table of a folder; the path itself if it is a file, or a folder of images with their metadata."""
    if not path.is_dir() or any((path / name).is_file() for name in METADATA_FILES):
        return path
    tables = (file for kind in ("parquet", "pq", "csv", "tsv") for file in sorted(path.rglob(f"*.{kind}")))
    return next(tables, path)


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _header(path: Path, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader(text_lines(path), delimiter=delimiter), [])]
    except csv.Error:
        return []
