"""WebDataset tars on disk: an index of their headers, then random access by seek. Nothing is ever unpacked."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ncu_hf.data.decoding import MAX_CAPTION_BYTES, MAX_IMAGE_BYTES
from ncu_hf.data.files import fingerprint_files, fingerprint_text
from ncu_hf.data.records import PairSource, Record, Skipped
from ncu_hf.data.tables import MISMATCHED_COLUMN, parse_truth
from ncu_hf.errors import InputError, nearest

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
DEFAULT_IMAGE, DEFAULT_CAPTION = "image_path", "text_content"
_BLOCK = 512
_MAX_JSON_BYTES = 2**22
_NONE = (0, -1)  # (offset, size) of a member that is not there


class _TarFault(Exception):
    """The archive is not whole from some place on."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass
class _Sample:
    """Members of one sample: extension -> (offset, size) in the archive."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def scan_tar(path: Path, problems: list[Skipped]) -> Iterator[_Sample]:
    """Samples of a tar, from its headers: consecutive members with one key (path up to the first dot of its name).

    An archive that is cut or damaged gives the samples before that place, and an entry in `problems`.
    """
    size = path.stat().st_size
    sample: _Sample | None = None
    try:
        with tarfile.open(path, "r:") as archive:
            for key, extension, place in _members(archive, size):
                # An extension that comes again starts a new sample: nothing is overwritten.
                if sample is not None and (sample.key != key or extension in sample.members):
                    yield sample
                    sample = None
                sample = sample or _Sample(key)
                sample.members[extension] = place
    except _TarFault as fault:
        problems.append(Skipped("", path.name, fault.reason))
    except (tarfile.TarError, EOFError, ValueError):
        problems.append(Skipped("", path.name, "damaged_archive"))
    if sample is not None:
        yield sample


def _members(archive: tarfile.TarFile, size: int) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """(key, extension, (offset, size)) of the regular files that lie wholly inside the archive.

    `tarfile` takes a header that is cut or damaged for the end of the archive; here it is a fault.
    """
    last, end = -1, 0
    while (member := archive.next()) is not None:
        archive.members.clear()  # tarfile would keep every header in memory
        if member.offset <= last or member.size < 0:
            raise _TarFault("damaged_archive")
        last, end = member.offset, archive.offset
        folder, _, name = member.name.rpartition("/")
        if not member.isreg() or member.issparse() or name.startswith(".") or "." not in name:
            continue
        if member.offset_data + member.size > size:
            raise _TarFault("truncated_archive")
        stem, _, extension = name.partition(".")
        yield f"{folder}/{stem}" if folder else stem, extension.lower(), (member.offset_data, member.size)
    archive.fileobj.seek(end)
    block = archive.fileobj.read(_BLOCK)
    if block != bytes(_BLOCK):
        raise _TarFault("truncated_archive" if len(block) < _BLOCK else "damaged_archive")


class TarSource(PairSource):
    """Samples of WebDataset tars.

    The image is the member called `image_column` (an extension), by default the first one with an image extension.
    The caption is the member called `caption_column` (an extension; by default `txt`), else the field of that name of
    the sample's `.json`. A field `mismatched` of the `.json` is taken as ground truth if the first sample has one.

    Args:
        paths (`list[Path]`): Uncompressed tars.
        name (`str`): What the user named.
        image_column, caption_column (`str`): See above.
    """

    format = "webdataset"

    def __init__(self, paths: list[Path], name: str, image_column: str, caption_column: str):
        self.name, self.problems, self._paths = name, [], paths
        self._image = None if image_column == DEFAULT_IMAGE else image_column.lower()
        self._caption = caption_column
        self.fingerprint = fingerprint_text(fingerprint_files(paths), image_column, caption_column)
        keys, places, tars = [], [], []
        for number, path in enumerate(paths):
            for sample in scan_tar(path, self.problems):
                keys.append(sample.key)
                places.append([*self._image_of(sample), *self._text_of(sample), *sample.members.get("json", _NONE)])
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

    def _image_of(self, sample: _Sample) -> tuple[int, int]:
        if self._image is not None:
            return sample.members.get(self._image, _NONE)
        return next((place for ext, place in sample.members.items() if ext.split(".")[-1] in IMAGE_EXTENSIONS), _NONE)

    def _text_of(self, sample: _Sample) -> tuple[int, int]:
        place = sample.members.get(self._caption.lower(), _NONE)
        if place is _NONE and self._caption == DEFAULT_CAPTION:
            place = sample.members.get("txt", _NONE)
        return place

    def _check_first(self, path: Path, sample: _Sample) -> None:
        """A misspelt column shows in the first sample: name what it has."""
        fields = self._json(path, sample.members.get("json", _NONE))
        self._has_truth = MISMATCHED_COLUMN in fields
        known = [*sample.members, *fields]
        if self._image is not None and self._image not in sample.members:
            raise InputError(
                f"{path}: no member .{self._image} in the first sample (--image_column)."
                f"{nearest(self._image, sample.members)} Members: {', '.join(sample.members)}."
            )
        if self._text_of(sample) is _NONE and self._caption not in fields and self._caption != DEFAULT_CAPTION:
            raise InputError(
                f"{path}: neither a member nor a json field {self._caption!r} in the first sample (--caption_column)."
                f"{nearest(self._caption, known)} Members and fields: {', '.join(known)}."
            )

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        path = self._paths[self._tars[index]]
        image, _, json_place = self._places[index].reshape(3, 2).tolist()
        truth = parse_truth(self._json(path, json_place).get(MISMATCHED_COLUMN)) if self._has_truth else None
        key = self._keys[index].as_py().decode("utf-8", "replace")
        return Record(key, _read(path, image, MAX_IMAGE_BYTES + 1), self._caption_at(index), truth)

    def _caption_at(self, index: int) -> Any:
        path = self._paths[self._tars[index]]
        _, text, json_place = self._places[index].reshape(3, 2).tolist()
        stored = _read(path, text, MAX_CAPTION_BYTES + 1)
        return self._json(path, json_place).get(self._caption) if stored is None else stored

    def _json(self, path: Path, place: tuple[int, int]) -> dict[str, Any]:
        """Fields of a sample's .json; empty if there is none, or it is broken (its caption is then missing)."""
        stored = _read(path, place, _MAX_JSON_BYTES)
        try:
            fields = json.loads(stored) if stored else {}
        except (ValueError, RecursionError):
            return {}
        return fields if isinstance(fields, dict) else {}

    def shard_of(self, index: int) -> str:
        return self._paths[self._tars[index]].name

    def captions(self) -> list[Any]:
        return [self._caption_at(i) for i in range(len(self))]


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
