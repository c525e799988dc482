"""A stream: shards that are read forwards, and which rows of them an epoch consists of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ncu_hf.data.records import Skipped
from ncu_hf.data.shards.base import Shard
from ncu_hf.errors import InputError

# (index of a shard, first row, row behind the last one or None for the end of the shard)
Part = tuple[int, int, int | None]

# Taken where nothing tells how long a shard is: WebDataset writers put 1,000 to 10,000 samples into a tar.
_GUESSED_ROWS = 5000
# How many shards are tried where something is to be learned from the first one: it may be empty or broken.
FIRST_SHARDS = 3


class StreamSource:
    """Image-text pairs that can only be read forwards, shard by shard.

    Args:
        shards (`Sequence[Shard]`): The same ones in the same order on every process.
        name, format, fingerprint, revision: See [`PairSource`].
        parts (`Sequence[Part]`, *optional*): What an epoch consists of; by default every shard as a whole.
        total_rows (`int`, *optional*): About how many rows all shards have together, as a card or a user states it.
        first_rows (`float`, *optional*): About how many rows the first shard has, if that has been found already.
        subset (`dict`, *optional*): How the parts were chosen, for the description.

    Attributes:
        problems (`list[Skipped]`): Faults that were found while the source was opened.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        name: str,
        format: str,
        fingerprint: str,
        revision: str | None = None,
        parts: Sequence[Part] | None = None,
        total_rows: int | None = None,
        first_rows: float | None = None,
        subset: dict[str, Any] | None = None,
    ):
        self.shards, self.name, self.format = list(shards), name, format
        self.fingerprint, self.revision = fingerprint, revision
        self.total_rows, self.first_rows, self.subset = total_rows, first_rows, subset
        self.parts: list[Part] = [(i, 0, None) for i in range(len(self.shards))] if parts is None else list(parts)
        self.problems: list[Skipped] = []

    def estimated_rows(self, shard: int) -> float:
        """Rows of a shard: as known, else its share by size of the total, else by the density of the first shard."""
        rows = self.shards[shard].rows
        return self._weight(shard) * self._rows_a_weight if rows is None else rows

    def _weight(self, shard: int) -> float:
        return float(self.shards[shard].size or 0) if self._sized else 1.0

    @cached_property
    def _sized(self) -> bool:
        return all(shard.size for shard in self.shards)

    @cached_property
    def _rows_a_weight(self) -> float:
        if self.total_rows is not None:
            return self.total_rows / sum(self._weight(i) for i in range(len(self.shards)))
        if self.first_rows:
            return self.first_rows / self._weight(0)
        for index, shard in enumerate(self.shards[:FIRST_SHARDS]):
            if estimate := shard.estimate_rows():
                return estimate / self._weight(index)
        return _GUESSED_ROWS / self._weight(0)

    @property
    def rows(self) -> int | None:
        """`int`: rows of an epoch; `None` where the length of a shard that is read to its end is not known."""
        stops = [self.shards[shard].rows if stop is None else stop for shard, _, stop in self.parts]
        if None in stops:
            return None
        return sum(stop - first for stop, (_, first, _) in zip(stops, self.parts, strict=True))

    @property
    def expected_rows(self) -> int | None:
        """`int`: rows of an epoch, exactly or as the stated total lets expect; `None` if nothing tells them."""
        if self.rows is not None or self.total_rows is None:
            return self.rows
        ends = [self.estimated_rows(shard) if stop is None else stop for shard, _, stop in self.parts]
        return round(sum(end - first for end, (_, first, _) in zip(ends, self.parts, strict=True)))

    def captions(self) -> list[Any]:
        """A stream is not read whole for its captions.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.name}: a tokenizer cannot be trained on streamed captions; name one with --tokenizer.")

    @property
    def description(self) -> dict[str, Any]:
        """`dict`: what a model card prints."""
        described = {
            "name": self.name,
            "format": self.format,
            "rows": self.rows,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
        }
        return described if self.subset is None else {**described, "subset": self.subset}
