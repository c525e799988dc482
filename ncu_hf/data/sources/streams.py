"""Files and Hub data sets -> streams: which shards they consist of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ncu_hf.data.files import LocalFile, Location, fingerprint_files, fingerprint_text
from ncu_hf.data.records import Skipped
from ncu_hf.data.shards.base import Shard
from ncu_hf.data.shards.parquet_shards import ParquetShard
from ncu_hf.data.shards.table_shards import TableShard
from ncu_hf.data.shards.tar_samples import TarLayout
from ncu_hf.data.shards.tar_shards import TarShard
from ncu_hf.data.sources.remote import RemoteData
from ncu_hf.data.sources.streaming import StreamSource
from ncu_hf.data.sources.tables import Columns, load, undecoded
from ncu_hf.data.token_captions import caption_decoder
from ncu_hf.errors import InputError


@dataclass(frozen=True)
class StreamOptions:
    """How the pairs of a stream are stored, and what is known of it: see [`open_pairs`]."""

    image_column: str
    caption_column: str
    image_root: Path | None
    total_rows: int | None
    timeout: float
    caption_tokenizer: str | None

    def columns(self, where: str, existing: list[str]) -> Columns:
        """The columns in use."""
        found = Columns.find(where, existing, self.image_column, self.caption_column)
        if self.caption_tokenizer is None:
            return found
        return replace(found, decode_caption=caption_decoder(self.caption_tokenizer))

    @property
    def names(self) -> tuple[str, str]:
        """`tuple[str, str]`: what the fingerprint covers."""
        return self.image_column, self.caption_column


def stream_files(kind: str, paths: list[Path], name: str, options: StreamOptions) -> StreamSource:
    """Stream local tars or parquet files; each file is a shard.

    Raises:
        InputError: no such column, or no parquet file that can be read.
    """
    problems: list[Skipped] = []
    if kind == "webdataset":
        shards: list[Shard] = _tar_shards([LocalFile(path) for path in paths], options)
    else:
        shards = _local_parquet(paths, options, problems)
    # A sample of every one of thousands of files would take minutes on a network file system.
    sizes = [f"{path.name} {path.stat().st_size}" for path in paths]
    source = StreamSource(
        shards,
        name=name,
        format=kind,
        fingerprint=fingerprint_text(fingerprint_files(paths[:1]), *sizes, *options.names),
        total_rows=options.total_rows,
    )
    source.problems += problems
    return source


def stream_remote(data: RemoteData, options: StreamOptions) -> StreamSource:
    """Stream what is on the Hub or behind URLs; each file is a shard. Only `datasets` asks a server for something.

    Raises:
        InputError: no such column, or `datasets` cannot read the set.
    """
    files = data.files(options.timeout)
    if data.kind == "webdataset":
        shards: list[Shard] = _tar_shards(files, options)
    elif data.kind == "parquet":
        columns = options.columns(data.name, data.columns)
        shards = [ParquetShard(file, columns, options.image_root) for file in files]
    else:
        shards = _table_shards(data, options)
    stated = data.hub.rows if data.hub else None
    return StreamSource(
        shards,
        name=data.name,
        format="hub" if data.hub else data.kind,
        fingerprint=fingerprint_text(data.fingerprint, *options.names),
        revision=data.hub.commit if data.hub else None,
        total_rows=stated if options.total_rows is None else options.total_rows,
        first_rows=data.first_rows,
    )


def _tar_shards(locations: Sequence[Location], options: StreamOptions) -> list[Shard]:
    if options.caption_tokenizer is not None:
        raise InputError("--caption_tokenizer: tars hold captions as text, not as ids. Leave it out.")
    layout = TarLayout(options.image_column, options.caption_column)
    return [TarShard(location, layout) for location in locations]


def _local_parquet(paths: list[Path], options: StreamOptions, problems: list[Skipped]) -> list[Shard]:
    """Shards of known length, from the footers; a file without one has no rows."""
    columns: Columns | None = None
    rows = []
    for path in paths:
        try:
            footer = pq.read_metadata(path)
        except (pa.ArrowException, OSError):
            problems.append(Skipped("", path.name, "damaged_file"))
            rows.append(0)
            continue
        columns = columns or options.columns(str(path), footer.schema.to_arrow_schema().names)
        rows.append(footer.num_rows)
    if columns is None:
        raise InputError(f"{paths[0]}: not a readable parquet file, nor any of the {len(paths)} that are named.")
    if not any(rows):
        raise InputError(f"{paths[0]}: the data is empty (0 rows).")
    root = options.image_root or paths[0].parent
    return [ParquetShard(LocalFile(path), columns, root, count) for path, count in zip(paths, rows, strict=True)]


def _table_shards(data: RemoteData, options: StreamOptions) -> list[Shard]:
    """The fallback: `datasets` reads, and every process asks the Hub for the listing."""
    hub = data.hub
    table = load(path=hub.repo, name=hub.config, split=hub.split, revision=hub.commit, streaming=True)
    existing = table.column_names or list(next(iter(table), {}))
    if not existing:
        raise InputError(f"{hub.repo}: split {hub.split!r} is empty.")
    columns = options.columns(hub.repo, existing)
    table = undecoded(table.select_columns(columns.names), columns.image)
    count = table.num_shards
    return [TableShard(table, columns, i, count, options.image_root, f"{hub.repo}#{i}") for i in range(count)]
