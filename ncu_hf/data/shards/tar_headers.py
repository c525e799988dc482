"""Headers of WebDataset tars -> samples: which members belong together, where they lie. Nothing is ever unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ncu_hf.data.records import Skipped
from ncu_hf.data.shards.tar_samples import Place, Sample, TarLayout
from ncu_hf.errors import InputError

_BLOCK = 512
# Long names are kept in headers of their own, which `tarfile` loads whole, whatever size they claim.
_MAX_HEADER_BYTES = 2**20
_MAX_MEMBER_BYTES = 2**40
# Global headers hold for all later members, which a reader that starts behind them would not know.
_PLACE_FIELDS = ("path", "size")
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
# What `tarfile` raises on damaged headers.
_HEADER_ERRORS = (tarfile.TarError, EOFError, ValueError, LookupError, ArithmeticError, RecursionError)


class _TarFault(Exception):
    """The archive is not whole from some place on."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class _Member(NamedTuple):
    """A regular file of the archive; `header` is the offset of its first header block."""

    key: str
    extension: str
    header: int
    place: Place


class _Headers:
    """The file that `tarfile` sees: bounded reads, and the last one remembered.

    `tarfile` takes a header that is cut or damaged for the end of the archive, and tells neither from it.
    """

    def __init__(self, handle: BinaryIO, size: int | None):
        self._handle, self._size = handle, size
        self.block, self.short = b"", False
        self.end = handle.tell()  # of what was read well: the offset of the next header

    def tell(self) -> int:
        return self._handle.tell()

    def seek(self, position: int) -> None:
        """Go forwards to a byte that must be there."""
        if position < self.tell():
            raise _TarFault("damaged_archive")
        if self._size is not None and position >= self._size:
            raise _TarFault("truncated_archive")
        self._handle.seek(position)

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _MAX_HEADER_BYTES:
            raise _TarFault("damaged_archive")
        self.block = self._handle.read(count)
        self.short = len(self.block) < count
        return self.block

    def content(self, place: Place, count: int) -> bytes | None:
        """First `count` bytes of a member; `None` if the archive ends inside the member."""
        if self._size is not None and place.offset + place.size > self._size:
            return None
        self._handle.seek(place.offset)
        content = self._handle.read(count) if count else b""
        if len(content) < count:
            return None
        if count < place.size:
            self._handle.seek(place.offset + place.size - 1)
            if not self._handle.read(1):
                return None
        return content

    def members(self) -> Iterator[_Member]:
        """Regular files from here on. Whether their content lies inside the archive is not checked.

        Raises:
            _TarFault: the archive does not end as it should.
        """
        with tarfile.open(fileobj=self, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            last = -1
            for member in archive:
                archive.members.clear()  # tarfile would keep every header in memory
                misplaced = any(name in archive.pax_headers for name in _PLACE_FIELDS)
                forwards = last < member.offset < archive.offset <= member.offset + _MAX_MEMBER_BYTES
                if misplaced or member.size < 0 or not forwards:
                    raise _TarFault("damaged_archive")
                last = member.offset
                folder, _, name = member.name.rpartition("/")
                if member.isreg() and not member.issparse() and not name.startswith(".") and "." in name:
                    stem, _, extension = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    yield _Member(key, extension.lower(), member.offset, Place(member.offset_data, member.size))
                self.end = archive.offset if self._size is None else min(archive.offset, self._size)
        if self.block != bytes(_BLOCK):
            raise _TarFault("truncated_archive" if self.short else "damaged_archive")
        while rest := self._handle.read(_MAX_HEADER_BYTES):
            if any(rest):  # a hole, or a second archive: what follows would be lost silently
                raise _TarFault("damaged_archive")


def scan_tar(
    handle: BinaryIO,
    name: str,
    size: int | None,
    layout: TarLayout,
    problems: list[Skipped],
    skip: int | None = None,
) -> Iterator[Sample]:
    """Samples of an uncompressed tar from the handle's place (a member's header) on.

    The handle only goes forwards, and no byte is read twice. An archive that is cut or damaged gives the whole samples
    before that place, and an entry in `problems`.

    Args:
        handle (`BinaryIO`): Buffered and seekable.
        name (`str`): Of the archive, for reports.
        size (`int`, *optional*): Bytes of the archive.
        layout (`TarLayout`): Which members are of use.
        problems (`list[Skipped]`): Gets an entry if the archive is not whole.
        skip (`int`, *optional*): Contents are read from this sample on, by default none is.

    Raises:
        InputError: the archive is compressed.
    """
    headers = _Headers(handle, size)
    sample: Sample | None = None
    count, reason = 0, None
    try:
        for member in headers.members():
            # An extension that comes again starts a new sample: nothing is overwritten.
            if sample is not None and (sample.key != member.key or member.extension in sample.members):
                sample.end = member.header
                yield sample
                sample, count = None, count + 1
            sample = sample or Sample(member.key)
            sample.members[member.extension] = member.place
            if not _take(headers, sample, member, layout if skip is not None and count >= skip else None):
                sample, reason = None, "truncated_archive"
                break
    except InputError:  # of the handle
        raise
    except _TarFault as fault:
        reason = fault.reason
    except _HEADER_ERRORS:
        if headers.end == 0:
            _check_uncompressed(name, headers.block)
        reason = "truncated_archive" if headers.short else "damaged_archive"
    if reason is not None:
        problems.append(Skipped("", name, reason))
    if sample is not None and (reason is None or layout.is_whole(sample.members)):
        sample.end = headers.end
        yield sample


def _take(headers: _Headers, sample: Sample, member: _Member, layout: TarLayout | None) -> bool:
    """Read what `layout` needs of a sample's newest member. False if the archive ends inside it."""
    count = None if layout is None else layout.bytes_to_read(sample.members, member.extension)
    content = headers.content(member.place, count or 0)
    if content is not None and count is not None:
        sample.contents[member.extension] = content
    return content is not None


def _check_uncompressed(name: str, head: bytes) -> None:
    for magic, compression in _COMPRESSIONS.items():
        if head.startswith(magic):
            raise InputError(f"{name}: compressed with {compression}. Store the tar uncompressed: its images are.")
