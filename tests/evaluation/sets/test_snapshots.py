"""Sets from the Hub over HTTP: what is asked for, what is recorded, what is said when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Opens what it is told, with one process for all of it: the libraries take seconds to load.
SCRIPT = """
import json, sys
import huggingface_hub
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets import open_set
for step in sys.argv[1:]:
    spec, *options = step.split()
    huggingface_hub.constants.HF_HUB_OFFLINE = "offline" in options
    try:
        found = open_set(spec)
        found = found.train() if "train" in options else found
        said = [found.labels.tolist(), found.origin.to_dict(), len(found.images[0])]
    except InputError as error:
        said = str(error)
    print("SAID", json.dumps(said), flush=True)
"""


class Hub(ThreadingHTTPServer):
    """Data sets of the Hub, read only: `files` by path of the one data set `me/wds_tiny`."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked = files, []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(path)
        if "private" in path:
            self._answer(401, b"", {"X-Error-Message": "come?signature=SIGNATURE back"})
        elif path.startswith("/api/datasets/me/wds_tiny/revision/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json({"id": "me/wds_tiny", "sha": COMMIT, "siblings": siblings})
        elif path.startswith("/api/datasets/me/wds_tiny/tree/"):
            self._json(
                [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in self.server.files.items()]
            )
        elif (name := path.removeprefix(f"/datasets/me/wds_tiny/resolve/{COMMIT}/")) in self.server.files:
            data = self.server.files[name]
            self._answer(200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT})
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments) -> None:
        """Silence."""


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path, make_wds):
    folder = make_wds(tmp_path / "source", test=[[0, 1], [2]], train=[[1]])
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    server = Hub({**files, "other/large.bin": b"0" * 1000})
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def opened(hub: Hub, home: Path, *steps: str) -> list:
    """What a process that knows this Hub only says of sets."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *steps],
        capture_output=True,
        text=True,
        check=True,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_secret",
            "NO_PROXY": "127.0.0.1",
        },
    )
    return [json.loads(line.removeprefix("SAID ")) for line in done.stdout.splitlines() if line.startswith("SAID ")]


def test_sets_of_the_hub(hub, tmp_path, png):
    tiny, again, cut, train, none, private = opened(
        hub,
        tmp_path / "home",
        "me/wds_tiny@main",
        "me/wds_tiny offline",
        "me/wds_tiny offline train",
        "me/wds_tiny train",
        "me/wds_none",
        "me/wds_private",
    )
    labels, origin, size = tiny
    assert labels == [0, 1, 2] and size == len(png(0))
    assert (origin["hub_id"], origin["revision"], origin["split"]) == ("me/wds_tiny", COMMIT, "test")
    assert again == tiny
    # Tars of a split are fetched when they are asked for, and nothing else is.
    fetched = {path.rpartition(COMMIT + "/")[2] for path in hub.asked if "/resolve/" in path}
    texts = {"classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt", "train/nshards.txt"}
    assert fetched == {*texts, "test/0.tar", "test/1.tar", "train/0.tar"}
    assert train[0] == [1] and train[1]["split"] == "train"
    assert "train" in cut
    for message, spec in ((none, "me/wds_none"), (private, "me/wds_private")):
        assert message.startswith(f"{spec}: the Hub does not give this data set (") and "hf auth login" in message
    for message in (cut, none, private):
        assert "\n" not in message and "SIGNATURE" not in message and "hf_secret" not in message
