"""What the parts of the data layer hand to each other: a record, why one was left out, and what a source offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from ncu_hf.errors import InputError


class BadRecord(Exception):
    """A record that cannot be used. `reason` is one short word, e.g. `"truncated"`; health reports count by it."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Skipped(NamedTuple):
    """A record that was left out of its batch, or a fault of a shard as a whole (then `key` is empty)."""

    key: str
    shard: str
    reason: str


@dataclass(frozen=True)
class Record:
    """One image-text pair as it is stored: nothing is decoded, nothing is checked.

    Args:
        key (`str`): Names the pair in reports.
        image (`bytes` or `str` or `None`): Encoded image, or the path of its file; `None` if the row has none.
        caption (`Any`): The caption as stored; `decoding.clean_caption` decides whether it is one.
        mismatched (`bool`, *optional*): Ground truth: True if the caption is known not to belong to the image.
        fault (`str`, *optional*): Why the source could not read the pair (a reason, as in [`BadRecord`]).
    """

    key: str
    image: bytes | str | None
    caption: Any
    mismatched: bool | None = None
    fault: str | None = None


class Located(NamedTuple):
    """A record with its place: `epoch`, and `position` = (place in the epoch's order,) or (shard, row).

    `index` is its number in an indexable source, the same in every epoch; a stream has none.

    All randomness of the record is keyed by (seed, epoch, position), hence is the same for any number of workers
    and processes, and after a resume.
    """

    record: Record
    shard: str
    epoch: int
    position: tuple[int, ...]
    index: int | None = None


class PairSource(ABC):
    """Image-text pairs that can be indexed.

    Attributes:
        name (`str`): What the user named, without its folder.
        format (`str`): `csv`, `parquet`, `webdataset`, `folder` or `hub`.
        revision (`str`, *optional*): Commit of a Hub data set.
        fingerprint (`str`): Changes if the content or the columns change; the same on every machine.
        problems (`list[Skipped]`): Faults that were found while the source was opened, e.g. a tar that is cut.
    """

    name: str
    format: str
    revision: str | None = None
    fingerprint: str
    problems: list[Skipped]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    @abstractmethod
    def shard_of(self, index: int) -> str:
        """Name of the file that holds record `index`."""

    def captions(self) -> list[Any]:
        """All captions as stored, in order (no image is read where the format allows it)."""
        return [self[i].caption for i in range(len(self))]

    def keys(self) -> list[str]:
        """Keys of all records, in order (no image is read where the format allows it)."""
        return [self[i].key for i in range(len(self))]

    def classes(self) -> list[str]:
        """Class of every record, in order; what is missing is a class too.

        Raises:
            InputError: the source was not opened with a column of classes, or has no columns.
        """
        raise InputError(f"--noise_class_column: {self.name} ({self.format}) has no columns.")

    @property
    def description(self) -> dict[str, Any]:
        """`dict`: what a model card prints: name, format, rows, revision, fingerprint."""
        return {
            "name": self.name,
            "format": self.format,
            "rows": len(self),
            "revision": self.revision,
            "fingerprint": self.fingerprint,
        }
