"""An HTTP server on this machine that misbehaves on demand, and retries that cost no time."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest

from ncu_hf.data.network import http_client

_PIECE = 2**18


@dataclass(frozen=True)
class Fault:
    """What one answer does wrong. `Fault()` does nothing wrong; `forever` keeps it for all further requests.

    Counts are of bytes of the answer's body. The length that is promised is the full one, whatever is sent.
    """

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)  # added, replaced, or (None) left out
    cut_after: int | None = None  # then the connection is closed
    reset_after: int | None = None  # then the connection is reset
    stall_after: int | None = None  # then nothing more comes
    drip: tuple[int, float] | None = None  # (bytes, seconds between them)
    ignore_range: bool = False
    forever: bool = False


@dataclass
class Request:
    """A request as it came; `sent` grows while its answer is sent."""

    method: str
    path: str
    range: str | None
    headers: dict[str, str]
    sent: int = 0


class FaultyServer(ThreadingHTTPServer):
    """Serves `files` (path without leading slash -> bytes); each request uses up the first of `faults[path]`."""

    Fault = Fault
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[Request] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        """The URL of a file."""
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def ranges(self, method: str = "GET") -> list[str | None]:
        """The ranges that were asked for, in order."""
        return [request.range for request in self.requests if request.method == method]

    def next_fault(self, path: str) -> Fault:
        with self.lock:
            faults = self.faults.get(path)
            if not faults:
                return Fault()
            return faults[0] if faults[0].forever else faults.pop(0)

    def handle_error(self, request, client_address):
        """Clients hang up all the time here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        path = self.path.lstrip("/").partition("?")[0]
        request = Request(self.command, self.path, self.headers["Range"], dict(self.headers))
        self.server.requests.append(request)
        fault = self.server.next_fault(path)
        status, headers, body = self._plan(path, fault)
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers, **fault.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(body, fault, request)

    do_HEAD = do_GET

    def _plan(self, path: str, fault: Fault) -> tuple[int, dict[str, str], memoryview]:
        if fault.status is not None or path not in self.server.files:
            return fault.status or 404, {}, memoryview(b"an answer that is not the file")
        body = memoryview(self.server.files[path])
        headers = {"ETag": f'"{len(body)}"', "Accept-Ranges": "bytes"}
        asked = re.match(r"bytes=(\d+)-(\d*)$", self.headers["Range"] or "")
        if asked is None or fault.ignore_range:
            return 200, headers, body
        start, stop = int(asked[1]), min(len(body), int(asked[2] or len(body)) + 1)
        if start >= len(body):
            return 416, {"Content-Range": f"bytes */{len(body)}"}, memoryview(b"")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return 206, headers, body[start:stop]

    def _send(self, body: memoryview, fault: Fault, request: Request) -> None:
        ends = [end for end in (fault.cut_after, fault.reset_after, fault.stall_after) if end is not None]
        end = min([len(body), *ends])
        step, pause = fault.drip or (_PIECE, 0)
        while request.sent < end:
            request.sent += self.wfile.write(body[request.sent : min(end, request.sent + step)])
            self.server.stopped.wait(pause)
        if fault.stall_after is not None:
            self.server.stopped.wait(60)
        if fault.reset_after is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if ends or "Content-Length" in fault.headers:
            self.close_connection = True

    def log_message(self, format: str, *arguments) -> None:
        """Silence."""


@pytest.fixture
def start_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], FaultyServer]]:
    """Start one more [`FaultyServer`]; this process and all that it starts may reach it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    servers: list[FaultyServer] = []

    def start() -> FaultyServer:
        servers.append(FaultyServer())
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    huggingface_hub.close_session()
    for server in servers:
        server.stopped.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def faulty_server(start_server: Callable[[], FaultyServer]) -> FaultyServer:
    """A server with `files`, `faults`, `requests`, `url(path)`, `ranges()` and the class `Fault`."""
    return start_server()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Waits between attempts, `waits`, are noted and take no time; a receive that stalls fails after 2 s."""
    clock = SimpleNamespace(waits=[], now=0.0)

    def wait(seconds: float) -> None:
        clock.waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(http_client, "_sleep", wait)
    monkeypatch.setattr(http_client, "_clock", lambda: clock.now)
    monkeypatch.setattr(http_client, "_RECEIVE_TIMEOUT", 2.0)
    monkeypatch.setattr(http_client.Patience, "_last_warning", -1e9)
    return clock
