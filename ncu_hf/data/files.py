"""Which files a specification names, and a fingerprint of their content."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ncu_hf.errors import InputError

# Brace pattern of WebDataset: shards-{0000..0131}.tar
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_BRACE_FILES = 1_000_000
# A file's fingerprint covers its size and this much of its head and of its tail: large sets open in seconds.
_SAMPLE_BYTES = 2**20


class Location(Protocol):
    """A file that can be opened, wherever it is. Picklable, and safe to use in a process that was forked.

    Attributes:
        name (`str`): Last part of its path, for reports.
        size (`int`, *optional*): Bytes; `None` where that is not known.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def open(self) -> BinaryIO:
        """A new handle at byte 0: buffered, readable and seekable."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A [`Location`] on this machine; `label` is its name where the last part of the path would not tell it apart."""

    path: Path
    label: str = ""

    @property
    def name(self) -> str:
        """`str`: The label, or the last part of the path."""
        return self.label or self.path.name

    @property
    def size(self) -> int:
        """`int`: Bytes, as the file system tells them now."""
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise unreadable(self.path, error) from error

    def open(self) -> BinaryIO:
        """A new handle at byte 0."""
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise unreadable(self.path, error) from error


def local_files(paths: list[Path]) -> list[LocalFile]:
    """Files with names that differ: where two in different folders are called the same, with the folders in front."""
    if len({path.name for path in paths}) == len(paths):
        return [LocalFile(path) for path in paths]
    top = os.path.commonpath([path.parent for path in paths])
    return [LocalFile(path, os.path.relpath(path, top)) for path in paths]


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for a file that the system does not give."""
    return InputError(f"{path}: cannot be read ({error.strerror}). Restore it, or leave it out.")


def public_address(address: str) -> str:
    """A URL without what may be secret: user, password, query. Anything else stays as it is."""
    scheme, colon, rest = address.partition("://")
    if not colon:
        return address
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{colon}{host.rpartition('@')[2]}{slash}{path}"


def expand(spec: str) -> list[Path]:
    """Existing paths that a path, a glob or a brace pattern stands for, sorted by name; empty if there is none.

    Raises:
        InputError: a brace pattern names a file that does not exist (a set with a hole is a mistake).
    """
    spec = os.path.expanduser(spec)
    if os.path.exists(spec):
        return [Path(spec)]
    patterns = expand_braces(spec)
    if len(patterns) == 1 and patterns[0] == spec:
        return [Path(path) for path in sorted(glob.glob(spec, recursive=True))]
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            raise InputError(f"{spec}: {pattern} does not exist. Correct the range in braces.")
        paths += [Path(path) for path in found]
    return paths


def expand_braces(spec: str) -> list[str]:
    match = _BRACES.search(spec)
    if match is None:
        return [spec]
    first, last = match.group(1), match.group(2)
    if not 0 <= int(last) - int(first) < _MAX_BRACE_FILES:
        raise InputError(f"{spec}: the range in braces must go up, by fewer than {_MAX_BRACE_FILES} files.")
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    head, tail = spec[: match.start()], spec[match.end() :]
    return [rest for number in numbers for rest in expand_braces(f"{head}{number}{tail}")]


def fingerprint_files(paths: list[Path]) -> str:
    """Hash of names, sizes, heads and tails of files, the same on every machine and at every path."""
    digest = hashlib.sha256()
    for path in paths:
        location = LocalFile(path)
        size = location.size
        digest.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with location.open() as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def fingerprint_text(*parts: str) -> str:
    """Hash of a sequence of strings."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
