"""Parts of indexable sources: the first records, chosen ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from ncu_hf.data.decoding import clean_caption
from ncu_hf.data.files import fingerprint_text
from ncu_hf.data.records import BadRecord, PairSource, Record
from ncu_hf.errors import InputError


class ChosenRecords(PairSource):
    """Some records of a source.

    Args:
        source (`PairSource`): The source.
        rows (`np.ndarray`): Indices of the records, in the order that they are to have.
        told (`tuple[str, ...]`): What the choice depends on, for the fingerprint.
        subset (`dict`, *optional*): How they were chosen, for the description.
    """

    def __init__(
        self, source: PairSource, rows: np.ndarray, told: tuple[str, ...], subset: dict[str, Any] | None = None
    ):
        self._source, self._rows, self._subset = source, rows, subset
        copy_identity(self, source)
        self.fingerprint = fingerprint_text(source.fingerprint, *told)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._rows[index])]

    def shard_of(self, index: int) -> str:
        return self._source.shard_of(int(self._rows[index]))

    def captions(self) -> list[Any]:
        captions = self._source.captions()
        return [captions[row] for row in self._rows.tolist()]

    def keys(self) -> list[str]:
        keys = self._source.keys()
        return [keys[row] for row in self._rows.tolist()]

    def classes(self) -> list[str]:
        classes = self._source.classes()
        return [classes[row] for row in self._rows.tolist()]

    @property
    def description(self) -> dict[str, Any]:
        described = {**self._source.description, "rows": len(self), "fingerprint": self.fingerprint}
        return described if self._subset is None else {**described, "subset": self._subset}


def first_records(source: PairSource, limit: int) -> PairSource:
    """The first `limit` records of a source, or all where there are fewer."""
    if limit < 1:
        raise InputError(f"limit: {limit} records make no data. Give at least 1.")
    rows = min(limit, len(source))
    return ChosenRecords(source, np.arange(rows), ("first", str(rows)))


def is_usable(caption: Any) -> bool:
    """Whether training takes a caption."""
    try:
        clean_caption(caption)
    except BadRecord:
        return False
    return True


def copy_identity(view: PairSource, source: PairSource) -> None:
    """Let a view have the name of its source, and all else but the fingerprint."""
    view.name, view.format, view.revision, view.problems = source.name, source.format, source.revision, source.problems
