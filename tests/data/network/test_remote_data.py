"""Sizes of many files on a server, and formats that are read over it."""

from __future__ import annotations

import io
import random
import tarfile

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ncu_hf.data.network.remote_file import RemoteFile, remote_sizes
from ncu_hf.errors import InputError

SIZE = 400


@pytest.fixture
def content() -> bytes:
    return random.Random(0).randbytes(SIZE)


def test_sizes_of_many_files(faulty_server, content, quick_retries):
    Fault = faulty_server.Fault
    for n in range(40):
        faulty_server.files[f"{n}"] = content[: n * 10]
    faulty_server.faults = {
        "1": [Fault(status=503), Fault(status=429)],
        "2": [Fault(status=405)],
        "3": [Fault(status=403), Fault(ignore_range=True)],
        "0": [Fault(status=501)],
        "4": [Fault(headers={"Content-Length": None}), Fault(headers={"Content-Length": None}, ignore_range=True)],
    }
    sizes = remote_sizes([faulty_server.url(f"{n}?token=x") for n in range(40)], {"Authorization": "Bearer hf_x"})
    assert sizes == [0, 10, 20, 30, None, *(n * 10 for n in range(5, 40))]
    assert {request.headers["Authorization"] for request in faulty_server.requests} == {"Bearer hf_x"}
    assert remote_sizes([]) == []


def test_sizes_are_asked_for_over_one_connection(faulty_server, content, quick_retries):
    faulty_server.files["a.tar"] = content
    url = faulty_server.url("a.tar")
    assert [remote_sizes([url]) for _ in range(3)] == [[SIZE]] * 3
    assert len(huggingface_hub.get_session()._transport._pool.connections) == 1


@pytest.mark.parametrize("status", [401, 404])
def test_a_size_that_is_refused_is_an_error(faulty_server, content, status, quick_retries):
    faulty_server.files["a"] = content
    faulty_server.faults["a"] = [faulty_server.Fault(status=status, forever=True)]
    with pytest.raises(InputError, match=f"/a: the server answers {status}") as error:
        remote_sizes([faulty_server.url("a?token=x")])
    assert "token" not in str(error.value)


def test_a_tar_is_read_over_it(faulty_server, quick_retries):
    buffer = io.BytesIO()
    members = {f"{n}.jpg": random.Random(n).randbytes(20_000 + n) for n in range(30)}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    faulty_server.files["a.tar"] = buffer.getvalue()
    faulty_server.faults["a.tar"] = [faulty_server.Fault(cut_after=cut) for cut in (1000, 70_001, 5)]
    with tarfile.open(fileobj=RemoteFile(faulty_server.url("a.tar")).open(), mode="r:") as tar:
        assert {info.name: tar.extractfile(info).read() for info in tar} == members
    assert sum(request.sent for request in faulty_server.requests) <= len(buffer.getvalue())


def test_a_parquet_file_is_read_over_it(faulty_server, quick_retries):
    table = pa.table({"n": list(range(5000)), "image": [random.Random(n).randbytes(100) for n in range(5000)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=700)
    faulty_server.files["a.parquet"] = buffer.getvalue()
    faulty_server.faults["a.parquet"] = [faulty_server.Fault(), faulty_server.Fault(cut_after=100)]
    with RemoteFile(faulty_server.url("a.parquet")).open() as file:
        assert pa.Table.from_batches(pq.ParquetFile(file).iter_batches(300)).equals(table)
