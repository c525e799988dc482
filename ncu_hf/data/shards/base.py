"""A shard: a file of a stream that is read forwards, from any place that an earlier read has told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from ncu_hf.data.files import Location
from ncu_hf.data.records import Record, Skipped


class Entry(NamedTuple):
    """A place in a shard where reading can begin: row number and, for formats that need it, its byte offset."""

    row: int = 0
    offset: int = 0


BEGINNING = Entry()


class StoredRow(NamedTuple):
    """One row of a shard and the place behind it."""

    number: int
    record: Record
    following: Entry


class Shard(ABC):
    """One file of a stream. Its rows are numbered from 0 in stored order, whoever reads it and from where.

    A row that is there but cannot be read keeps its number and comes as a `Record` with a `fault`.

    Attributes:
        name (`str`): For reports.
        size (`int`, *optional*): Bytes; `None` where that is not known.
        rows (`int`, *optional*): Number of rows, where the format tells it without reading the shard.
    """

    name: str
    size: int | None
    rows: int | None

    @abstractmethod
    def read(self, start: Entry, first: int, problems: list[Skipped]) -> Iterator[StoredRow]:
        """Rows `first`, `first` + 1, ... to the end of the shard.

        Args:
            start (`Entry`): Where to begin, at or before row `first`; what lies between is passed over at the least
                cost that the format allows.
            first (`int`): Number of the first row to give.
            problems (`list[Skipped]`): Gets an entry if the shard is not whole.
        """

    @abstractmethod
    def count(self, start: Entry, problems: list[Skipped]) -> int:
        """Number of rows of the whole shard, found by reading from `start` on (as little as possible).

        Args:
            start (`Entry`): A place that is known.
            problems (`list[Skipped]`): Gets an entry if the shard is not whole: where its length is known, nobody
                reads it to its end again.
        """

    @abstractmethod
    def estimate_rows(self) -> float | None:
        """About how many rows the shard has, from its beginning alone; `None` where that tells nothing."""


class FileShard(Shard):
    """A shard that is one file.

    Args:
        location (`Location`): The file.
        rows (`int`, *optional*): Number of rows, if it is known.
    """

    def __init__(self, location: Location, rows: int | None):
        self.location, self.rows = location, rows

    @property
    def name(self) -> str:
        """`str`: Name of the file."""
        return self.location.name

    @property
    def size(self) -> int | None:
        """`int`, *optional*: Bytes of the file."""
        return self.location.size
