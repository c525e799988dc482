"""One reader of a stream: several shards at once, blocks in random order, and a position behind every batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple, TypeVar

from ncu_hf.data.loader.sharding import Segment
from ncu_hf.data.order import block_order
from ncu_hf.data.records import Located, Record, Skipped
from ncu_hf.data.shards.base import Entry, Shard, StoredRow
from ncu_hf.errors import InputError

# Shards that a reader reads side by side: a block mixes as many places of the data.
LANES = 16
# Records that are permuted among themselves. A reader holds two blocks of encoded images, one of them being read.
BLOCK_ROWS = 1024
BLOCK_BYTES = 256 * 2**20

Item = TypeVar("Item")


class Run(NamedTuple):
    """Rows [start, stop) of a segment that follow each other in a block; they are reached from (row, offset)."""

    segment: int
    start: int
    stop: int
    row: int
    offset: int


class Lane(NamedTuple):
    """A segment that is being read: its next row, reached from (row, offset)."""

    segment: int
    start: int
    row: int
    offset: int


@dataclass(frozen=True)
class Cursor:
    """How far a reader has come in its share.

    Args:
        opened (`int`): Segments of the share that have been opened.
        lanes (`tuple[Lane, ...]`): The open ones, behind the current block.
        runs (`tuple[Run, ...]`): What the current block is made of, in stored order.
        block (`int`): Its number.
        consumed (`int`): How many of its records have been used, in the block's own order.
    """

    opened: int = 0
    lanes: tuple[Lane, ...] = ()
    runs: tuple[Run, ...] = ()
    block: int = -1
    consumed: int = 0

    def to_json(self) -> list[Any]:
        return [self.opened, [list(x) for x in self.lanes], [list(x) for x in self.runs], self.block, self.consumed]

    @classmethod
    def from_json(cls, value: list[Any]) -> Cursor:
        opened, lanes, runs, block, consumed = value
        return cls(opened, tuple(Lane(*x) for x in lanes), tuple(Run(*x) for x in runs), block, consumed)


class ReaderKey(NamedTuple):
    """What the order of a reader's blocks depends on."""

    seed: int
    epoch: int
    round: int
    reader: int

    def order(self, block: int, length: int) -> list[int]:
        return block_order(length, self.seed, (self.epoch, self.round, self.reader, block))


@dataclass
class News:
    """What a reader learned on the way: true lengths of shards, and which shards are not whole."""

    lengths: dict[int, int] = field(default_factory=dict)
    problems: list[Skipped] = field(default_factory=list)

    def take(self, other: News) -> None:
        """Move what `other` holds over here."""
        self.lengths |= other.lengths
        self.problems += other.problems
        other.lengths.clear()
        other.problems.clear()  # in place: a shard that is being read holds on to this list


class ReadBatch(NamedTuple):
    """Records of a batch and the position behind it. No records: the share has fewer left than a batch."""

    records: list[Located]
    cursor: Cursor
    news: News


def rest_of(share: list[Segment], cursor: Cursor, key: ReaderKey) -> list[Segment]:
    """What a reader has not used of its share."""
    numbers = [(run, row) for run in cursor.runs for row in _rows(share[run.segment], run)]
    order = key.order(cursor.block, len(numbers))[cursor.consumed :] if numbers else []
    left: dict[Run, list[int]] = {}
    for run, row in sorted(numbers[place] for place in order):
        left.setdefault(run, []).append(row)
    rest = [
        Segment(share[run.segment].shard, rows[0], rows[-1] + 1, Entry(run.row, run.offset), tuple(rows))
        for run, rows in left.items()
    ]
    rest += [share[lane.segment].after(lane.start, Entry(lane.row, lane.offset)) for lane in cursor.lanes]
    return rest + share[cursor.opened :]


def _rows(segment: Segment, run: Run) -> list[int]:
    if segment.rows is None:
        return list(range(run.start, run.stop))
    return [row for row in segment.rows if run.start <= row < run.stop]


