"""Tables of pairs: csv and parquet files, and what `datasets` loads from the Hub, read through that library."""

from __future__ import annotations

import contextlib
import csv
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ncu_hf.data.files import fingerprint_files, fingerprint_text
from ncu_hf.data.network.http_client import HTTP_ERROR
from ncu_hf.data.records import PairSource, Record
from ncu_hf.errors import InputError, nearest, one_line

MISMATCHED_COLUMN = "mismatched"
KEY_COLUMNS = ("__key__", "key")
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# csv.reader refuses longer fields (its default is 131,072 characters).
_MAX_FIELD = 2**24
# A data set that is a script, which `datasets` does not run, is a RuntimeError.
LOAD_ERRORS = (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError, pa.ArrowException, HTTP_ERROR)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what. `key` and `mismatched` are None where the table has no such column.

    `classes` is the column of the pairs' classes, None where nobody asks for them.

    `decode_caption` turns a caption that is stored as token ids into text (see [`caption_decoder`]).
    """

    image: str
    caption: str
    key: str | None = None
    mismatched: str | None = None
    decode_caption: Callable[[Any], Any] | None = None
    classes: str | None = None

    @classmethod
    def find(cls, where: str, existing: list[str], image: str, caption: str, classes: str | None = None) -> Columns:
        """Check the names that the user gave against those that exist.

        Raises:
            InputError: names the missing column, the nearest existing one and all existing ones.
        """
        flags = {"--image_column": image, "--caption_column": caption, "--noise_class_column": classes}
        for flag, name in flags.items():
            if name is not None and name not in existing:
                raise InputError(
                    f"{where}: no column {name!r} ({flag}).{nearest(name, existing)} Columns: {', '.join(existing)}."
                )
        key = next((name for name in KEY_COLUMNS if name in existing), None)
        mismatched = MISMATCHED_COLUMN if MISMATCHED_COLUMN in existing else None
        return cls(image, caption, key, mismatched, classes=classes)

    @property
    def names(self) -> list[str]:
        """`list[str]`: all columns that are read, each once."""
        named = (self.image, self.caption, self.key, self.mismatched, self.classes)
        return list(dict.fromkeys(name for name in named if name))

    def text(self, caption: Any) -> Any:
        """A stored caption as text."""
        return caption if self.decode_caption is None else self.decode_caption(caption)

    def key_of(self, row: Mapping[str, Any], default_key: str) -> str:
        """Key of one row."""
        key = row[self.key] if self.key else None
        return default_key if key is None else str(key)

    def record(self, row: Mapping[str, Any], default_key: str, image_root: Path | None) -> Record:
        """Record of one row. Relative image paths are taken from `image_root`."""
        return Record(
            key=self.key_of(row, default_key),
            image=_stored_image(row[self.image], image_root),
            caption=self.text(row[self.caption]),
            mismatched=parse_truth(row[self.mismatched]) if self.mismatched else None,
        )


def _stored_image(value: Any, image_root: Path | None) -> bytes | str | None:
    """Bytes or path of an image cell: raw bytes, a path, or a struct of both (bytes first)."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value and image_root is not None:
        return os.path.join(image_root, value)
    return value


def parse_truth(value: Any) -> bool | None:
    """Ground truth of a cell of the column `mismatched`: true/false, 1/0, or None (unknown) for anything else."""
    return _TRUTH.get(str(value).strip().lower())


