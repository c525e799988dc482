"""Files that are read over HTTP: every fault of a network is met here, and no byte is wrong, lost or given twice."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import unquote

from ncu_hf.data.network.http_client import HTTP_ERROR as HTTP_ERROR
from ncu_hf.data.network.http_client import Answer, Endpoint, Fault, Patience, refused, request
from ncu_hf.errors import InputError, TrainingStopped

_BUFFER = 2**20
# A gap of this many bytes costs less to read and drop than a new request.
_SHORT_GAP = 2**20
_SIZE_THREADS = 16


@dataclass(frozen=True)
class RemoteFile(Endpoint):
    """A [`~ncu_hf.data.files.Location`] behind an http(s) URL.

    Args:
        url (`str`): Where to ask, each time anew: it may redirect to a signed URL that expires.
        headers, timeout: See [`Endpoint`].
        size (`int`, *optional*): Bytes, if a listing told it. The server must agree.
        name (`str`): For reports; the last part of the path of `url` if not given.
    """

    size: int | None = None
    name: str = ""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "name", self.name or unquote(self.address.rstrip("/").rpartition("/")[2]))

    def open(self) -> BinaryIO:
        """A new handle at byte 0, buffered, readable and seekable; nothing is sent before the first read.

        Reads of the handle raise `InputError` if the server refuses the file, and `TrainingStopped` if the file
        changes meanwhile or no new byte comes for `timeout` seconds. Everything else is tried again.
        """
        return io.BufferedReader(_Reader(self), _BUFFER)


def remote_sizes(
    urls: Sequence[str], headers: Mapping[str, str] | None = None, timeout: float = 120.0
) -> list[int | None]:
    """Sizes of files, asked for side by side; nothing is downloaded.

    Args:
        urls (`Sequence[str]`): http(s) URLs.
        headers (`Mapping[str, str]`, *optional*): Sent with each request.
        timeout (`float`): Seconds without an answer after which it stops.

    Returns:
        `list[int | None]`: Bytes; `None` where the server does not tell.

    Raises:
        InputError: the server refuses a file.
        TrainingStopped: a server does not answer.
    """
    files = [Endpoint(url, headers, timeout=timeout) for url in urls]
    with ThreadPoolExecutor(_SIZE_THREADS) as pool:
        return list(pool.map(_remote_size, files))


def _remote_size(endpoint: Endpoint) -> int | None:
    patience = Patience(endpoint)
    while True:
        try:
            return _ask_size(endpoint)
        except Fault as fault:
            patience.wait(fault)


def _ask_size(endpoint: Endpoint) -> int | None:
    with closing(request(endpoint, "HEAD")) as answer:
        if answer.status in (404, 410):
            raise refused(endpoint, answer.status)
        if answer.status == 200 and answer.total is not None:
            return answer.total
    # Not every server answers HEAD, and a URL may be signed for GET alone.
    with closing(request(endpoint, "GET", "0-0")) as answer:
        if answer.status not in (200, 206, 416):
            raise refused(endpoint, answer.status)
        return answer.total


class _Reader(io.RawIOBase):
    """Reads a remote file forwards over one answer, and asks anew where that does not lead on."""

    def __init__(self, file: RemoteFile):
        self._file, self._position, self._total = file, 0, file.size
        self._identity: str | None = None
        self._answer: Answer | None = None
        self._process = os.getpid()
        self._ranges = True  # False once the server has sent the whole file though a range was asked for.

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += self._size()
        elif whence == io.SEEK_CUR:
            offset += self._position
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        patience = Patience(self._file)
        while len(target):
            try:
                piece = self._next(len(target), patience)
            except Fault as fault:
                self._drop()
                patience.wait(fault, self._position)
                continue
            if piece is not None:
                target[: len(piece)] = piece
                self._position += len(piece)
                return len(piece)
        return 0

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _next(self, limit: int, patience: Patience) -> memoryview | None:
        """Bytes at the position, none at the end of the file; `None` after bytes that lie before it were dropped."""
        answer = self._connected()
        if answer is None:
            return memoryview(b"")
        gap = self._position - answer.place
        piece = answer.take(gap or limit)
        if self._total is not None and answer.place > self._total:
            raise self._changed(f"more than its {self._total} bytes")
        if not piece:
            return self._ended(answer)
        patience.reached(answer.place)
        return None if gap else piece

    def _ended(self, answer: Answer) -> memoryview:
        self._drop()
        if self._total is None:
            self._total = answer.place
        if answer.place < self._total:
            raise Fault("the answer ends early")
        return memoryview(b"")

    def _connected(self) -> Answer | None:
        """An answer from which the position can be reached; `None` at the end of the file."""
        if self._process != os.getpid():  # A fork: the connection belongs to the parent.
            self._drop()
            self._process = os.getpid()
        if self._answer is not None:
            gap = self._position - self._answer.place
            if gap == 0 or (gap > 0 and (gap <= _SHORT_GAP or not self._ranges)):
                return self._answer
        self._drop()
        if self._total is None or self._position < self._total:
            self._answer = self._ask(self._position)
        return self._answer

    def _ask(self, start: int) -> Answer | None:
        """A checked answer from `start` or from byte 0 on; `None` if the file ends before `start`."""
        answer = request(self._file, "GET", f"{start}-" if start else None)
        try:
            if self._check(answer, start):
                return answer
        except BaseException:
            answer.close()
            raise
        answer.close()
        return None

    def _check(self, answer: Answer, start: int) -> bool:
        """Whether an answer gives bytes. It must be of the same file as earlier ones, and lead to byte `start`."""
        if answer.status not in (200, 206, 416):
            raise refused(self._file, answer.status)
        if answer.total is not None and self._total not in (None, answer.total):
            raise self._changed(f"{self._total} bytes before, {answer.total} now")
        if answer.identity is not None and self._identity not in (None, answer.identity):
            raise self._changed("another ETag")
        if answer.status == 416 and (answer.total is None or start < answer.total):
            raise refused(self._file, 416)
        if answer.encoding:
            raise InputError(f"{self._file.address}: the server compresses the file. Switch that off for it.")
        if answer.status == 206 and answer.place != start:
            raise Fault("the server sends another range than the one asked for")
        self._total = self._total if answer.total is None else answer.total
        self._identity = answer.identity or self._identity
        if start:
            self._ranges = answer.status != 200
        return answer.status != 416

    def _changed(self, how: str) -> TrainingStopped:
        return TrainingStopped(
            f"{self._file.address}: the file changed while it was read ({how}). Use a fixed revision of the data, and "
            "start again."
        )

    def _size(self) -> int:
        if self._total is None:
            self._total = _remote_size(self._file)
        if self._total is None:
            raise InputError(f"{self._file.address}: the server does not tell the file's size. Download the file.")
        return self._total

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
