"""WebDataset tars on disk: an index of their headers, then random access by seek."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ncu_hf.data.decoding import MAX_CAPTION_BYTES, MAX_IMAGE_BYTES
from ncu_hf.data.files import LocalFile, fingerprint_files, fingerprint_text
from ncu_hf.data.records import PairSource, Record
from ncu_hf.data.shards.tar_headers import scan_tar
from ncu_hf.data.shards.tar_samples import (
    MAX_JSON_BYTES,
    Place,
    Sample,
    TarLayout,
    json_fields,
)
from ncu_hf.data.sources.tables import MISMATCHED_COLUMN, parse_truth
from ncu_hf.errors import InputError, nearest

_NONE = Place(0, -1)  # of a member that is not there


class TarSource(PairSource):
    """Samples of WebDataset tars.

    A field `mismatched` of a sample's `.json` is taken as ground truth if the first sample has one.

    Args:
        paths (`list[Path]`): Uncompressed tars.
        name (`str`): What the user named.
        image_column, caption_column (`str`): See [`TarLayout`].
        caption_bytes (`int`, *optional*): Most that is read of a caption member.
        class_column (`str`, *optional*): Field of the `.json` with the class of a sample.
    """

    format = "webdataset"

    def __init__(
        self,
        paths: list[Path],
        name: str,
        image_column: str,
        caption_column: str,
        caption_bytes: int = MAX_CAPTION_BYTES + 1,
        class_column: str | None = None,
    ):
        self.name, self.problems, self._paths, self._caption_bytes = name, [], paths, caption_bytes
        self._class_column = class_column
        self._layout = TarLayout(image_column, caption_column)
        self.fingerprint = fingerprint_text(fingerprint_files(paths), image_column, caption_column)
        keys, places, tars = [], [], []
        for number, path in enumerate(paths):
            for sample in self._scan(path):
                keys.append(sample.key)
                parts = self._layout.image_in(sample.members), self._layout.caption_in(sample.members), "json"
                places.append([value for part in parts for value in sample.members.get(part, _NONE)])
                tars.append(number)
                if len(keys) == 1:
                    self._check_first(path, sample)
        if not keys:
            fault = f"; {self.problems[0].shard}: {self.problems[0].reason}" if self.problems else ""
            raise InputError(
                f"{name}: no sample in {len(paths)} tar(s){fault}. Expected uncompressed tars with members like "
                "0001.jpg and 0001.txt."
            )
        # Compact columns, not Python objects: an index of millions is shared with the workers without being copied.
        self._keys = pa.array([key.encode("utf-8", "surrogateescape") for key in keys], pa.large_binary())
        self._places = np.array(places, dtype=np.int64)  # (samples, 6): offset and size of image, text, json
        self._tars = np.array(tars, dtype=np.int32)

    def _scan(self, path: Path) -> Iterator[Sample]:
        location = LocalFile(path)
        with location.open() as handle:
            yield from scan_tar(handle, location.name, location.size, self._layout, self.problems)

    def _check_first(self, path: Path, sample: Sample) -> None:
        """A misspelt column shows in the first sample: name what it has."""
        fields = self._json(path, sample.members.get("json", _NONE))
        self._has_truth = MISMATCHED_COLUMN in fields
        self._layout.check(str(path), sample.members, fields)
        if self._class_column is not None and self._class_column not in fields:
            raise InputError(
                f"{path}: no json field {self._class_column!r} in the first sample (--noise_class_column)."
                f"{nearest(self._class_column, fields)} Fields: {', '.join(fields) or 'none'}."
            )

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        path = self._paths[self._tars[index]]
        image, _, json_place = self._places[index].reshape(3, 2).tolist()
        truth = parse_truth(self._json(path, json_place).get(MISMATCHED_COLUMN)) if self._has_truth else None
        return Record(self.key_at(index), _read(path, image, MAX_IMAGE_BYTES + 1), self._caption_at(index), truth)

    def key_at(self, index: int) -> str:
        """Key of a sample; nothing is read."""
        return self._keys[index].as_py().decode("utf-8", "replace")

    def _caption_at(self, index: int) -> Any:
        path = self._paths[self._tars[index]]
        _, text, json_place = self._places[index].reshape(3, 2).tolist()
        stored = _read(path, text, self._caption_bytes)
        return self._json(path, json_place).get(self._layout.caption_column) if stored is None else stored

    def _json(self, path: Path, place: tuple[int, int]) -> dict[str, Any]:
        return json_fields(_read(path, place, MAX_JSON_BYTES))

    def shard_of(self, index: int) -> str:
        return self._paths[self._tars[index]].name

    def captions(self) -> list[Any]:
        return [self._caption_at(i) for i in range(len(self))]

    def keys(self) -> list[str]:
        return [self.key_at(i) for i in range(len(self))]

    def classes(self) -> list[str]:
        if self._class_column is None:
            return super().classes()
        places = zip(self._tars.tolist(), self._places[:, 4:].tolist(), strict=True)
        return [str(self._json(self._paths[tar], place).get(self._class_column)) for tar, place in places]


def _read(path: Path, place: tuple[int, int], limit: int) -> bytes | None:
    """At most `limit` bytes of a member, None if it is not there.

    The file is opened for each read (some 20 microseconds): no handle is shared between processes, none leaks.
    """
    offset, size = place
    if size < 0:
        return None
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(min(size, limit))
