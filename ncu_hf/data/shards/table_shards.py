"""A part of a Hub data set that only `datasets` can read (csv, jsonl, arrow, image folders), as a shard."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ncu_hf.data.network.http_client import HTTP_ERROR
from ncu_hf.data.records import Skipped
from ncu_hf.data.shards.base import Entry, Shard, StoredRow
from ncu_hf.data.sources.tables import Columns, root_cause
from ncu_hf.errors import TrainingStopped

# Rows that are fetched at once: enough to spread the cost of a call, few enough to hold encoded images of.
_ROWS = 64
# What `datasets` makes of content that it cannot read; what the network does to it comes as one of the others.
_CONTENT_ERRORS = (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError)


class TableShard(Shard):
    """One shard of a `datasets.IterableDataset`. Reading starts at its beginning; rows before the first are dropped.

    Args:
        table (`datasets.IterableDataset`): With the columns of `columns`, images not decoded.
        columns (`Columns`): Which column holds what.
        index, num_shards (`int`): Which shard of the table.
        image_root (`Path`, *optional*): Folder of relative image paths.
        name (`str`): For reports.
    """

    size = None
    rows = None

    def __init__(
        self,
        table: datasets.IterableDataset,
        columns: Columns,
        index: int,
        num_shards: int,
        image_root: Path | None = None,
        name: str = "",
    ):
        self._table, self._columns, self._image_root = table, columns, image_root
        self._index, self._num_shards = index, num_shards
        self.name = name or f"shard {index}"

    def read(self, start: Entry, first: int, problems: list[Skipped]) -> Iterator[StoredRow]:
        for number, row in islice(enumerate(self._rows(problems)), first, None):
            record = self._columns.record(row, f"{self.name}:{number}", self._image_root)
            yield StoredRow(number, record, Entry(number + 1))

    def count(self, start: Entry, problems: list[Skipped]) -> int:
        return sum(1 for _ in self._rows(problems))

    def estimate_rows(self) -> float | None:
        return None

    def _rows(self, problems: list[Skipped]) -> Iterator[dict[str, Any]]:
        shard = self._table.shard(num_shards=self._num_shards, index=self._index)
        try:
            # `iter(batch_size)`, not `__iter__`: in a DataLoader worker the latter splits the shards among workers.
            for batch in shard.iter(batch_size=_ROWS):
                for values in zip(*batch.values(), strict=True):
                    yield dict(zip(batch, values, strict=True))
        except _CONTENT_ERRORS:
            problems.append(Skipped("", self.name, "damaged_table"))
        except (HTTP_ERROR, OSError) as error:
            raise TrainingStopped(
                f"{self.name}: cannot be read any longer ({root_cause(error)}). Check the connection; the run can go "
                "on with --resume_from_checkpoint true."
            ) from error
