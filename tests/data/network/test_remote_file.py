"""Files over HTTP from a server that misbehaves: the bytes are those of the file, or the run stops with one line."""

from __future__ import annotations

import email.utils
import io
import logging
import os
import pickle
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import pytest

from ncu_hf.data.files import LocalFile, Location
from ncu_hf.data.network import http_client, remote_file
from ncu_hf.data.network.remote_file import HTTP_ERROR, RemoteFile, remote_sizes
from ncu_hf.errors import InputError, TrainingStopped

SIZE = 300_000


@pytest.fixture
def content() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture
def served(faulty_server, content, quick_retries) -> Callable[..., RemoteFile]:
    """The file `a.tar` on the server, whose next answers have the given faults."""

    def serve(*faults, query: str = "", **options) -> RemoteFile:
        faulty_server.files["a.tar"] = content
        faulty_server.faults["a.tar"] = list(faults)
        return RemoteFile(faulty_server.url("a.tar") + query, **options)

    return serve


def test_a_location_has_a_name_and_a_size_and_opens_anew_each_time(served, content, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    for location in (LocalFile(tmp_path / "a.tar"), served(size=SIZE)):
        location: Location = pickle.loads(pickle.dumps(location))
        assert (location.name, location.size) == ("a.tar", SIZE)
        with location.open() as one, location.open() as other:
            assert one.read(1000) == other.read(1000) == content[:1000]
            assert one.seekable() and one.readable() and one.tell() == 1000


def test_a_plain_read_is_one_request_and_opening_is_none(served, faulty_server, content):
    with served().open() as file:
        assert faulty_server.requests == []
        assert b"".join(iter(lambda: file.read(10_000), b"")) == content
        assert file.read(1) == b""
    [request] = faulty_server.requests
    assert request.range is None
    assert request.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("fault", ["cut_after", "reset_after", "stall_after"])
@pytest.mark.parametrize("after", [0, 70_000])
def test_a_broken_connection_is_taken_up_at_the_byte_it_reached(
    served, faulty_server, content, fault, after, monkeypatch
):
    monkeypatch.setattr(http_client, "_RECEIVE_TIMEOUT", 0.3)
    broken = faulty_server.Fault(**{fault: after})
    assert served(broken, broken, broken).open().read() == content
    if fault != "reset_after":  # a reset may destroy bytes that are on their way
        assert faulty_server.ranges() == [None, *(f"bytes={n * after}-" if after else None for n in (1, 2, 3))]
    assert sum(request.sent for request in faulty_server.requests) <= SIZE + (fault == "reset_after") * 3 * after


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_answers_that_may_pass_are_asked_again(served, faulty_server, content, status, quick_retries):
    fault = faulty_server.Fault(status=status)
    assert served(fault, fault, fault, faulty_server.Fault(cut_after=99), fault).open().read() == content
    assert len(quick_retries.waits) == 5


def test_back_off_doubles_up_to_a_limit_with_full_jitter(served, faulty_server, content, quick_retries, monkeypatch):
    monkeypatch.setattr(http_client.random, "uniform", lambda low, high: high if low == 0 else None)
    assert served(*[faulty_server.Fault(status=500)] * 9).open().read() == content
    assert quick_retries.waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_the_wait_that_a_server_asks_for_is_kept_and_capped(served, faulty_server, content, quick_retries):
    def asked(value: str, header: str = "Retry-After"):
        return faulty_server.Fault(status=429, headers={header: value})

    faults = [
        asked("7"),
        asked(email.utils.formatdate(time.time() + 50, usegmt=True)),
        asked("Wed, 21 Oct 2015 07:28:00 GMT"),
        asked("soon"),
        asked('"resolver";r=0;t=55', "RateLimit"),
        asked("99999"),
    ]
    assert served(*faults, timeout=3600).open().read() == content
    for wait, least in zip(quick_retries.waits, [7, 48, 0, 0, 55, 300], strict=True):
        assert least <= wait <= least + 18


def test_a_server_that_ignores_ranges_is_read_from_the_start_again(served, faulty_server, content):
    faults = [faulty_server.Fault(cut_after=200_000), faulty_server.Fault(ignore_range=True)]
    file = served(*faults).open()
    assert file.read() == content
    assert faulty_server.ranges() == [None, "bytes=200000-"]


def test_a_seek_where_ranges_are_ignored_does_not_ask_for_each_read(served, faulty_server, content, monkeypatch):
    monkeypatch.setattr(remote_file, "_SHORT_GAP", 100)
    file = served(faulty_server.Fault(ignore_range=True, forever=True)).open()
    for place in (100_000, 200_000, 250_000, 10):
        file.seek(place)
        assert file.read(10) == content[place : place + 10]
    assert len(faulty_server.requests) == 2


def test_another_range_than_the_one_asked_for_is_never_taken(served, faulty_server, content):
    wrong = faulty_server.Fault(headers={"Content-Range": f"bytes 0-9/{SIZE}"})
    silent = faulty_server.Fault(headers={"Content-Range": None})
    assert served(faulty_server.Fault(cut_after=1000), wrong, silent).open().read() == content


def test_a_short_gap_is_dropped_and_a_long_one_asked_for(faulty_server, quick_retries):
    content = random.Random(0).randbytes(3 * 2**20)
    faulty_server.files["b"] = content
    file = RemoteFile(faulty_server.url("b")).open()
    for place, requests in ((0, 1), (600_000, 1), (2_500_000, 2), (10, 3)):
        file.seek(place)
        assert file.read(5) == content[place : place + 5]
        assert len(faulty_server.requests) == requests


@pytest.mark.parametrize("seed", range(12))
def test_any_seeks_and_reads_give_the_bytes_of_the_file(served, faulty_server, content, seed, monkeypatch):
    monkeypatch.setattr(remote_file, "_SHORT_GAP", 3000)
    monkeypatch.setattr(remote_file, "_BUFFER", 5000)
    chance = random.Random(seed)

    def fault():
        kind = chance.choice(["cut_after", "reset_after", "cut_after", None])
        status = chance.choice([None, None, 503])
        cut = {} if kind is None else {kind: chance.randrange(60_000)}
        return faulty_server.Fault(status=status, ignore_range=chance.random() < 0.2, **cut)

    remote = served(*(fault() for _ in range(400)), size=chance.choice([None, SIZE])).open()
    plain = io.BytesIO(content)
    for _ in range(150):
        place, length = chance.randrange(SIZE + 2000), chance.choice([0, 1, 512, 4096, 50_000])
        moves = [(place, 0), (-min(place, SIZE), 2), (0, 1), (0, 1), (min(chance.randrange(9000), SIZE), 1)]
        move = chance.choice(moves)
        assert remote.seek(*move) == plain.seek(*move)
        assert remote.read(length) == plain.read(length)
        assert remote.tell() == plain.tell()
    assert remote.seek(7) == plain.seek(7)
    assert remote.read() == plain.read()


def test_it_stops_after_the_stated_time_without_a_new_byte(served, faulty_server, content, quick_retries):
    faults = [faulty_server.Fault(cut_after=500), faulty_server.Fault(status=503, forever=True)]
    file = served(*faults, timeout=100, query="?token=hf_secret").open()
    with pytest.raises(TrainingStopped) as stopped:
        file.read()
    message = str(stopped.value)
    assert "\n" not in message and "hf_secret" not in message
    for part in ("a.tar", "100 s", "byte 500", "503 (Service Unavailable)", "--resume_from_checkpoint true"):
        assert part in message
    assert quick_retries.now == pytest.approx(100)


def test_the_time_is_that_of_the_clock(faulty_server, content):
    faulty_server.files["a"] = content
    faulty_server.faults["a"] = [faulty_server.Fault(stall_after=0, forever=True)]
    began = time.monotonic()
    with pytest.raises(TrainingStopped, match=r"no new byte for 0\.4 s at byte 0"):
        RemoteFile(faulty_server.url("a"), timeout=0.4).open().read()
    assert 0.4 <= time.monotonic() - began < 10


def test_a_server_that_never_gets_further_stops_the_run_though_bytes_come(served, faulty_server):
    cut = faulty_server.Fault(cut_after=1000, ignore_range=True, forever=True)
    with pytest.raises(TrainingStopped, match="at byte 1000"):
        served(cut, timeout=60).open().read()


def test_progress_starts_the_time_anew(served, faulty_server, content, quick_retries, monkeypatch):
    monkeypatch.setattr(http_client.random, "uniform", lambda low, high: 9.0)
    faults = [faulty_server.Fault(cut_after=30_000)] * 9
    assert served(*faults, timeout=10).open().read() == content
    assert quick_retries.now == 81


def test_a_slow_drip_is_progress(faulty_server, content, monkeypatch):
    monkeypatch.setattr(http_client, "_RECEIVE_TIMEOUT", 0.4)
    faulty_server.files["slow"] = content[:500]
    faulty_server.faults["slow"] = [faulty_server.Fault(drip=(50, 0.06))]
    assert RemoteFile(faulty_server.url("slow"), timeout=0.5).open().read() == content[:500]
    assert faulty_server.ranges() == [None]


@pytest.mark.parametrize(
    "second", [{"headers": {"ETag": '"other"'}}, {"headers": {"Content-Range": f"bytes 1000-{SIZE}/{SIZE + 1}"}}]
)
def test_a_file_that_changes_while_it_is_read_stops_the_run(served, faulty_server, second):
    file = served(faulty_server.Fault(cut_after=1000), faulty_server.Fault(**second)).open()
    with pytest.raises(TrainingStopped, match="the file changed while it was read"):
        file.read()


def test_a_weak_etag_may_change(served, faulty_server, content):
    weak = [faulty_server.Fault(cut_after=1000 * n, headers={"ETag": f'W/"{n}"'}) for n in (1, 2)]
    assert served(*weak).open().read() == content


def test_the_hash_that_the_hub_tells_outweighs_the_etag_of_what_it_redirects_to(served, faulty_server, content):
    faulty_server.faults["hub"] = [
        faulty_server.Fault(status=302, headers={"Location": "/a.tar?signed=1", "X-Linked-Etag": '"hash"'}),
        faulty_server.Fault(status=302, headers={"Location": "/a.tar?signed=2", "X-Linked-Etag": '"hash"'}),
    ]
    served(faulty_server.Fault(cut_after=1000, headers={"ETag": '"1"'}), faulty_server.Fault(headers={"ETag": '"2"'}))
    assert RemoteFile(faulty_server.url("hub")).open().read() == content
    assert [request.path for request in faulty_server.requests] == [
        "/hub",
        "/a.tar?signed=1",
        "/hub",
        "/a.tar?signed=2",
    ]


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_a_size_that_the_listing_told_must_hold(served, size):
    with pytest.raises(TrainingStopped, match=f"{size} bytes before, {SIZE} now"):
        served(size=size).open().read()


def test_more_bytes_than_the_listing_told_stop_the_run(served, faulty_server):
    endless = faulty_server.Fault(headers={"Content-Length": None})
    with pytest.raises(TrainingStopped, match=f"more than its {SIZE - 1} bytes"):
        served(endless, size=SIZE - 1).open().read()


def test_a_file_that_is_cut_for_good_never_passes_as_whole(served, faulty_server):
    cut = [faulty_server.Fault(cut_after=5000), faulty_server.Fault(cut_after=0, forever=True)]
    with pytest.raises(TrainingStopped, match="no new byte for 600 s at byte 5000"):
        served(*cut).open().read()


def test_a_cut_that_no_length_betrays_is_found_by_the_size_of_the_listing(served, faulty_server, content):
    cut = faulty_server.Fault(cut_after=50_000, headers={"Content-Length": None}, forever=True)
    assert served(cut, size=SIZE).open().read() == content


def test_a_file_without_a_known_length_ends_where_the_connection_does(served, faulty_server, content):
    file = served(faulty_server.Fault(headers={"Content-Length": None}, forever=True)).open()
    assert file.read() == content
    assert file.read() == b""
    assert file.seek(0, 2) == SIZE


def test_an_empty_file(served, faulty_server):
    faulty_server.files["empty"] = b""
    file = RemoteFile(faulty_server.url("empty")).open()
    assert file.read() == b"" and file.seek(0, 2) == 0 and file.seek(5) == 5 and file.read() == b""


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
def test_a_refusal_is_an_error_at_once_without_anything_secret(served, faulty_server, status, quick_retries):
    file = served(
        faulty_server.Fault(status=status), query="?X-Signature=abc", headers={"Authorization": "Bearer hf_x"}
    )
    with pytest.raises(InputError) as refused:
        file.open().read()
    message = str(refused.value)
    assert message.startswith(f"{faulty_server.url('a.tar')}: the server answers {status} (")
    assert not any(secret in message + repr(file) for secret in ("Signature", "hf_x", "\n"))
    assert quick_retries.waits == []


def test_a_range_inside_the_file_that_is_refused_is_an_error(served, faulty_server):
    file = served(faulty_server.Fault(cut_after=10), faulty_server.Fault(status=416)).open()
    with pytest.raises(InputError, match="416"):
        file.read()


def test_a_compressed_answer_is_an_error(served, faulty_server):
    with pytest.raises(InputError, match="compresses"):
        served(faulty_server.Fault(headers={"Content-Encoding": "gzip"})).open().read()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a.tar",
        "a.tar",
        "http://",
        "http://host:port/a",
        "http://ho st/a?token=x",
        "https://u:p@ho st/a",
        "http://127.0.0.1:1/a\x01b?token=x",
        "http://127.0.0.1:1/a\ud800b?token=x",
    ],
)
def test_a_url_that_cannot_be_used(url, start_server, quick_retries):
    with pytest.raises(InputError, match="not a usable URL") as error:
        RemoteFile(url).open().read()
    assert "token" not in str(error.value) and "u:p" not in str(error.value)


