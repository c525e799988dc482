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
from ncu_hf.data.sources.tables import text_lines
from ncu_hf.errors import InputError, one_line
from ncu_hf.evaluation.sets.labels_file import LABEL

# Columns that are looked for if none is named: as released for retrieval, then as for training.
_IMAGE_COLUMNS = ("image", DEFAULT_IMAGE, "jpg", "png")
_CAPTION_COLUMNS = ("caption", "captions", DEFAULT_CAPTION, "txt")


@dataclass(frozen=True)
class Pairs:
    """How image-text pairs are stored, as far as the user says."""

    image_column: str | None = None
    caption_column: str | None = None
    image_root: str | Path | None = None

    def options(self, path: Path) -> dict[str, Any]:
        """Arguments of `open_pairs`: columns that are given, else those that are there."""
        image, caption, path = DEFAULT_IMAGE, DEFAULT_CAPTION, _table(path)
        if (existing := _table_columns(path)) is not None:
            image = next((name for name in _IMAGE_COLUMNS if name in existing), _IMAGE_COLUMNS[0])
            caption = next((name for name in _CAPTION_COLUMNS if name in existing), _CAPTION_COLUMNS[0])
        return {
            "image_column": self.image_column or image,
            "caption_column": self.caption_column or caption,
            "image_root": self.image_root,
            "delimiter": _delimiter(path),
        }

    def are_labels(self, path: Path) -> bool:
        """Whether a file is a csv of labels instead: it has a column of those, and none of captions."""
        columns = _csv_columns(path) if _is_csv(path) else []
        return LABEL in columns and (self.caption_column or _CAPTION_COLUMNS[0]) not in columns


def _table(path: Path) -> Path:
    """The first table of a folder; the path itself if it is a file, or a folder of images with their metadata."""
    if not path.is_dir() or any((path / name).is_file() for name in METADATA_FILES):
        return path
    tables = (file for kind in ("parquet", "pq", "csv", "tsv") for file in sorted(path.rglob(f"*.{kind}")))
    return next(tables, path)


def _table_columns(path: Path) -> list[str] | None:
    """Columns of a csv or parquet file; `None` of anything else."""
    if _is_csv(path):
        return _csv_columns(path)
    if path.suffix.lower() not in (".parquet", ".pq"):
        return None
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({one_line(error)}).") from error


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _csv_columns(path: Path) -> list[str]:
    """Names in the header of a csv file; empty if it has none that can be read."""
    try:
        return [name.strip() for name in next(csv.reader(text_lines(path), delimiter=_delimiter(path)), [])]
    except csv.Error:
        return []


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","
