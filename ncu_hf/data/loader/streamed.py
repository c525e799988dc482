"""Batches of a stream: rounds over the shards, in which all processes make the same number of steps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.loader.reader import Cursor, News, Reader
from ncu_hf.data.loader.sharding import is_exact
from ncu_hf.data.loader.split import Split, check_same_data
from ncu_hf.data.loader.state import Round, StreamState, plan_round
from ncu_hf.data.loader.workers import in_workers
from ncu_hf.data.records import Skipped
from ncu_hf.data.shards.base import BEGINNING, Entry
from ncu_hf.data.sources.stream_source import StreamSource
from ncu_hf.errors import InputError

logger = logging.getLogger(__name__)

# Shards whose ends a process looks for at a time: mostly waiting for the network.
_COUNTERS = 8


class StreamedBatches:
    """Batches of one process over a stream.

    An epoch is one round where the lengths of all shards are known: its rows are dealt exactly, every process makes
    the same number of steps without asking the others, and the rows that do not fill a global batch are dropped.

    Where lengths are not known (tars in the network), the first round is dealt by estimates and ends for all
    processes at the first batch that one of them cannot fill. The shards that nobody has read to their end are then
    counted, and what is left is dealt exactly in a second round. From the second epoch on all lengths are known.

    Args:
        source (`StreamSource`): The shards.
        collator (`PairCollator`): Records -> batch.
        split (`Split`): Which part this process takes.
        state (`dict`, *optional*): Where to go on, from [`state`]; of any number of processes, workers and batch.
    """

    def __init__(self, source: StreamSource, collator: PairCollator, split: Split, state: dict[str, Any] | None):
        self._source, self._collator = source, collator
        # More workers than shards would only read the same shards again.
        workers = min(split.workers, max(len(source.parts) // split.world_size, 1))
        self._split = split._replace(workers=workers)
        self.readers = max(workers, 1)
        if state is None:
            lengths = {i: shard.rows for i, shard in enumerate(source.shards) if shard.rows is not None}
            self._state = StreamState.first(source, self._split, lengths)
        else:
            check_same_data(state, source, split.seed)
            self._state = StreamState.from_json(state).adapted(source, self._split)
        # Since the processes last told each other. What a saved position tells of shards is told once, by process 0.
        self._news = News(problems=list(self._state.problems) if split.rank == 0 else [])

    @property
    def batches_per_epoch(self) -> int | None:
        """`int`: global batches an epoch; `None` where the lengths are not known."""
        return None if (rows := self._rows()) is None else rows // self._split.global_batch

    @property
    def tail_dropped(self) -> int | None:
        """`int`: rows that are dropped in each epoch; `None` where the lengths are not known."""
        return None if (rows := self._rows()) is None else rows % self._split.global_batch

    def _rows(self) -> int | None:
        return self._state.rows(self._source)

    def state(self) -> dict[str, Any]:
        """Position behind the last batch; a collective."""
        self._share_news()
        return self._state.to_json()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self._split.is_over(self._state.epoch):
            yield from self._batches(self._state.round)
            self._next_round()

    def _batches(self, current: Round) -> Iterator[dict[str, Any]]:
        """The rest of a round."""
        make = partial(self._make, current.done)
        received = in_workers(make, self._split.workers, self._split.pin_memory)  # starts with its first item
        mine = current.readers_of(self._split.rank)
        while current.steps is None or current.done < current.steps:
            batch, cursor, news = next(received)
            self._news.take(news)
            if current.steps is None and not all(self._split.gather(batch is not None)):
                return
            current.cursors[mine[current.done % len(mine)]] = cursor
            current.done += 1
            self._state.steps += 1
            batch["problems"], self._news.problems = self._news.problems, []
            yield batch

    def _make(self, done: int, worker: int, workers: int) -> Iterator[tuple[dict[str, Any] | None, Cursor, News]]:
        current, split = self._state.round, self._split
        # Worker 0 is asked first, also after a resume: it then is the reader whose turn it was.
        number = current.readers_of(split.rank)[(done + worker) % workers]
        reader = Reader(
            self._source.shards,
            current.shares[number],
            self._state.key(number),
            current.steps is not None,
            current.cursors[number],
        )
        for records, cursor, news in reader.batches(split.batch_size):
            yield self._collator(records, seed=split.seed) if records else None, cursor, news

    def _share_news(self) -> None:
        """Make the state the same on all processes; a collective."""
        current = self._state.round
        mine = current.readers_of(self._split.rank)
        told = {
            "cursors": {number: current.cursors[number].to_json() for number in mine},
            "lengths": self._news.lengths,
            "problems": self._news.problems,
        }
        self._news = News()
        self._state.problems = []
        for part in self._split.gather(told):
            for number, cursor in part["cursors"].items():
                current.cursors[int(number)] = Cursor.from_json(cursor)
            self._state.lengths |= {int(shard): rows for shard, rows in part["lengths"].items()}
            self._state.problems += [Skipped(*problem) for problem in part["problems"]]
        if self._split.rank == 0:  # goes into its next batch, or with the position into the next run's first one
            self._news.problems = list(self._state.problems)

    def _next_round(self) -> None:
        self._share_news()
        state = self._state
        if state.round.steps is None:
            self._count_ends()
            state.round = plan_round(state, self._source, self._split, state.rest(), state.round.number + 1)
            return
        rest = state.rest()
        dropped = sum(segment.count(float) for segment in rest)
        if not state.steps:
            raise InputError(self._split.too_small(self._source.name, dropped))
        if self._split.rank == 0:
            logger.info(
                "Epoch %d: %d global batches; %d pairs do not fill one and are dropped.",
                state.epoch,
                state.steps,
                dropped,
            )
        state.epoch, state.steps = state.epoch + 1, 0
        state.round = plan_round(state, self._source, self._split, state.whole(self._source), 0)

    def _count_ends(self) -> None:
        """Find the lengths that no reader has met, each shard from the farthest place that is known; a collective."""
        places: dict[int, Entry] = {}
        for segment in self._state.rest():
            if not is_exact(segment, self._state.lengths):
                places[segment.shard] = max(segment.entry, places.get(segment.shard, BEGINNING))
        mine = sorted(places)[self._split.rank :: self._split.world_size]
        if self._split.rank == 0 and places:
            logger.info("Counting the rows that are left in %d shards.", len(places))
        with ThreadPoolExecutor(_COUNTERS) as pool:
            problems = self._news.problems
            counts = pool.map(lambda shard: self._source.shards[shard].count(places[shard], problems), mine)
            found = dict(zip(mine, counts, strict=True))
        for part in self._split.gather(found):
            self._state.lengths |= {int(shard): rows for shard, rows in part.items()}
