"""Who reads what: the rows of an epoch, dealt to the readers of all processes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ncu_hf.data.shards.base import BEGINNING, Entry


@dataclass(frozen=True)
class Segment:
    """Rows of one shard that are to be read.

    Args:
        shard (`int`): Index of the shard.
        start (`int`): First row.
        stop (`int`, *optional*): Row behind the last one; `None`: to the end of a shard whose length is not known.
        entry (`Entry`): Place at or before `start` where reading can begin.
        rows (`tuple[int, ...]`, *optional*): Only these rows of [start, stop), ascending: what is left of a block.
    """

    shard: int
    start: int
    stop: int | None
    entry: Entry = BEGINNING
    rows: tuple[int, ...] | None = None

    def count(self, length: Callable[[int], float]) -> int:
        """Number of rows, with `length` of a shard where the segment goes to its end."""
        if self.rows is not None:
            return len(self.rows)
        if self.stop is not None:
            return self.stop - self.start
        return max(int(length(self.shard)) - self.start, 0)

    def split(self, count: int) -> tuple[Segment, Segment]:
        """The first `count` rows, and the others."""
        if self.rows is None:
            middle = self.start + count
            return replace(self, stop=middle), replace(self, start=middle)
        middle = self.rows[count]
        first = replace(self, stop=middle, rows=self.rows[:count])
        return first, replace(self, start=middle, rows=self.rows[count:])

    def after(self, row: int, entry: Entry) -> Segment:
        """What is left from `row` on, reached from `entry`."""
        rows = None if self.rows is None else self.rows[bisect_left(self.rows, row) :]
        return replace(self, start=row, entry=entry, rows=rows)

    def to_json(self) -> list[Any]:
        return [self.shard, self.start, self.stop, *self.entry, None if self.rows is None else list(self.rows)]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Segment:
        shard, start, stop, row, offset, rows = value
        return cls(shard, start, stop, Entry(row, offset), None if rows is None else tuple(rows))


def close(segments: Sequence[Segment], lengths: Mapping[int, int]) -> list[Segment]:
    """The segments that have rows, each ending with its shard where the length of that is known."""
    closed = []
    for segment in segments:
        length = lengths.get(segment.shard)
        if length is not None and segment.rows is None:
            segment = replace(segment, stop=length if segment.stop is None else min(segment.stop, length))
        if segment.stop is None or segment.count(float) > 0:
            closed.append(segment)
    return closed


def is_exact(segment: Segment, lengths: Mapping[int, int]) -> bool:
    """Whether it is certain that the rows of a segment exist."""
    return segment.rows is not None or segment.shard in lengths


def deal(
    segments: Sequence[Segment], rows: Sequence[int], needs: Sequence[int]
) -> tuple[list[list[Segment]], list[Segment]]:
    """Deal segments to readers, in order: each reader gets the next rows that it needs.

    A segment that lies across the border of two readers is split between its rows, so that every row has exactly one
    reader whatever the number and the size of the shards; only a shard at a border is opened by more than one.

    Args:
        segments (`Sequence[Segment]`): What is to be read.
        rows (`Sequence[int]`): Number of rows of each segment, possibly estimated.
        needs (`Sequence[int]`): Number of rows that each reader takes; together at most the sum of `rows`.

    Returns:
        `tuple[list[list[Segment]], list[Segment]]`: the share of each reader, and what nobody reads.
    """
    queue = [(segment, count) for segment, count in zip(segments, rows, strict=True)][::-1]
    shares: list[list[Segment]] = []
    for need in needs:
        share = []
        while need > 0 and queue:
            segment, count = queue.pop()
            if count > need:
                segment, rest = segment.split(need)
                queue.append((rest, count - need))
                count = need
            share.append(segment)
            need -= count
        shares.append(share)
    return shares, [segment for segment, _ in reversed(queue)]


def reader_needs(steps: int, batch_size: int, world_size: int, workers: int) -> list[int]:
    """Rows that each reader takes in `steps` steps (W·K,): worker k of a process makes batches k, k + K, ..."""
    turns = [len(range(worker, steps, workers)) for worker in range(workers)]
    return [batch_size * turn for turn in turns] * world_size
