"""Parquet files that hold the truth of injected noise: of a run's chosen pairs, or of all pairs with their images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ncu_hf.data.decoding import read_image
from ncu_hf.data.records import BadRecord, PairSource
from ncu_hf.data.sources.noisy import MatchedPairs, NoisyCaptions
from ncu_hf.data.sources.stream_source import StreamSource

INJECTED_NOISE = "injected_noise.parquet"
_TRUTH = pa.schema(
    {
        "key": pa.string(),
        "row": pa.int64(),
        "mismatched": pa.bool_(),
        "caption": pa.string(),
        "original_caption": pa.string(),
    }
)
_PAIRS = pa.schema(
    {
        "key": pa.string(),
        "image": pa.binary(),
        "caption": pa.string(),
        "mismatched": pa.bool_(),
        "original_caption": pa.string(),
    }
)
# A row group ends at this many rows, or at this many bytes of images.
_GROUP_ROWS, _GROUP_BYTES = 10_000, 2**26


def keep_injected_noise(source: PairSource | StreamSource, folder: Path) -> None:
    """Write the truth of a run's noise to `folder/injected_noise.parquet`, unless it is there or there is no noise.

    It has one row for each chosen pair, in stored order: `key`, `row` (its place in the training pairs, for keys may
    occur twice), `mismatched`, `caption` (as it is trained on) and `original_caption`. No other pair was changed.
    Where the mismatched pairs are dropped, places are those of before.
    """
    path = folder / INJECTED_NOISE
    source = source.noisy if isinstance(source, MatchedPairs) else source
    if isinstance(source, NoisyCaptions) and not path.exists():
        _write(path, _TRUTH, source.chosen())


def write_noisy_pairs(source: NoisyCaptions, path: Path, told: Callable[[int], Any]) -> int:
    """Write all pairs of a source, with their images as stored, to a parquet file that every reader of pairs takes.

    Args:
        source (`NoisyCaptions`): The pairs.
        path (`Path`): The file; it appears when all of it is there.
        told (`Callable`): Called with the number of pairs that were written since the last call.

    Returns:
        `int`: pairs whose image cannot be read; theirs is missing in the file. So is a caption that training skips.
    """
    missing = 0

    def rows() -> Iterator[tuple]:
        nonlocal missing
        for index in range(len(source)):
            record, caption = source[index], source.noisy_caption(index)
            try:
                image = read_image(record.image)
            except BadRecord:
                image = None
                missing += 1
            yield record.key, image, caption, record.mismatched, source.original_caption(index)
            told(1)

    _write(path, _PAIRS, rows())
    return missing


def _write(path: Path, schema: pa.Schema, rows: Iterable[Sequence]) -> None:
    """A parquet file of these rows, in one step and in little memory."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for group in _groups(rows):
                columns = [[_text(cell) for cell in column] for column in zip(*group, strict=True)]
                writer.write_table(pa.table(columns, schema=schema))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _groups(rows: Iterable[Sequence]) -> Iterator[list[Sequence]]:
    group: list[Sequence] = []
    held = 0
    for row in rows:
        group.append(row)
        held += sum(len(cell) for cell in row if isinstance(cell, bytes))
        if len(group) == _GROUP_ROWS or held >= _GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _text(cell: Any) -> Any:
    """A key that is a file name may hold bytes that are no text."""
    return cell.encode("utf-8", "replace").decode("utf-8") if isinstance(cell, str) else cell