def test_a_header_that_cannot_be_sent_is_named_without_its_value():
    with pytest.raises(InputError, match="'Authorization'") as error:
        RemoteFile("https://host/a.tar", {"Authorization": "Bearer hf_x\n"})
    assert "hf_x" not in str(error.value)


def test_offline_mode_is_named(served, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE") as error:
        served(query="?token=x").open().read()
    assert "token" not in str(error.value)


def test_names_and_addresses():
    file = RemoteFile("https://user:pass@host:8443/some%20where/a%2B%20b.tar?sig=/x#top")
    assert (file.name, file.size) == ("a+ b.tar", None)
    assert file.address == "https://host:8443/some%20where/a%2B%20b.tar"
    assert RemoteFile("https://host/x", name="train/x.tar").name == "train/x.tar"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_redirect_to_another_host_does_not_get_the_token(served, faulty_server, start_server, content, host):
    other = start_server()
    other.files["cdn"] = content
    target = f"http://{host}:{other.server_port}/cdn?signed=1"
    other.faults["cdn"] = [other.Fault(cut_after=1000)]
    moved = faulty_server.Fault(status=302, headers={"Location": target})
    file = served(moved, moved, headers={"Authorization": "Bearer hf_x"})
    assert file.open().read() == content
    assert [request.headers.get("Authorization") for request in faulty_server.requests] == ["Bearer hf_x"] * 2
    assert ["Authorization" in request.headers for request in other.requests] == [False, False]
    assert other.ranges() == [None, "bytes=1000-"]


def test_a_relative_redirect_keeps_the_token(served, faulty_server, content):
    faulty_server.files["there"] = content
    file = served(
        faulty_server.Fault(status=307, headers={"Location": "there"}), headers={"Authorization": "Bearer hf_x"}
    )
    assert file.open().read() == content
    assert [request.headers["Authorization"] for request in faulty_server.requests] == ["Bearer hf_x"] * 2


def test_a_circle_of_redirects_is_refused_at_once(served, faulty_server, quick_retries):
    file = served(faulty_server.Fault(status=302, headers={"Location": faulty_server.url("file.bin")}, forever=True))
    faulty_server.faults["file.bin"] = [faulty_server.Fault(status=302, headers={"Location": file.url}, forever=True)]
    with pytest.raises(InputError, match="circle"):
        file.open().read()
    assert quick_retries.waits == []


def test_retries_are_logged_seldom_and_without_secrets(served, faulty_server, content, quick_retries, caplog):
    file = served(*[faulty_server.Fault(status=500)] * 12, query="?sig=abc", timeout=1000)
    with caplog.at_level(logging.INFO):
        assert file.open().read() == content
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 1 + quick_retries.now / 30
    assert all("500" in line and "sig=" not in line and file.name in line for line in lines)


def test_a_host_that_does_not_answer(start_server, quick_retries):
    server = start_server()
    url = server.url("a.tar")
    server.shutdown()
    server.server_close()
    with pytest.raises(TrainingStopped, match=r"ConnectError: .*refused"):
        RemoteFile(url, timeout=5).open().read(1)
    with pytest.raises(TrainingStopped, match="ConnectError"):
        remote_sizes([url], timeout=5)


def test_another_thread_may_close_the_clients_of_the_hub_library(served, faulty_server, content, quick_retries):
    file = served().open()
    assert file.read(10) == content[:10]
    huggingface_hub.close_session()
    assert file.read() == content[10:]


def test_threads_read_at_once(served, faulty_server, content):
    file = served(*[faulty_server.Fault(cut_after=40_000)] * 20)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: file.open().read(), range(8))) == {content}


def test_a_forked_process_reads_on_without_disturbing_its_parent(served, content, quick_retries):
    file = served().open()
    assert file.read(100) == content[:100]
    child = os.fork()
    if not child:
        right = file.read() == content[100:] and served().open().read() == content
        os._exit(0 if right and not quick_retries.waits else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.read() == content[100:]
    assert quick_retries.waits == []


def test_a_handle_that_is_closed_or_forgotten_frees_its_connection(served):
    pool = huggingface_hub.get_session()._transport._pool
    file = served().open()
    file.read(10)
    assert len(pool.connections) == 1
    file.close()
    file.close()
    assert pool.connections == []
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    served().open().read(10)
    assert pool.connections == []


def test_a_file_that_was_read_to_its_end_leaves_the_connection_for_the_next(served, faulty_server):
    for _ in range(3):
        served().open().read()
    assert len(huggingface_hub.get_session()._transport._pool.connections) == 1


def test_the_base_of_the_errors_is_that_of_the_library_in_use():
    error = type(huggingface_hub.get_session()).__module__.partition(".")[0]
    assert HTTP_ERROR.__module__.partition(".")[0] == error
    assert issubclass(huggingface_hub.errors.HfHubHTTPError, HTTP_ERROR)
