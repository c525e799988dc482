"""Where a stream stands: enough to go on exactly, on as many processes and workers as before or on others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ncu_hf.data.loader.reader import Cursor, ReaderKey, rest_of
from ncu_hf.data.loader.sharding import Segment, close, deal, is_exact, reader_needs
from ncu_hf.data.loader.split import Split
from ncu_hf.data.order import segment_order
from ncu_hf.data.records import Skipped
from ncu_hf.data.sources.stream_source import StreamSource


@dataclass
class Round:
    """What the readers have been dealt, and how far they are.

    Args:
        number (`int`): Of the round in its epoch.
        steps (`int`, *optional*): Global batches of the round; `None`: until one process cannot fill its batch.
        done (`int`): How many of them have been made.
        layout (`tuple[int, int, int]`): B, W and readers a process.
        shares (`list[list[Segment]]`): Of each reader, those of process 0 first.
        spare (`list[Segment]`): What nobody reads in this round.
        cursors (`list[Cursor]`): Of each reader.
    """

    number: int
    steps: int | None
    done: int
    layout: tuple[int, int, int]
    shares: list[list[Segment]]
    spare: list[Segment]
    cursors: list[Cursor]

    def readers_of(self, rank: int) -> range:
        """Numbers of the readers of a process."""
        readers = self.layout[2]
        return range(rank * readers, (rank + 1) * readers)

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "steps": self.steps,
            "done": self.done,
            "layout": list(self.layout),
            "shares": [[segment.to_json() for segment in share] for share in self.shares],
            "spare": [segment.to_json() for segment in self.spare],
            "cursors": [cursor.to_json() for cursor in self.cursors],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Round:
        return cls(
            value["number"],
            value["steps"],
            value["done"],
            tuple(value["layout"]),
            [[Segment.from_json(segment) for segment in share] for share in value["shares"]],
            [Segment.from_json(segment) for segment in value["spare"]],
            [Cursor.from_json(cursor) for cursor in value["cursors"]],
        )


@dataclass
class StreamState:
    """Position in a stream.

    Args:
        fingerprint (`str`): Of the data that it belongs to.
        seed (`int`): Of the order.
        epoch (`int`): From 0 on.
        steps (`int`): Global batches that this epoch has made, in all its rounds.
        lengths (`dict[int, int]`): Rows of the shards, as far as they are known.
        problems (`list[Skipped]`): Shards that are not whole, found since the last batch that told some.
        round (`Round`): The current one.
    """

    fingerprint: str
    seed: int
    epoch: int
    steps: int
    lengths: dict[int, int]
    problems: list[Skipped]
    round: Round

    @classmethod
    def first(cls, source: StreamSource, split: Split, lengths: dict[int, int]) -> StreamState:
        """The beginning of the data."""
        nothing = Round(0, 0, 0, (0, 0, 0), [], [], [])
        state = cls(source.fingerprint, split.seed, 0, 0, lengths, [], nothing)
        state.round = plan_round(state, source, split, state.whole(source), 0)
        return state

    def adapted(self, source: StreamSource, split: Split) -> StreamState:
        """The same position, for the processes and workers that there are now."""
        if self.round.layout != layout(split):
            self.round = plan_round(self, source, split, self.rest(), self.round.number + 1)
        return self

    def key(self, reader: int) -> ReaderKey:
        """Of the order of a reader of the current round."""
        return ReaderKey(self.seed, self.epoch, self.round.number, reader)

    def whole(self, source: StreamSource) -> list[Segment]:
        """What an epoch consists of."""
        return close([Segment(shard, first, stop) for shard, first, stop in source.parts], self.lengths)

    def rows(self, source: StreamSource) -> int | None:
        """Rows of an epoch; `None` while a length is not known."""
        segments = self.whole(source)
        if not all(is_exact(segment, self.lengths) for segment in segments):
            return None
        return sum(segment.count(float) for segment in segments)

    def estimator(self, source: StreamSource) -> Callable[[int], float]:
        """Rows of a shard: as known, else as its size lets expect from those that are known."""
        sizes = {i: source.shards[i].size for i in self.lengths}
        sized = sum(size for size in sizes.values() if size)
        rows = sum(self.lengths[i] for i, size in sizes.items() if size)

        def estimate(shard: int) -> float:
            if shard in self.lengths:
                return self.lengths[shard]
            size = source.shards[shard].size
            return size * rows / sized if size and sized else source.estimated_rows(shard)

        return estimate

    def rest(self) -> list[Segment]:
        """What is left of the epoch."""
        shares = zip(self.round.shares, self.round.cursors, strict=True)
        left = [s for i, (share, cursor) in enumerate(shares) for s in rest_of(share, cursor, self.key(i))]
        return close([*left, *self.round.spare], self.lengths)

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "epoch": self.epoch,
            "steps": self.steps,
            "lengths": {str(shard): rows for shard, rows in self.lengths.items()},
            "problems": [list(problem) for problem in self.problems],
            "round": self.round.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StreamState:
        lengths = {int(shard): rows for shard, rows in value["lengths"].items()}
        plain = {name: value[name] for name in ("fingerprint", "seed", "epoch", "steps")}
        problems = [Skipped(*problem) for problem in value["problems"]]
        return cls(**plain, lengths=lengths, problems=problems, round=Round.from_json(value["round"]))


def layout(split: Split) -> tuple[int, int, int]:
    """B, W and readers a process."""
    return split.batch_size, split.world_size, max(split.workers, 1)


def plan_round(
    state: StreamState, source: StreamSource, split: Split, segments: Sequence[Segment], number: int
) -> Round:
    """Deal segments to the readers of all processes, in an order keyed by (seed, epoch, round).

    Exactly, where every length is known; else by estimates, which cost time where they are wrong, not rows.
    """
    segments = [segments[i] for i in segment_order(len(segments), state.seed, state.epoch, number)]
    exact = all(is_exact(segment, state.lengths) for segment in segments)
    estimate = state.estimator(source)
    rows = [max(segment.count(estimate), 1) for segment in segments]
    steps = sum(rows) // split.global_batch
    shape = layout(split)
    shares, spare = deal(segments, rows, reader_needs(steps, *shape))
    return Round(number, steps if exact else None, 0, shape, shares, spare, [Cursor() for _ in shares])
