"""Sources of unknown length: parquet files and Hub data sets, read shard by shard with `datasets` streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ncu_hf.data.files import fingerprint_files, fingerprint_text
from ncu_hf.data.records import Record, Skipped
from ncu_hf.data.tables import Columns, hub_commit, load, parquet_columns, undecoded
from ncu_hf.errors import InputError

# Rows that are fetched at once: enough to spread the cost of a call, few enough to hold encoded images of.
_ROWS = 64


class StreamSource:
    """Records of a `datasets.IterableDataset`, one shard at a time.

    Args:
        table (`datasets.IterableDataset`): With the columns of `columns`, images not decoded.
        columns (`Columns`): Which column holds what.
        shards (`list[str]`): Names of the shards, for reports.
        name, format, fingerprint, revision: See [`PairSource`].
        image_root (`Path`, *optional*): Folder of relative image paths.
    """

    def __init__(
        self,
        table: datasets.IterableDataset,
        columns: Columns,
        shards: list[str],
        *,
        name: str,
        format: str,
        fingerprint: str,
        revision: str | None = None,
        image_root: Path | None = None,
    ):
        self._table, self._columns, self._image_root = table, columns, image_root
        self.shards, self.name, self.format = shards, name, format
        self.fingerprint, self.revision = fingerprint, revision
        self.problems: list[Skipped] = []

    def decode_captions(self, decode: Callable[[Any], Any]) -> None:
        """Read captions through `decode` from now on."""
        self._columns = replace(self._columns, decode_caption=decode)

    def captions(self) -> list[Any]:
        """A stream is not read whole for its captions.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.name}: a tokenizer cannot be trained on streamed captions; name one with --tokenizer.")

    def read_shard(self, index: int) -> Iterator[Record]:
        """All records of one shard, in stored order, whichever process or worker asks."""
        shard = self._table.shard(num_shards=len(self.shards), index=index)
        row_number = 0
        # `iter(batch_size)`, not `__iter__`: in a DataLoader worker the latter splits the shards again among workers.
        for batch in shard.iter(batch_size=_ROWS):
            for row in _rows(batch):
                yield self._columns.record(row, f"{index}:{row_number}", self._image_root)
                row_number += 1

    @property
    def description(self) -> dict[str, Any]:
        """`dict`: what a model card prints; the number of rows is not known."""
        return {
            "name": self.name,
            "format": self.format,
            "rows": None,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
        }


def _rows(batch: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def stream_parquet(
    paths: list[Path], name: str, image_column: str, caption_column: str, image_root: Path | None
) -> StreamSource:
    """Stream parquet files; each file with rows is a shard."""
    columns, files = parquet_columns(paths, image_column, caption_column)
    names = [str(path) for path, _ in files]
    table = load(path="parquet", data_files=names, columns=columns.names, split="train", streaming=True)
    return StreamSource(
        undecoded(table, columns.image),
        columns,
        [path.name for path, _ in files],
        name=name,
        format="parquet",
        fingerprint=fingerprint_text(fingerprint_files(paths), *columns.names),
        image_root=image_root or paths[0].parent,
    )


def stream_hub(
    repo: str, split: str, revision: str | None, image_column: str, caption_column: str, image_root: Path | None
) -> StreamSource:
    """Stream a data set of the Hub at a pinned commit."""
    commit = hub_commit(repo, revision)
    table = load(path=repo, split=split, revision=commit, streaming=True)
    existing = table.column_names or list(next(iter(table), {}))
    if not existing:
        raise InputError(f"{repo}: split {split!r} is empty.")
    columns = Columns.find(repo, existing, image_column, caption_column)
    return StreamSource(
        undecoded(table.select_columns(columns.names), columns.image),
        columns,
        [f"{repo}#{i}" for i in range(table.num_shards)],
        name=repo,
        format="hub",
        fingerprint=fingerprint_text(repo, split, commit or "", *columns.names),
        revision=commit,
        image_root=image_root,
    )
