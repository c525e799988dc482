"""Images of a set that are read when they are asked for, and what tells two sets of them apart."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ncu_hf.data import BadRecord, PairSource
from ncu_hf.data.files import fingerprint_text


class SourceImages(Sequence[bytes | str | None]):
    """Images of some records of a source; each access reads its record anew.

    Args:
        source (`PairSource`): Where they are.
        rows (`Sequence[int]`): The records, in the order of the images.
    """

    def __init__(self, source: PairSource, rows: Sequence[int]):
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes | str | None:
        """Encoded image or its path; `None` if the record has none.

        Raises:
            BadRecord: the source cannot read the record.
        """
        record = self._source[self._rows[index]]
        if record.fault is not None:
            raise BadRecord(record.fault)
        return record.image


def file_state(path: str | Path) -> tuple[int, str]:
    """Bytes of a file, -1 if it is not there; and what is another text as soon as its content may be another.

    The time of the last change of the inode is in it: a copy that keeps the modification time of its original changes
    it, and so does a permission to read.
    """
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return -1, ""
    return state.st_size, f"{state.st_mtime_ns} {state.st_ctime_ns}"


def stamp_files(paths: Iterable[str | Path]) -> str:
    """Hash of files as they are here: places, sizes, times of their last change, in order."""
    paths = [os.path.abspath(path) for path in paths]
    return fingerprint_text(*(part for path in paths for part in (path, *map(str, file_state(path)))))
