"""Streams from a Hub and from plain URLs, both on a local server."""

from __future__ import annotations

import http.server
import io
import json
import re
import tarfile
import threading
from collections import Counter
from urllib.parse import unquote, urlsplit

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ncu_hf.data.network import http_client
from ncu_hf.data.shards.base import Entry
from ncu_hf.data.sources.open import check_readable, open_pairs
from ncu_hf.data.sources.remote import RemoteData, find_remote
from ncu_hf.data.sources.stream_source import StreamSource
from ncu_hf.errors import InputError, TrainingStopped

COMMIT = "0123456789" * 4
TOKEN = "hf_secret"
SAMPLES = 5
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: cc3m-train-*.tar
  - split: validation
    path: cc3m-validation-*.tar
---
"""


class FakeHub:
    """The read side of the Hub: data set info, listings in pages of `PAGE`, files with ranges."""

    PAGE = 1000

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.busy = 0
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                hub._answer(self)

            do_HEAD = do_POST = do_GET

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def _answer(self, request) -> None:
        url = urlsplit(request.path)
        path = unquote(url.path)
        self.requests.append((request.command, path))
        request.rfile.read(int(request.headers.get("Content-Length") or 0))
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path)
        plain = re.fullmatch(r"/plain/(.*)", path)
        if self.busy and api:
            self.busy -= 1
            self._send(request, 503)
        elif plain:
            self._file(request, self.repos["plain"].get(plain[1]))
        elif api or file:
            repo, revision = (api[1], api[3]) if api else (file[1], file[2])
            if repo not in self.repos or (repo in self.private and not self._knows_token(request)):
                self._send(request, 401, error="RepoNotFound")
            elif revision not in (None, "main", COMMIT):
                self._send(request, 404, error="RevisionNotFound")
            elif file and repo in self.gated and not file[3].endswith(".md"):
                self._send(request, 403, error="GatedRepo")
            elif file:
                self._file(request, self.repos[repo].get(file[3]))
            elif api[2] == "tree":
                self._tree(request, repo, api[4] or "", url.query)
            else:
                siblings = [{"rfilename": name} for name in self.repos[repo]]
                self._json(request, {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []})
        else:
            self._send(request, 404)

    def _knows_token(self, request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _tree(self, request, repo: str, folder: str, query: str) -> None:
        inside = f"{folder}/" if folder else ""
        names = sorted(name for name in self.repos[repo] if name.startswith(inside))
        if folder and not names:
            return self._send(request, 404, error="EntryNotFound")
        listed = [{"type": "file", "path": n, "size": len(self.repos[repo][n]), "oid": "b" * 40} for n in names]
        if "recursive=true" not in query.lower():
            folders = {
                inside + n.removeprefix(inside).partition("/")[0] for n in names if "/" in n.removeprefix(inside)
            }
            listed = [entry for entry in listed if "/" not in entry["path"].removeprefix(inside)]
            listed += [{"type": "directory", "path": name, "oid": "b" * 40} for name in sorted(folders)]
        start = int((re.search(r"cursor=(\d+)", query) or [0, 0])[1])
        query = re.sub(r"&?cursor=\d+", "", query) + f"&cursor={start + self.PAGE}"
        place = f"{self.url}{urlsplit(request.path).path}?{query}"
        more = {"Link": f'<{place}>; rel="next"'} if start + self.PAGE < len(listed) else {}
        self._json(request, listed[start : start + self.PAGE], **more)

    def _file(self, request, data: bytes | None) -> None:
        if data is None:
            return self._send(request, 404, error="EntryNotFound")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        headers = {"ETag": '"e"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted is None:
            return self._send(request, 200, data, **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(request, 206, data[first : last + 1], **headers)

    def _json(self, request, value, **headers: str) -> None:
        self._send(request, 200, json.dumps(value).encode(), **{"Content-Type": "application/json"}, **headers)

    def _send(self, request, status: int, data: bytes = b"", error: str | None = None, **headers: str) -> None:
        request.send_response(status)
        headers |= {"X-Error-Code": error, "X-Error-Message": error} if error else {}
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)

    def files(self) -> Counter:
        """How often each file of data was asked for."""
        return Counter(path.rpartition("/")[2] for _, path in self.requests if path.endswith((".tar", ".parquet")))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = FakeHub()
    constants = huggingface_hub.constants
    for name, value in {
        "ENDPOINT": fake.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": fake.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", fake.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield fake
    huggingface_hub.HfFileSystem.clear_instance_cache()
    fake.server.shutdown()
    fake.server.server_close()


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def cc3m_like(png, train: int, card: str = CARD) -> dict[str, bytes]:
    """The layout of pixparse/cc3m-wds: jpg, txt, json; the validation tars have no json."""

    def shard(number: int, with_json: bool) -> bytes:
        members = []
        for i in range(number * SAMPLES, (number + 1) * SAMPLES):
            members += [(f"{i:09d}.jpg", png(i % 7)), (f"{i:09d}.txt", f"caption {i}".encode())]
            members += [(f"{i:09d}.json", json.dumps({"key": f"{i:09d}", "status": "success"}).encode())] * with_json
        return tar_bytes(members)

    files = {f"cc3m-train-{i:04d}.tar": shard(i, True) for i in range(train)}
    files |= {f"cc3m-validation-{i:04d}.tar": shard(i, False) for i in range(2)}
    return {**files, "README.md": card.encode(), "_info.json": b"{}"}


def parquet_bytes(**columns: list) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def read(source: StreamSource) -> list[tuple[str, object]]:
    rows = [row for shard in source.shards for row in shard.read(Entry(), 0, source.problems)]
    return [(row.record.key, row.record.caption) for row in rows]


def test_web_dataset_of_the_hub(hub, png):
    hub.repos["me/cc3m"] = cc3m_like(png, train=4)
    source = open_pairs("me/cc3m", streaming=True, image_column="jpg", caption_column="txt")
    assert isinstance(source, StreamSource) and source.revision == COMMIT and source.rows is None
    assert [shard.name for shard in source.shards] == [f"cc3m-train-{i:04d}.tar" for i in range(4)]
    assert [shard.size for shard in source.shards] == [len(hub.repos["me/cc3m"][shard.name]) for shard in source.shards]
    assert read(source) == [(f"{i:09d}", f"caption {i}".encode()) for i in range(4 * SAMPLES)]
    assert source.description["revision"] == COMMIT and source.description["format"] == "hub"
    check_readable(source)
    validation = open_pairs("me/cc3m", streaming=True, split="validation")
    assert len(read(validation)) == 2 * SAMPLES and validation.fingerprint != source.fingerprint


def test_a_known_set(hub, png):
    hub.repos["pixparse/cc3m-wds"] = cc3m_like(png, train=3)
    source = open_pairs("cc3m")
    check_readable(source)
    assert source.revision == COMMIT and source.expected_rows == 2_905_954
    assert len(read(open_pairs("cc3m", subset="0.34"))) == 3 * SAMPLES and len(source.parts) == 3


@pytest.mark.parametrize("card", [CARD, "# no configs\n"])
def test_few_requests_at_the_start_however_many_shards(hub, png, card):
    counts = {}
    for train in (2, 40):
        hub.repos[f"me/of-{train}"] = cc3m_like(png, train, card)
        hub.requests.clear()
        source = open_pairs(f"me/of-{train}", streaming=True)
        assert len(source.shards) == train
        assert set(hub.files()) == {"cc3m-train-0000.tar"}
        check_readable(source)
        assert set(hub.files()) == {"cc3m-train-0000.tar"}
        counts[train] = len(hub.requests)
    assert counts[2] == counts[40] <= 16


def test_a_listing_of_several_pages(hub, png, monkeypatch):
    monkeypatch.setattr(FakeHub, "PAGE", 3)
    hub.repos["me/cc3m"] = cc3m_like(png, train=8)
    source = open_pairs("me/cc3m", streaming=True)
    assert len(source.shards) == 8 and None not in [shard.size for shard in source.shards]


def test_rows_that_the_card_tells_cost_no_look_at_the_data(hub, png):
    told = "dataset_info:\n  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: 23\n---\n"
    hub.repos["me/cc3m"] = cc3m_like(png, 4, CARD.removesuffix("---\n") + told)
    source = open_pairs("me/cc3m", streaming=True)
    assert source.expected_rows == source.total_rows == 23 and source.rows is None and not hub.files()
    assert sum(source.estimated_rows(i) for i in range(4)) == pytest.approx(23)
    assert open_pairs("me/cc3m", streaming=True, total_rows=17).expected_rows == 17


def test_other_processes_ask_for_nothing(hub, png):
    hub.repos["me/cc3m"] = cc3m_like(png, train=3)
    asked = {"split": "train", "revision": None, "config": None, "data_format": None, "timeout": 5.0}
    found = find_remote("me/cc3m", streaming=True, **asked)
    told = RemoteData.from_json(json.loads(json.dumps(found.to_json())))
    assert told == found
    hub.requests.clear()
    source = open_pairs("me/cc3m", streaming=True, remote=told)
    assert source.estimated_rows(2) == pytest.approx(SAMPLES, rel=0.2) and not hub.requests
    assert source.fingerprint == open_pairs("me/cc3m", streaming=True).fingerprint
    assert find_remote("me/cc3m", streaming=False, **asked) is None


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_of_the_hub(hub, png, struct):
    def shard(number: int) -> bytes:
        stored = [png(number * 3 + i) for i in range(3)]
        images = [{"bytes": image, "path": None} for image in stored] if struct else stored
        return parquet_bytes(images=images, texts=[[49406, 320 + number, 49407]] * 3)

    files = {f"data/train-{i:05d}-of-00004.parquet": shard(i) for i in range(4)}
    hub.repos["me/yfcc"] = {**files, "README.md": b"# x\n"}
    options = {"streaming": True, "image_column": "images", "caption_column": "texts"}
    source = open_pairs("me/yfcc", **options)
    assert set(hub.files()) == {"train-00000-of-00004.parquet"}
    assert [caption for _, caption in read(source)] == [[49406, 320 + i, 49407] for i in range(4) for _ in range(3)]
    assert next(source.shards[1].read(Entry(), 0, [])).record.image == png(3)
    with pytest.raises(InputError, match=r"no column 'image'.*Did you mean 'images'"):
        open_pairs("me/yfcc", streaming=True, image_column="image")
    hub.repos["me/yfcc"]["data/train-00000-of-00004.parquet"] = b"PAR1 nothing"
    assert len(open_pairs("me/yfcc", **options).shards) == 4


def test_what_only_datasets_reads(hub):
    rows = "image_path,text_content\n" + "".join(f"{i}.png,caption {i}\n" for i in range(150))
    hub.repos["me/csv"] = {f"part-{part}.csv": rows.encode() for part in range(2)}
    source = open_pairs("me/csv", streaming=True, image_root="/images")
    assert len(source.shards) == 2 and [shard.name for shard in source.shards] == ["me/csv#0", "me/csv#1"]
    shard = source.shards[1]
    found = list(shard.read(Entry(100), 130, source.problems))
    assert [row.number for row in found] == list(range(130, 150)) and found[0].following == Entry(131)
    assert found[0].record.image == "/images/130.png" and found[0].record.caption == "caption 130"
    assert shard.count(Entry(), []) == 150 and shard.estimate_rows() is None and not source.problems


def test_a_private_set_needs_the_token(hub, png, monkeypatch, caplog):
    hub.repos["me/private"] = cc3m_like(png, train=2)
    hub.private.add("me/private")
    with pytest.raises(InputError, match="access rights") as caught:
        open_pairs("me/private", streaming=True)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    source = open_pairs("me/private", streaming=True)
    assert len(read(source)) == 2 * SAMPLES
    remote = find_remote(
        "me/private", streaming=True, split="train", revision=None, config=None, data_format=None, timeout=5.0
    )
    for text in (repr(source.shards[0].location), json.dumps(remote.to_json()), caplog.text):
        assert TOKEN not in text


def test_what_the_hub_refuses_is_one_line(hub, png):
    hub.repos["me/gated"] = cc3m_like(png, train=2)
    hub.repos["me/script"] = {"script.py": b"import os", "README.md": b"# x\n"}
    hub.repos["me/empty"] = {"README.md": b"# x\n"}
    hub.repos["me/cc3m"] = hub.repos["me/gated"]
    hub.gated.add("me/gated")
    for spec, options, message in (
        ("me/gated", {}, "gated dataset"),
        ("me/nothing", {}, "does not give a data set"),
        ("me/script", {}, "scripts are no longer supported"),
        ("me/empty", {}, "data files"),
        ("me/cc3m", {"revision": "v9"}, "--data_revision"),
        ("me/cc3m", {"split": "trian"}, "--split.*Did you mean 'train'"),
        ("me/cc3m", {"config": "other"}, "other"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            open_pairs(spec, streaming=True, **options)
        assert spec in str(caught.value) and "\n" not in str(caught.value)


def test_a_busy_hub_is_asked_again(hub, png, monkeypatch):
    waits = []
    monkeypatch.setattr(http_client, "_sleep", waits.append)
    hub.repos["me/cc3m"] = cc3m_like(png, train=2)
    hub.busy = 2
    assert len(open_pairs("me/cc3m", streaming=True).shards) == 2 and len(waits) == 2
    hub.busy = 10**6
    clock = iter(range(10**6))
    monkeypatch.setattr(http_client, "_clock", lambda: float(next(clock)))
    with pytest.raises(TrainingStopped, match="503"):
        open_pairs("me/cc3m", streaming=True, timeout=10.0)


def test_offline(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        open_pairs("me/cc3m", streaming=True)
    assert not hub.requests


def test_plain_urls(hub, png, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://elsewhere")
    hub.repos["plain"] = {name: data for name, data in cc3m_like(png, train=3).items() if "train" in name}
    source = open_pairs(hub.url + "/plain/cc3m-train-{0000..0002}.tar?signature=one")
    assert read(source) == [(f"{i:09d}", f"caption {i}".encode()) for i in range(3 * SAMPLES)]
    assert [shard.size for shard in source.shards] == [len(data) for data in hub.repos["plain"].values()]
    other = open_pairs(hub.url + "/plain/cc3m-train-{0000..0002}.tar?signature=two")
    assert other.fingerprint == source.fingerprint and source.revision is None and source.expected_rows is None
    hub.repos["plain"] = {"a": parquet_bytes(image=[png(1), png(2)], text=["x", "y"])}
    columns = {"image_column": "image", "caption_column": "text"}
    table = open_pairs(hub.url + "/plain/a", data_format="parquet", **columns)
    assert [caption for _, caption in read(table)] == ["x", "y"]
    for spec, message in (("/plain/a", "--data_format"), ("/plain/b.tar", "404"), ("/plain/{3..1}.tar", "braces")):
        with pytest.raises(InputError, match=message):
            open_pairs(hub.url + spec)


def test_local_streams(tmp_path, png, write_tar, samples):
    for part in range(3):
        write_tar(tmp_path / f"part-{part}.tar", samples(part * 4, part * 4 + 4))
    source = open_pairs(str(tmp_path / "*.tar"), streaming=True)
    assert source.rows is None and source.expected_rows is None
    assert read(source) == [(f"{i:04d}", f"caption {i}".encode()) for i in range(12)]
    assert source.estimated_rows(1) == pytest.approx(4, rel=0.01)
    with pytest.raises(InputError, match="--caption_tokenizer"):
        open_pairs(str(tmp_path / "*.tar"), streaming=True, caption_tokenizer="x")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "b.parquet").write_bytes(parquet_bytes(image=[png(1), png(2)], text=["x", "y"]))
    options = {"streaming": True, "image_column": "image", "caption_column": "text"}
    table = open_pairs(str(tmp_path / "?.parquet"), **options)
    assert table.rows == table.expected_rows == 2 and [p.shard for p in table.problems] == ["a.parquet"]
    with pytest.raises(InputError, match="not a readable parquet file"):
        open_pairs(str(tmp_path / "a.parquet"), **options)


def test_check_readable_reads_the_beginning_only(tmp_path, png, write_tar, samples, monkeypatch):
    write_tar(tmp_path / "a.tar", [])
    write_tar(tmp_path / "b.tar", [("0.png", b"no image"), ("0.txt", b"x"), *samples(1, 3)])
    (tmp_path / "c.tar").write_bytes(b"never read" * 100)
    source = open_pairs(str(tmp_path / "?.tar"), streaming=True)
    check_readable(source)
    assert source.problems == []
    with pytest.raises(InputError, match="no readable image in the first 1 rows"):
        check_readable(source, rows=1)
    for column, message in (("image_column", r"no member \.pgn"), ("caption_column", "neither a member")):
        with pytest.raises(InputError, match=message):
            check_readable(open_pairs(str(tmp_path / "b.tar"), streaming=True, **{column: "pgn"}))
    with pytest.raises(InputError, match=r"the data is empty. c\.tar: "):
        check_readable(open_pairs(str(tmp_path / "c.tar"), streaming=True))


def test_the_length_of_a_stream(tmp_path):
    class Unread:
        def __init__(self, size, rows):
            self.name, self.size, self.rows = "x", size, rows

        def estimate_rows(self):
            return 10.0

    def source(*shards, **options) -> StreamSource:
        return StreamSource([Unread(*s) for s in shards], name="x", format="x", fingerprint="x", **options)

    assert [source((100, None), (300, None)).estimated_rows(i) for i in range(2)] == [10, 30]
    assert [source((100, None), (300, None), total_rows=8).estimated_rows(i) for i in range(2)] == [2, 6]
    assert [source((None, None), (300, None), total_rows=8).estimated_rows(i) for i in range(2)] == [4, 4]
    assert source((100, None), (300, None), first_rows=5.0).estimated_rows(1) == 15
    mixed = source((100, 7), (300, None), total_rows=8, parts=[(0, 2, None), (1, 0, 4)])
    assert mixed.estimated_rows(0) == 7 and mixed.rows == mixed.expected_rows == 9
    with pytest.raises(InputError, match="--tokenizer"):
        mixed.captions()


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path, png):
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        table = pa.table({"image": [png(number)] * 2, "caption": ["a dog"] * 2})
        pq.write_table(table, tmp_path / folder / "part.parquet")
    columns = {"image_column": "image", "caption_column": "caption"}
    source = open_pairs(str(tmp_path), **columns, streaming=True)
    keys = [row.record.key for shard in source.shards for row in shard.read(Entry(), 0, [])]
    assert keys == ["a/part.parquet:0", "a/part.parquet:1", "b/part.parquet:0", "b/part.parquet:1"]
    source = open_pairs(str(tmp_path / "a"), **columns, streaming=True)
    assert [shard.name for shard in source.shards] == ["part.parquet"]
