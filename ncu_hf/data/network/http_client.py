"""HTTP requests: which answers are final, which faults may pass, how long to wait before the next attempt."""

from __future__ import annotations

import email.utils
import importlib
import logging
import math
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ncu_hf.data.files import public_address
from ncu_hf.errors import InputError, TrainingStopped, one_line

logger = logging.getLogger(__name__)

# Base of the errors of the Hub's HTTP client, which is httpx or httpx2, depending on the release of huggingface_hub.
HTTP_ERROR = HfHubHTTPError.__bases__[0]
_http = importlib.import_module(HTTP_ERROR.__module__.partition(".")[0])
# Its lines "HTTP Request: GET ..." would show the signatures of signed URLs.
logging.getLogger(_http.__name__).setLevel(logging.WARNING)

# Seconds without a byte after which a connection counts as dead.
_RECEIVE_TIMEOUT = 30.0
# Longest wait, in seconds, that is drawn, and that a server can ask for: the Hub's limits count in windows of 300 s.
_LONGEST_BACKOFF, _LONGEST_RETRY_AFTER = 30.0, 300.0
_FIRST_BACKOFF = 0.5
_SECONDS_BETWEEN_WARNINGS = 30.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)$")
_RATE_LIMIT_RESET = re.compile(r";\s*t=(\d+)")
# Replaced in tests.
_clock, _sleep = time.monotonic, time.sleep