class TableSource(PairSource):
    """Rows of a map-style `datasets.Dataset` (memory-mapped, random access).

    Args:
        table (`datasets.Dataset`): With the columns of `columns`, images not decoded.
        columns (`Columns`): Which column holds what.
        shards (`list[tuple[str, int]]`): (file name, rows) of the files, in the order of the rows.
        name, format, fingerprint, revision: See [`PairSource`].
        image_root (`Path`, *optional*): Folder of relative image paths.

    Raises:
        InputError: the table is empty.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        columns: Columns,
        shards: list[tuple[str, int]],
        *,
        name: str,
        format: str,
        fingerprint: str,
        revision: str | None = None,
        image_root: Path | None = None,
    ):
        self._table, self._columns, self._image_root = table, columns, image_root
        self._shards = [shard for shard, _ in shards]
        self._ends = list(accumulate(rows for _, rows in shards))
        self.name, self.format, self.fingerprint, self.revision = name, format, fingerprint, revision
        self.problems = []
        if not len(table):
            raise InputError(f"{name}: the data is empty (0 rows).")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        return self._columns.record(self._table[index], str(index), self._image_root)

    def shard_of(self, index: int) -> str:
        return self._shards[bisect_right(self._ends, index)]

    def captions(self) -> list[Any]:
        return [self._columns.text(caption) for caption in self._table[self._columns.caption][:]]

    def keys(self) -> list[str]:
        stored = self._table[self._columns.key][:] if self._columns.key else [None] * len(self)
        return [str(i) if key is None else str(key) for i, key in enumerate(stored)]

    def classes(self) -> list[str]:
        if self._columns.classes is None:
            return super().classes()
        return [str(value) for value in self._table[self._columns.classes][:]]

    def decode_captions(self, decode: Callable[[Any], Any]) -> None:
        """Read captions through `decode` from now on."""
        self._columns = replace(self._columns, decode_caption=decode)


@dataclass(frozen=True)
class CsvShape:
    """Header and number of data rows of a csv file that has been read once."""

    columns: list[str]
    rows: int


def check_csv(path: Path, delimiter: str) -> CsvShape:
    """Read a csv file once and check what the fast reader would mend or mangle silently.

    Raises:
        InputError: names file and line, for text that is not UTF-8, rows with too many or too few fields, an
            unfinished quote, an empty file, two columns of one name.
    """
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(text_lines(path), delimiter=delimiter, strict=True)
    rows = 0
    header: list[str] | None = None
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue  # blank line: pandas skips it too
            if header is None:
                header = _header(path, row)
                continue
            rows += 1
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}. "
                    'Put fields that contain the delimiter in "quotes", or give the right --delimiter.'
                )
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}. Quote fields as CSV (RFC 4180).") from error
    if header is None:
        raise InputError(f"{path}: the file is empty.")
    return CsvShape(header, rows)


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file (with or without byte order mark), line ends kept."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not UTF-8 (byte {line[error.start]:#04x}). Convert it, e.g. with "
                    "`iconv -f latin1 -t utf-8`."
                ) from error


def unescape(delimiter: str) -> str:
    r"""A delimiter as it is meant; a tab is hard to type in a shell: `\t` is one.

    Raises:
        InputError: not a single character.
    """
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(f"--delimiter: {delimiter!r} is not a single character. Typical: ',' or '\\t' or ';'.")
    return delimiter


def _header(path: Path, row: list[str]) -> list[str]:
    names = [name or f"unnamed_{i}" for i, name in enumerate(row)]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"{path}: more than one column is called {doubled[0]!r}. Rename one.")
    return names


def csv_options(path: Path, delimiter: str, columns: list[str]) -> dict[str, Any]:
    """Arguments of `load_dataset("csv")` that keep every cell as the text that the file holds.

    By default pandas would turn the captions "None" and "NA" into missing values, and "007" into 7.
    """
    features = datasets.Features({name: datasets.Value("string") for name in columns})
    return {
        "path": "csv",
        "data_files": [str(path)],
        "sep": delimiter,
        "names": columns,
        "header": 0,
        "features": features,
        "na_filter": False,
    }


def open_csv(
    path: Path,
    image_column: str,
    caption_column: str,
    delimiter: str,
    image_root: Path | None,
    class_column: str | None = None,
) -> TableSource:
    """Open one csv file with a header line."""
    shape = check_csv(path, delimiter)
    columns = find_csv_columns(path, shape, image_column, caption_column, delimiter, class_column)
    if not shape.rows:
        raise InputError(f"{path}: the data is empty (a header and 0 rows).")
    table = load(**csv_options(path, delimiter, shape.columns), split="train").select_columns(columns.names)
    if len(table) != shape.rows:
        raise InputError(f"{path}: {shape.rows} rows, but pandas reads {len(table)}. Check quotes and line ends.")
    return TableSource(
        table,
        columns,
        [(path.name, shape.rows)],
        name=path.name,
        format="csv",
        fingerprint=fingerprint_text(fingerprint_files([path]), *columns.names),
        image_root=image_root or path.parent,
    )


def find_csv_columns(
    path: Path, shape: CsvShape, image: str, caption: str, delimiter: str, classes: str | None = None
) -> Columns:
    """Like `Columns.find`, with a hint if the header looks like one of another delimiter."""
    other = next((d for d in ("\t", ";", ",", "|") if d != delimiter and d in shape.columns[0]), None)
    if len(shape.columns) == 1 and other is not None:
        raise InputError(
            f"{path}: the header has one column with delimiter {delimiter!r}, but contains {other!r}. "
            f"Give --delimiter {other!r}."
        )
    return Columns.find(str(path), shape.columns, image, caption, classes)


def parquet_columns(
    paths: list[Path], image_column: str, caption_column: str, class_column: str | None = None
) -> tuple[Columns, list[tuple[Path, int]]]:
    """Columns, and (file, rows) of the files that are not empty (`datasets` fails on those), from the footers alone."""
    files: list[tuple[Path, int]] = []
    columns: Columns | None = None
    for path in paths:
        try:
            footer = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a readable parquet file ({one_line(error)}).") from error
        existing = footer.schema.to_arrow_schema().names
        found = Columns.find(str(path), existing, image_column, caption_column, class_column)
        if columns is not None and found != columns:
            raise InputError(f"{path}: columns {found.names} are used, but {columns.names} in {paths[0]}.")
        columns = found
        if footer.num_rows:
            files.append((path, footer.num_rows))
    if columns is None or not files:
        raise InputError(f"{paths[0]}: the data is empty (0 rows).")
    return columns, files


def open_parquet(
    paths: list[Path],
    name: str,
    image_column: str,
    caption_column: str,
    image_root: Path | None,
    class_column: str | None = None,
) -> TableSource:
    """Open parquet files as one table, in the order of their names."""
    columns, files = parquet_columns(paths, image_column, caption_column, class_column)
    names = [str(path) for path, _ in files]
    table = undecoded(load(path="parquet", data_files=names, columns=columns.names, split="train"), columns.image)
    return TableSource(
        table,
        columns,
        [(path.name, rows) for path, rows in files],
        name=name,
        format="parquet",
        fingerprint=fingerprint_text(fingerprint_files(paths), *columns.names),
        image_root=image_root or paths[0].parent,
    )


def load(**options: Any) -> Any:
    """`datasets.load_dataset`, silent, with its errors as one line."""
    with reading(", ".join(Path(file).name for file in options.get("data_files", [])[:3]) or options["path"]):
        return datasets.load_dataset(**options)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Calls of `datasets`, silent, with their errors as one line that names `what`.

    Raises:
        InputError: `datasets` cannot read it.
    """
    try:
        with _no_progress_bars():
            yield
    except LOAD_ERRORS as error:
        raise InputError(f"{what}: `datasets` cannot read the data: {root_cause(error)}") from error


def undecoded(table: Any, image_column: str) -> Any:
    """The same data set with images as stored. Decoding is ours: in `datasets` one bad image ends the iteration."""
    if table.features is not None and isinstance(table.features[image_column], datasets.Image):
        return table.cast_column(image_column, datasets.Image(decode=False))
    return table


def root_cause(error: BaseException) -> str:
    """The error behind the errors, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
