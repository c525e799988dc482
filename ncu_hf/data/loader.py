"""Order, sharding between processes and workers, and resume: an endless run of batches that starts at any of them."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Iterator
from itertools import count, islice
from typing import Any, NamedTuple, Protocol

from torch import Generator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.order import block_order, epoch_order, shard_order
from ncu_hf.data.records import Located, PairSource
from ncu_hf.data.streaming import StreamSource
from ncu_hf.errors import InputError

logger = logging.getLogger(__name__)

# Records of a stream that are permuted among themselves: the encoded images of one block are held by each worker.
BLOCK_ROWS = 1024


class PairLoader:
    """Batches of this process, endlessly, epoch after epoch, from global batch `start_batch` on.

    **Indexable sources.** An epoch is one permutation of all rows, keyed by (seed, epoch). Its batch b is the
    positions [bN, (b+1)N), N = batch_size·world_size; rank r takes the r-th of W contiguous slices, so that equal N
    gives equal global batches for every W. The tail that does not fill a global batch is dropped (`tail_dropped`).
    Any `start_batch` is reached without reading what lies before.

    **Streams.** The shards of an epoch, in an order keyed by (seed, epoch), are dealt to the W·K readers (K workers a
    process); inside a shard, blocks of `BLOCK_ROWS` are permuted. Each reader goes on to its next epoch by itself and
    drops nothing: a batch may hold the end of one epoch and the start of the next. `start_batch` skips records
    without decoding them, but reads them; it continues a run only for the same W and K.

    The content of a batch depends on (seed, epoch, position) alone, for indexable sources hence not on the number of
    workers. Unusable records are left out and listed in `batch["skipped"]`; the batch is smaller by them.

    Args:
        source (`PairSource` or `StreamSource`): From [`open_pairs`].
        collator (`PairCollator`): Records -> batch.
        batch_size (`int`): Records a batch and process (B).
        rank, world_size (`int`): This process and the number of processes (W).
        seed (`int`): Of order, crops and augmentation, >= 0.
        num_workers (`int`, *optional*, defaults to 0): Worker processes (K); 0 loads in this process.
        start_batch (`int`, *optional*, defaults to 0): Number of global batches that were consumed before.
        shuffle (`bool`, *optional*, defaults to `True`): Off: stored order in every epoch.

    Attributes:
        last_wait_seconds (`float`): How long the consumer waited for the last batch.

    Raises:
        InputError: fewer records than one global batch; fewer shards than processes; bad numbers.
    """

    def __init__(
        self,
        source: PairSource | StreamSource,
        collator: PairCollator,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        num_workers: int = 0,
        start_batch: int = 0,
        shuffle: bool = True,
    ):
        if batch_size < 1 or num_workers < 0 or start_batch < 0 or seed < 0 or not 0 <= rank < world_size:
            raise InputError(
                f"Loader: batch_size {batch_size}, num_workers {num_workers}, start_batch {start_batch}, seed {seed}, "
                f"rank {rank} of {world_size}: batch_size must be at least 1, the others not negative, rank below "
                "the number of processes."
            )
        self.collator, self.seed, self.start_batch = collator, seed, start_batch
        self.num_workers, self.last_wait_seconds = num_workers, 0.0
        self._rank = rank
        split = _Split(batch_size, rank, world_size, seed, shuffle)
        if isinstance(source, StreamSource):
            self._reader: _Reader = _StreamReader(source, split)
            self.num_workers = min(num_workers, len(source.shards) // world_size)
        else:
            self._reader = _IndexedReader(source, split)

    @property
    def batches_per_epoch(self) -> int | None:
        """`int`: global batches an epoch; `None` for streams."""
        return self._reader.batches_per_epoch

    @property
    def tail_dropped(self) -> int:
        """`int`: records that are left out in each epoch because they do not fill a global batch."""
        return self._reader.tail_dropped

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._rank == 0 and self.tail_dropped:
            logger.info(
                "%d pairs of each epoch, other ones in every epoch, do not fill a batch and are dropped.",
                self.tail_dropped,
            )
        loader = DataLoader(
            _Batches(self._reader, self.collator, self.seed, self.start_batch),
            batch_size=None,
            num_workers=self.num_workers,
            generator=Generator(),  # its own: the default one would draw from the global random state
        )
        with _single_threaded_tokenizers():
            batches = iter(loader)  # starts the workers
        try:
            while True:
                started = time.perf_counter()
                batch = next(batches)
                self.last_wait_seconds = time.perf_counter() - started
                if isinstance(batch, _WorkerFailure):
                    raise batch.error()
                yield batch
        finally:
            del batches  # ends the workers now: the traceback of an error would hold on to them


class _Split(NamedTuple):
    """Which part of the records a process takes, and in which order."""

    batch_size: int
    rank: int
    world_size: int
    seed: int
    shuffle: bool


class _Reader(Protocol):
    """Records of the batches of one process."""

    batches_per_epoch: int | None
    tail_dropped: int

    def batches(self, start: int, worker: int, workers: int) -> Iterator[list[Located]]:
        """Batches start + worker, start + worker + workers, ... without end."""


class _IndexedReader:
    def __init__(self, source: PairSource, split: _Split):
        self.source, self.split = source, split
        self.global_batch = split.batch_size * split.world_size
        self.batches_per_epoch, self.tail_dropped = divmod(len(source), self.global_batch)
        if not self.batches_per_epoch:
            raise InputError(
                f"{source.name}: {len(source)} records, fewer than one global batch of {self.global_batch} "
                f"({split.batch_size} x {split.world_size} processes). Use a smaller batch or more data."
            )

    def batches(self, start: int, worker: int, workers: int) -> Iterator[list[Located]]:
        order, order_epoch = None, -1
        for batch in count(start + worker, workers):
            epoch, place = divmod(batch, self.batches_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(len(self.source), self.split.seed, epoch, self.split.shuffle), epoch
            first = place * self.global_batch + self.split.rank * self.split.batch_size
            positions = range(first, first + self.split.batch_size)
            yield [self._located(int(order[position]), epoch, position) for position in positions]

    def _located(self, index: int, epoch: int, position: int) -> Located:
        return Located(self.source[index], self.source.shard_of(index), epoch, (position,))


class _StreamReader:
    batches_per_epoch = None
    tail_dropped = 0

    def __init__(self, source: StreamSource, split: _Split):
        self.source, self.split = source, split
        if len(source.shards) < split.world_size:
            raise InputError(
                f"{source.name}: {len(source.shards)} shards for {split.world_size} processes, so some would read "
                "nothing. Use fewer processes, or data in more shards, or read it without streaming."
            )

    def batches(self, start: int, worker: int, workers: int) -> Iterator[list[Located]]:
        # Worker 0 is asked first, also after a resume: it then is the reader whose turn it was.
        reader = (start + worker) % workers
        done = len(range(reader, start, workers))
        records = self._records(self.split.rank * workers + reader, self.split.world_size * workers)
        size = self.split.batch_size
        records = islice(records, done * size, None)
        while True:
            yield list(islice(records, size))

    def _records(self, reader: int, readers: int) -> Iterator[Located]:
        """Records of one of `readers` readers, endlessly."""
        for epoch in count():
            shards = shard_order(len(self.source.shards), self.split.seed, epoch, self.split.shuffle)[reader::readers]
            empty = True
            for shard in shards:
                for located in self._shard(shard, epoch):
                    empty = False
                    yield located
            if empty:
                names = ", ".join(self.source.shards[shard] for shard in shards[:3])
                raise InputError(f"{self.source.name}: no record in the shards of a reader ({names}).")

    def _shard(self, shard: int, epoch: int) -> Iterator[Located]:
        records = self.source.read_shard(shard)
        for block in count():
            rows = list(islice(records, BLOCK_ROWS))
            for row in block_order(len(rows), self.split.seed, epoch, shard, block, self.split.shuffle):
                yield Located(rows[row], self.source.shards[shard], epoch, (shard, block * BLOCK_ROWS + row))
            if len(rows) < BLOCK_ROWS:
                return


class _WorkerFailure(NamedTuple):
    """An error on its way out of a worker. DataLoader would make a page of traceback of a one-line InputError."""

    is_input_error: bool
    message: str

    def error(self) -> Exception:
        if self.is_input_error:
            return InputError(self.message)
        return RuntimeError(f"A data worker failed:\n{self.message}")


class _Batches(IterableDataset):
    """What a worker runs: worker k of K makes batches k, k+K, ...; DataLoader asks the workers in turn."""

    def __init__(self, reader: _Reader, collator: PairCollator, seed: int, start_batch: int):
        self.reader, self.collator, self.seed, self.start_batch = reader, collator, seed, start_batch

    def __iter__(self) -> Iterator[dict[str, Any] | _WorkerFailure]:
        info = get_worker_info()
        if info is None:
            yield from self._batches(0, 1)
            return
        try:
            yield from self._batches(info.id, info.num_workers)
        except InputError as error:
            yield _WorkerFailure(True, str(error))
        except Exception:  # raised again by PairLoader
            yield _WorkerFailure(False, traceback.format_exc())

    def _batches(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        for records in self.reader.batches(self.start_batch, worker, workers):
            yield self.collator(records, seed=self.seed)


@contextlib.contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Workers inherit the setting: one thread each, and no warning of `tokenizers` about the fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