class Reader:
    """Reads its share of a round.

    Up to `LANES` segments are open at a time. One run of rows from each makes a block, which is permuted; the next
    block is read in a thread meanwhile. What is held is bounded by two blocks, each of at most `BLOCK_ROWS` records
    and about `BLOCK_BYTES`.

    Args:
        shards (`list[Shard]`): All shards of the source.
        share (`list[Segment]`): What to read.
        key (`ReaderKey`): Of the order inside the blocks.
        exact (`bool`): Each segment has a stop that is right. Rows that are not there then come as records with the
            fault `missing_row`, so that the number of steps holds.
        cursor (`Cursor`): Where to go on.
    """

    def __init__(self, shards: list[Shard], share: list[Segment], key: ReaderKey, exact: bool, cursor: Cursor):
        self._shards, self._share, self._key, self._exact = shards, share, key, exact
        self._start = cursor

    def batches(self, size: int) -> Iterator[ReadBatch]:
        """Batches of `size` records; a last one without records says that fewer than `size` are left."""
        records: list[Located] = []
        cursor, news = self._start, News()
        for block in _in_background(self._blocks()):
            news.take(block.news)
            order = self._key.order(block.number, len(block.rows))
            for used in range(block.consumed, len(order)):
                records.append(self._located(*block.take(order[used])))
                if len(records) == size:
                    cursor = replace(block.cursor(), consumed=used + 1)
                    yield ReadBatch(records, cursor, news)
                    records, news = [], News()
        yield ReadBatch([], cursor, news)

    def _located(self, shard: int, row: StoredRow) -> Located:
        return Located(row.record, self._shards[shard].name, self._key.epoch, (shard, row.number))

    def _blocks(self) -> Iterator[_Block]:
        opened = self._start.opened
        if self._start.runs:
            yield self._again()
        lanes = [self._lane(x.segment, x.start, Entry(x.row, x.offset)) for x in self._start.lanes]
        for number in count(self._start.block + 1):
            block = _Block(number)
            lanes, opened = self._fill(block, lanes, opened)
            block.opened, block.lanes = opened, tuple(lane.place for lane in lanes)
            yield block
            if not block.rows:
                return

    def _fill(self, block: _Block, lanes: list[_OpenLane], opened: int) -> tuple[list[_OpenLane], int]:
        """One run from each lane. A lane that ends gives its place to the next segment."""
        waiting = lanes[::-1]
        places = min(LANES, len(lanes) + len(self._share) - opened)
        left: list[_OpenLane] = []
        for _ in range(places):
            rows, size = -(-BLOCK_ROWS // places), -(-BLOCK_BYTES // places)
            while rows > 0 and size > 0 and (waiting or opened < len(self._share)):
                if not waiting:
                    segment = self._share[opened]
                    waiting.append(self._lane(opened, segment.start, segment.entry))
                    opened += 1
                lane = waiting.pop()
                taken, taken_bytes = lane.run(block, rows, size)
                rows, size = rows - taken, size - taken_bytes
                if not lane.ended:
                    left.append(lane)
                    break
        return left, opened

    def _lane(self, segment: int, start: int, entry: Entry, stop: int | None = None) -> _OpenLane:
        part = self._share[segment].after(start, entry)
        part = part if stop is None else replace(part, stop=stop)
        return _OpenLane(self._shards[part.shard], segment, part, self._exact)

    def _again(self) -> _Block:
        """The block that the cursor is in, read once more."""
        start = self._start
        block = _Block(start.block)
        for run in start.runs:
            lane = self._lane(run.segment, run.start, Entry(run.row, run.offset), run.stop)
            while not lane.ended:
                lane.run(block, BLOCK_ROWS, BLOCK_BYTES)
        if len(block.rows) != sum(len(_rows(self._share[run.segment], run)) for run in start.runs):
            names = sorted({self._shards[self._share[run.segment].shard].name for run in start.runs})
            raise InputError(f"{', '.join(names)}: the data has changed since the run was stopped.")
        block.runs, block.lanes, block.opened, block.consumed = start.runs, start.lanes, start.opened, start.consumed
        return block


class _Block:
    """Records that are permuted among themselves."""

    def __init__(self, number: int):
        self.number, self.opened, self.consumed = number, 0, 0
        self.rows: list[tuple[int, StoredRow] | None] = []
        self.runs: tuple[Run, ...] = ()
        self.lanes: tuple[Lane, ...] = ()
        self.news = News()

    def take(self, place: int) -> tuple[int, StoredRow]:
        """(shard, row), which the block does not hold any longer."""
        row, self.rows[place] = self.rows[place], None
        return row

    def cursor(self) -> Cursor:
        return Cursor(self.opened, self.lanes, self.runs, self.number, self.consumed)


class _OpenLane:
    """A segment that is being read.

    Attributes:
        ended (`bool`): No row is left.
    """

    def __init__(self, shard: Shard, number: int, part: Segment, exact: bool):
        self._shard, self._number, self._part, self._exact = shard, number, part, exact
        self._next, self._entry = part.start, part.entry
        self._news = News()
        self._rows = self._read()
        self.ended = False

    @property
    def place(self) -> Lane:
        return Lane(self._number, self._next, *self._entry)

    def run(self, block: _Block, rows: int, size: int) -> tuple[int, int]:
        """Add rows to the block, up to `rows` of them or until they reach `size` bytes; gives both numbers."""
        start, taken, taken_bytes = self.place, 0, 0
        while taken < rows and taken_bytes < size:
            row = next(self._rows, None)
            if row is None:
                self.ended = True
                break
            block.rows.append((self._part.shard, row))
            self._next, self._entry = row.number + 1, row.following
            taken, taken_bytes = taken + 1, taken_bytes + _size(row.record)
        if taken:
            block.runs += (Run(self._number, start.start, self._next, start.row, start.offset),)
        block.news.take(self._news)
        return taken, taken_bytes

    def _read(self) -> Iterator[StoredRow]:
        part, wanted = self._part, None if self._part.rows is None else set(self._part.rows)
        number, behind = part.start, part.entry
        if part.stop is not None and number >= part.stop:
            return
        for row in self._shard.read(part.entry, part.start, self._news.problems):
            number, behind = row.number + 1, row.following
            if wanted is None or row.number in wanted:
                yield row
            if number == part.stop:
                return
        if self._exact:
            for missing in range(number, part.stop):
                if wanted is None or missing in wanted:
                    record = Record(f"{self._shard.name}:{missing}", None, None, fault="missing_row")
                    yield StoredRow(missing, record, behind)
        elif number > part.start or part.start == part.entry.row:
            self._news.lengths[part.shard] = number


def _size(record: Record) -> int:
    return len(record.image) if isinstance(record.image, bytes) else 0


def _in_background(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next one of them made in a thread while the last one is used."""
    coming = _start_next(items)
    while (item := coming.result()) is not None:
        coming = _start_next(items)
        yield item


def _start_next(items: Iterator[Item]) -> Future[Item | None]:
    future: Future[Item | None] = Future()

    def work() -> None:
        try:
            future.set_result(next(items, None))
        except Exception as error:  # raised again by `result`
            future.set_exception(error)

    # A daemon: a read that hangs in the network must not keep the process from ending.
    threading.Thread(target=work, daemon=True, name="block reader").start()
    return future
