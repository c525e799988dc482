"""Folders of image files with captions beside them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ncu_hf.data.decoding import MAX_CAPTION_BYTES
from ncu_hf.data.files import fingerprint_files, fingerprint_text
from ncu_hf.data.records import PairSource, Record
from ncu_hf.data.shards.tar_samples import DEFAULT_CAPTION, DEFAULT_IMAGE, IMAGE_EXTENSIONS
from ncu_hf.data.sources.tables import Columns, check_csv, text_lines
from ncu_hf.errors import InputError

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"


class FolderSource(PairSource):
    """Images below a folder.

    Captions come from `metadata.csv` (comma, UTF-8) or `metadata.jsonl` in the folder itself, if there is one: its
    column `image_column`, else `file_name`, holds the path of the image relative to the folder, `caption_column` the
    caption; if it has no column of that name and the flag was not given, the only other column is taken. Without
    metadata every image file, at any depth, is a record, and its caption the file of the same name with ending `.txt`.

    Args:
        folder (`Path`): The folder.
        image_column, caption_column (`str`): Columns of the metadata.
        class_column (`str`, *optional*): Its column of the pairs' classes.
    """

    format = "folder"

    def __init__(self, folder: Path, image_column: str, caption_column: str, class_column: str | None = None):
        self.name, self.problems, self._folder = folder.name, [], folder
        metadata = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
        if len(metadata) > 1:
            raise InputError(f"{folder}: both {' and '.join(METADATA_FILES)} exist. Keep one.")
        if metadata:
            self._columns, self._rows = _read_metadata(metadata[0], image_column, caption_column, class_column)
            self.fingerprint = fingerprint_text(fingerprint_files(metadata), *self._columns.names)
        else:
            self._columns, self._rows = None, [{FILE_NAME: name} for name in _image_files(folder)]
            self._check_captions()
            sizes = [str((folder / row[FILE_NAME]).stat().st_size) for row in self._rows]
            self.fingerprint = fingerprint_text(*(row[FILE_NAME] for row in self._rows), *sizes)
        if not self._rows:
            raise InputError(f"{folder}: the data is empty (no image file, no row of metadata).")

    def _check_captions(self) -> None:
        if self._rows and not any((self._folder / row[FILE_NAME]).with_suffix(".txt").is_file() for row in self._rows):
            raise InputError(
                f"{self._folder}: {len(self._rows)} images, but neither {' nor '.join(METADATA_FILES)} nor a caption "
                "file like image.txt beside image.jpg."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = self._rows[index]
        if self._columns is not None:
            return self._columns.record(row, str(row[self._columns.image]), self._folder)
        path = self._folder / row[FILE_NAME]
        return Record(row[FILE_NAME], str(path), _read_caption(path.with_suffix(".txt")))

    def keys(self) -> list[str]:
        if self._columns is None:
            return [row[FILE_NAME] for row in self._rows]
        return [self._columns.key_of(row, str(row[self._columns.image])) for row in self._rows]

    def classes(self) -> list[str]:
        if self._columns is None or self._columns.classes is None:
            return super().classes()
        return [str(row[self._columns.classes]) for row in self._rows]

    def shard_of(self, index: int) -> str:
        return self.name


def _read_caption(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return file.read(MAX_CAPTION_BYTES + 1)


def _image_files(folder: Path) -> list[str]:
    """Paths of the image files, relative to the folder, sorted."""
    names: list[str] = []
    for parent, _, files in os.walk(folder):
        names += [
            os.path.relpath(os.path.join(parent, file), folder)
            for file in files
            if file.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and not file.startswith(".")
        ]
    return sorted(names)


def _read_metadata(
    path: Path, image_column: str, caption_column: str, class_column: str | None
) -> tuple[Columns, list[dict[str, Any]]]:
    """Columns in use and rows (those columns only)."""
    rows = list(_csv_rows(path) if path.suffix == ".csv" else _json_rows(path))
    existing = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        raise InputError(f"{path}: the data is empty (0 rows).")
    if image_column == DEFAULT_IMAGE and image_column not in existing:
        image_column = FILE_NAME
    others = [name for name in existing if name != image_column]
    if caption_column == DEFAULT_CAPTION and caption_column not in existing and len(others) == 1:
        caption_column = others[0]
    columns = Columns.find(str(path), existing, image_column, caption_column, class_column)
    return columns, [{name: row.get(name) for name in columns.names} for row in rows]


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    check_csv(path, ",")
    return csv.DictReader(text_lines(path))


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}). One object a line is expected.") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: not a JSON object, which is expected on every line.")
        yield row