@dataclass(frozen=True)
class Endpoint:
    """A URL, what is sent to it, and how long to bear with it.

    Args:
        url (`str`): http(s) URL.
        headers (`Mapping[str, str]`, *optional*): Sent with each request. The HTTP client does not pass
            `Authorization` on to another host.
        timeout (`float`): Seconds without anything new after which the run stops. The default is twice the window of
            the Hub's rate limits.

    Raises:
        InputError: the URL or a header cannot be used.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False, hash=False)
    timeout: float = field(default=600.0, kw_only=True)

    def __post_init__(self):
        try:
            parts = urlsplit(self.url)
            host_fits = re.fullmatch(r"\S+", parts.hostname or "") is not None
            usable = parts.scheme in ("http", "https") and host_fits and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise InputError(f"{self.address}: not a usable URL. Give one like https://host/path/endpoint.tar.")
        for header, value in (self.headers or {}).items():
            if not (header.isascii() and value.isascii() and value.isprintable()):
                raise InputError(f"{self.address}: header {header!r} has characters that cannot be sent. Correct it.")

    @property
    def address(self) -> str:
        """`str`: The URL without what may be secret: user, password, query."""
        return public_address(self.url)


class Fault(Exception):
    """Something that may be gone the next time; `wait` is how many seconds the server asks for, 0 if it does not."""

    def __init__(self, what: str, wait: float = 0.0):
        super().__init__(what)
        self.wait = wait


class Patience:
    """Waits between attempts: exponential back-off with full jitter, as long as an endpoint grants."""

    _last_warning = -math.inf

    def __init__(self, endpoint: Endpoint):
        self._endpoint, self._furthest, self._since, self._failures = endpoint, 0, _clock(), 0

    def reached(self, place: int) -> None:
        """Start anew if no attempt has come as far as byte `place` before."""
        if place > self._furthest:
            self._furthest, self._since, self._failures = place, _clock(), 0

    def wait(self, fault: Fault, place: int = 0) -> None:
        """Sleep before the next attempt at byte `place`.

        Raises:
            TrainingStopped: the time is over.
        """
        left = self._since + self._endpoint.timeout - _clock()
        if left <= 0:
            raise TrainingStopped(
                f"{self._endpoint.address}: no new byte for {self._endpoint.timeout:g} s at byte {place} (last fault: "
                f"{fault}). Check the connection; the run can go on with --resume_from_checkpoint true."
            )
        backoff = random.uniform(0, min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(self._failures, 16)))
        seconds = min(left, backoff + min(fault.wait, _LONGEST_RETRY_AFTER))
        self._failures += 1
        if _clock() - Patience._last_warning >= _SECONDS_BETWEEN_WARNINGS:
            Patience._last_warning = _clock()
            logger.warning("%s, byte %d: %s; trying again in %.1f s.", self._endpoint.address, place, fault, seconds)
        _sleep(seconds)


class Answer:
    """The answer to one request, with a status that another attempt would not change.

    Attributes:
        status (`int`): 200, 206, or one that refuses.
        place (`int`): Where in the file the next byte of its body is.
        total (`int`, *optional*): Bytes of the whole file; `None` if the server does not tell.
        identity (`str`, *optional*): What stays the same while the file does; `None` if the server does not tell.
        encoding (`str`): Compression of the body; empty if there is none.
    """

    def __init__(self, response: Any, client: Any):
        self._response, self._client = response, client
        self._chunks: Iterator[bytes] | None = None
        self._rest = memoryview(b"")
        headers = response.headers
        self.status: int = response.status_code
        self.encoding: str = headers.get("content-encoding", "").replace("identity", "")
        self.place, self.total, self.identity = 0, None, None
        if self.status in (206, 416):
            self.place, self.total = _content_range(headers)
        elif self.status == 200 and not self.encoding and headers.get("content-length", "").isdecimal():
            self.total = int(headers["content-length"])
        if self.status in (200, 206):
            self.identity = _identity(response)

    def take(self, limit: int) -> memoryview:
        """The next bytes of the body, at most `limit` and at least one; none at its end.

        Raises:
            Fault: the connection breaks.
        """
        if self._chunks is None:
            self._chunks = self._response.iter_raw()
        while not self._rest:
            try:
                chunk = next(self._chunks, None)
            except (HTTP_ERROR, RuntimeError) as error:
                raise _fault(error, self._client) from None
            if chunk is None:
                return memoryview(b"")
            self._rest = memoryview(chunk)
        piece, self._rest = self._rest[:limit], self._rest[limit:]
        self.place += len(piece)
        return piece

    def close(self) -> None:
        """Close the connection, or keep it for other requests if the whole body was taken."""
        self._response.close()


def _content_range(headers: Mapping[str, str]) -> tuple[int, int | None]:
    """(first byte, or -1 if it is not told; bytes of the whole file)."""
    match = _CONTENT_RANGE.match(headers.get("content-range", ""))
    if match is None:
        return -1, None
    return int(match[1] or -1), None if match[2] == "*" else int(match[2])


def _identity(response: Any) -> str | None:
    """The content hash that the Hub tells before it redirects, or else a strong ETag."""
    for answer in (*response.history, response):
        if "x-linked-etag" in answer.headers:
            return answer.headers["x-linked-etag"]
    etag = response.headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else None


def request(endpoint: Endpoint, method: str, byte_range: str | None = None) -> Answer:
    """Send one request, follow redirects, and give the answer, open.

    Args:
        endpoint (`Endpoint`): Whom to ask.
        method (`str`): GET or HEAD.
        byte_range (`str`, *optional*): `"FIRST-LAST"` or `"FIRST-"`; the server may ignore it.

    Raises:
        Fault: no answer, or one that may be another the next time.
        InputError: the request cannot be sent.
    """
    headers = {**(endpoint.headers or {}), "Accept-Encoding": "identity"}
    if byte_range is not None:
        headers["Range"] = f"bytes={byte_range}"
    client = get_session()  # The library makes a new one in each process, after a fork too.
    timeout = min(_RECEIVE_TIMEOUT, endpoint.timeout)
    try:
        question = client.build_request(method, endpoint.url, headers=headers, timeout=timeout)
        response = client.send(question, stream=method != "HEAD", follow_redirects=True)
    except OfflineModeIsEnabled:
        raise InputError(f"{endpoint.address}: HF_HUB_OFFLINE forbids all requests. Unset it.") from None
    except _http.TooManyRedirects:
        raise InputError(f"{endpoint.address}: the server redirects in a circle. Check the address.") from None
    except (_http.InvalidURL, UnicodeError):
        raise InputError(f"{endpoint.address}: not a usable URL. Correct it.") from None
    except (HTTP_ERROR, RuntimeError) as error:
        raise _fault(error, client) from None
    status = response.status_code
    if status in (408, 425, 429) or (status >= 500 and status not in (501, 505)):
        response.close()
        raise Fault(f"the server answers {_phrase(status)}", asked_wait(response.headers))
    return Answer(response, client)


def _fault(error: Exception, client: Any) -> Fault:
    """What a failed request or receive stands for. Only messages of the system are shown: others may quote a header.

    A `RuntimeError` is a fault if another thread has closed the client, as the Hub library does when it cannot connect.
    """
    if isinstance(error, RuntimeError) and not client.is_closed:
        raise error
    if isinstance(error, _http.NetworkError):
        return Fault(f"{type(error).__name__}: {one_line(error)}")
    return Fault(type(error).__name__)


def asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks for: `Retry-After` (seconds or date), or the reset of the Hub's `RateLimit`."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    if text:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError):
            return 0.0
    reset = _RATE_LIMIT_RESET.search(headers.get("ratelimit", ""))
    return float(reset[1]) if reset else 0.0


def refused(endpoint: Endpoint, status: int) -> InputError:
    """The error for an answer that gives no bytes and would not the next time either."""
    remedies = {
        401: "Log in with `hf auth login`, or set HF_TOKEN.",
        403: "Check that your token may read it, and accept the terms of the data set if it has any.",
        404: "Check its spelling and the revision.",
        410: "The file has been taken away; leave it out.",
    }
    remedy = remedies.get(status, "Check the address.")
    return InputError(f"{endpoint.address}: the server answers {_phrase(status)}. {remedy}")


def _phrase(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)
