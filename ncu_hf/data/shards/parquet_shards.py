"""A parquet file of pairs, here or on a server, read row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from ncu_hf.data.files import Location
from ncu_hf.data.records import Record, Skipped
from ncu_hf.data.shards.base import BEGINNING, Entry, FileShard, StoredRow
from ncu_hf.data.sources.tables import Columns
from ncu_hf.errors import InputError, TrainingStopped

# Rows that are decoded at once: enough to spread the cost of a call, few enough to hold encoded images of.
_ROWS = 64
# Arrow reads the columns of a row group in turns. At this size captions come in one piece, so that a server is seldom
# asked to go back to the images.
_BUFFER_BYTES = 2**20
# What pyarrow raises on damaged files. Errors of the handle come through pyarrow as they are.
_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError)
_OF_HANDLE = (InputError, TrainingStopped)


class ParquetShard(FileShard):
    """One parquet file. Reading starts at the row group of the first row; an `Entry` holds no offset.

    Args:
        location (`Location`): The file.
        columns (`Columns`): Which column holds what. A file without the column of the key or of the ground truth is
            read without it; one without image or caption gives faults.
        image_root (`Path`, *optional*): Folder of relative image paths.
        rows (`int`, *optional*): Number of rows, if it is known.
    """

    def __init__(self, location: Location, columns: Columns, image_root: Path | None = None, rows: int | None = None):
        super().__init__(location, rows)
        self.columns, self.image_root = columns, image_root

    def read(self, start: Entry, first: int, problems: list[Skipped]) -> Iterator[StoredRow]:
        with self.location.open() as handle:
            file = _open(handle)
            if file is None:
                problems.append(Skipped("", self.name, "damaged_file"))
                return
            columns = _existing(self.columns, file.schema_arrow)
            begin = 0
            for group, rows in enumerate(_group_rows(file.metadata)):
                if begin + rows > first:
                    for number, record in self._read_group(file, group, begin, rows, first, columns):
                        yield StoredRow(number, record, Entry(number + 1))
                begin += rows

    def _read_group(
        self, file: pq.ParquetFile, group: int, begin: int, rows: int, first: int, columns: Columns | None
    ) -> Iterator[tuple[int, Record]]:
        """(number, record) of the rows of a row group from `first` on; what cannot be read comes as faults."""
        number, end = begin, begin + rows
        for batch in _batches(file, group, columns):
            skipped = min(max(0, first - number), batch.num_rows)
            taken = batch.slice(skipped, max(0, end - number - skipped))
            yield from enumerate(self._records(taken, number + skipped, columns), number + skipped)
            number += batch.num_rows
        reason = "schema_changed" if columns is None else "corrupt_page"
        for missing in range(max(number, first), end):
            yield missing, Record(self._key(missing), None, None, fault=reason)

    def _records(self, batch: pa.RecordBatch, number: int, columns: Columns) -> Iterator[Record]:
        """Records of a batch whose first row has this number."""
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:  # of one row at least
            rows = [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for i, row in enumerate(rows, start=number):
            if row is None:
                yield Record(self._key(i), None, None, fault="caption_not_utf8")
            else:
                yield columns.record(row, self._key(i), self.image_root)

    def _key(self, number: int) -> str:
        return f"{self.name}:{number}"

    def count(self, start: Entry, problems: list[Skipped]) -> int:
        if self.rows is not None:
            return self.rows
        with self.location.open() as handle:
            file = _open(handle)
            if file is None:
                problems.append(Skipped("", self.name, "damaged_file"))
                return 0
            return file.metadata.num_rows

    def estimate_rows(self) -> float | None:
        return float(self.count(BEGINNING, []))


def _open(handle: Any) -> pq.ParquetFile | None:
    """The file, `None` if its footer cannot be read or contradicts itself."""
    try:
        file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        rows, _ = _group_rows(file.metadata), file.schema_arrow
    except _OF_HANDLE:
        raise
    except _DAMAGE:
        return None
    return file if min(rows, default=0) >= 0 and sum(rows) == file.metadata.num_rows else None


def _group_rows(footer: pq.FileMetaData) -> list[int]:
    return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def _batches(file: pq.ParquetFile, group: int, columns: Columns | None) -> Iterator[pa.RecordBatch]:
    """A row group up to the first page that cannot be read; nothing without columns."""
    if columns is None:
        return
    try:
        # One thread: a process that was forked has none of its parent's pool.
        yield from file.iter_batches(_ROWS, row_groups=[group], columns=columns.names, use_threads=False)
    except _OF_HANDLE:
        raise
    except _DAMAGE:
        return


def _row(batch: pa.RecordBatch) -> dict[str, Any] | None:
    """The only row of a batch, `None` if its text is not UTF-8."""
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return None


def _existing(columns: Columns, schema: pa.Schema) -> Columns | None:
    """Columns as far as this file has them; `None` without one image and one caption column of a possible type."""
    types_of = {name: schema.field(name).type for name in schema.names if len(schema.get_all_field_indices(name)) == 1}
    image, caption = types_of.get(columns.image), types_of.get(columns.caption)
    if image is None or caption is None or not _can_be_image(image) or not _can_be_caption(caption):
        return None
    key, truth = types_of.get(columns.key), types_of.get(columns.mismatched)
    return replace(
        columns,
        key=columns.key if key is not None and (_is_text(key) or types.is_integer(key)) else None,
        mismatched=columns.mismatched if truth is not None and not types.is_nested(truth) else None,
    )


def _can_be_image(kind: pa.DataType) -> bool:
    """Bytes, a path, or a struct of both."""
    if types.is_struct(kind):
        return any(field.name in ("bytes", "path") and _is_text(field.type) for field in kind)
    return types.is_fixed_size_binary(kind) or _is_text(kind)


def _can_be_caption(kind: pa.DataType) -> bool:
    """Text, a number, or a list of token ids."""
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return types.is_integer(kind.value_type)
    return _is_text(kind) or types.is_integer(kind) or types.is_floating(kind)


def _is_text(kind: pa.DataType) -> bool:
    """Text or bytes, also as a dictionary; a column of nulls only can stand for either."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    kinds = (types.is_string, types.is_large_string, types.is_string_view)
    kinds += (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_null)
    return any(is_kind(kind) for is_kind in kinds)
