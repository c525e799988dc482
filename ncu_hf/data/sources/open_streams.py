"""Files, URLs and Hub data sets -> [`StreamSource`]: which shards they consist of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ncu_hf.data.files import Location, fingerprint_files, fingerprint_text, local_files
from ncu_hf.data.records import Skipped
from ncu_hf.data.shards.base import Shard
from ncu_hf.data.shards.parquet_shards import ParquetShard
from ncu_hf.data.shards.table_shards import TableShard
from ncu_hf.data.shards.tar_samples import TarLayout
from ncu_hf.data.shards.tar_shards import TarShard
from ncu_hf.data.sources.remote import RemoteData
from ncu_hf.data.sources.stored import Stored
from ncu_hf.data.sources.stream_source import StreamSource
from ncu_hf.data.sources.tables import Columns, load, undecoded
from ncu_hf.errors import InputError


def stream_files(
    kind: str, paths: list[Path], name: str, stored: Stored, *, total_rows: int | None = None
) -> StreamSource:
    """Stream local tars or parquet files; each file is a shard.

    Args:
        kind (`str`): `webdataset` or `parquet`.
        paths (`list[Path]`): The files, in order.
        name (`str`): What the user named.
        stored (`Stored`): How the pairs are stored.
        total_rows (`int`, *optional*): Rows of all files, as the user states it.

    Raises:
        InputError: no such column, or no parquet file that can be read.
    """
    problems: list[Skipped] = []
    if kind == "webdataset":
        shards: list[Shard] = _tar_shards(local_files(paths), stored)
    else:
        shards = _local_parquet(paths, stored, problems)
    # A sample of every one of thousands of files would take minutes on a network file system.
    sizes = [f"{file.name} {file.size}" for file in local_files(paths)]
    source = StreamSource(
        shards,
        name=name,
        format=kind,
        fingerprint=fingerprint_text(fingerprint_files(paths[:1]), *sizes, *stored.names),
        total_rows=total_rows,
    )
    source.problems += problems
    return source


def stream_remote(data: RemoteData, stored: Stored, *, timeout: float, total_rows: int | None = None) -> StreamSource:
    """Stream what is on the Hub or behind URLs; each file is a shard. Only `datasets` asks a server for something.

    Args:
        data (`RemoteData`): What it consists of.
        stored (`Stored`): How the pairs are stored.
        timeout (`float`): Seconds without progress after which reading stops.
        total_rows (`int`, *optional*): Rows of all files, as the user states it; a card is believed otherwise.

    Raises:
        InputError: no such column, or `datasets` cannot read the set.
    """
    files = data.files(timeout)
    if data.kind == "webdataset":
        shards: list[Shard] = _tar_shards(files, stored)
    elif data.kind == "parquet":
        columns = stored.columns(data.name, data.columns)
        shards = [ParquetShard(file, columns, stored.image_root) for file in files]
    else:
        shards = _table_shards(data, stored)
    if total_rows is None and data.hub is not None:
        total_rows = data.hub.rows
    return StreamSource(
        shards,
        name=data.name,
        format="hub" if data.hub else data.kind,
        fingerprint=fingerprint_text(data.fingerprint, *stored.names),
        revision=data.hub.commit if data.hub else None,
        total_rows=total_rows,
        first_rows=data.first_rows,
    )


def _tar_shards(locations: Sequence[Location], stored: Stored) -> list[Shard]:
    if stored.caption_tokenizer is not None:
        raise InputError("--caption_tokenizer: tars hold captions as text, not as ids. Leave it out.")
    layout = TarLayout(stored.image_column, stored.caption_column)
    return [TarShard(location, layout) for location in locations]


def _local_parquet(paths: list[Path], stored: Stored, problems: list[Skipped]) -> list[Shard]:
    """Shards of known length, from the footers; a file without one has no rows."""
    columns: Columns | None = None
    rows = []
    files = local_files(paths)
    for path, file in zip(paths, files, strict=True):
        try:
            footer = pq.read_metadata(path)
        except (pa.ArrowException, OSError):
            problems.append(Skipped("", file.name, "damaged_file"))
            rows.append(0)
            continue
        columns = columns or stored.columns(str(path), footer.schema.to_arrow_schema().names)
        rows.append(footer.num_rows)
    if columns is None:
        raise InputError(f"{paths[0]}: not a readable parquet file, nor any of the {len(paths)} that are named.")
    if not any(rows):
        raise InputError(f"{paths[0]}: the data is empty (0 rows).")
    root = stored.image_root or paths[0].parent
    return [ParquetShard(file, columns, root, count) for file, count in zip(files, rows, strict=True)]


def _table_shards(data: RemoteData, stored: Stored) -> list[Shard]:
    """The fallback: `datasets` reads, and every process asks the Hub for the listing."""
    hub = data.hub
    table = load(path=hub.repo, name=hub.config, split=hub.split, revision=hub.commit, streaming=True)
    existing = table.column_names or list(next(iter(table), {}))
    if not existing:
        raise InputError(f"{hub.repo}: split {hub.split!r} is empty.")
    columns = stored.columns(hub.repo, existing)
    table = undecoded(table.select_columns(columns.names), columns.image)
    count = table.num_shards
    return [TableShard(table, columns, i, count, stored.image_root, f"{hub.repo}#{i}") for i in range(count)]
