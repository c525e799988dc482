"""The script that shows who gets what: over files and over a server that misbehaves."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from ncu_hf.cli import run_main

ROOT = Path(__file__).resolve().parents[2]


def tar_bytes(first: int, rows: int) -> bytes:
    """A shard in the layout of CC3M: members jpg, json, txt of each sample."""
    picture, buffer = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "JPEG")
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for row in range(first, first + rows):
            members = {"jpg": picture.getvalue(), "json": b"{}", "txt": f"a dog {row}".encode()}
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{row:05d}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


SIZES = [9, 31, 1, 0, 20]
KEYS = {f"{row:05d}" for row in range(sum(SIZES))}


def shards() -> dict[str, bytes]:
    starts = [sum(SIZES[:i]) for i in range(len(SIZES))]
    return {f"cc3m-train-{i:04d}.tar": tar_bytes(*place) for i, place in enumerate(zip(starts, SIZES, strict=True))}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, data in shards().items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("stream_keys", ROOT / "scripts/stream_keys.py")
    module = importlib.util.module_from_spec(specification)
    loaded = sys.modules.setdefault("stream_keys", module)  # its dataclass looks itself up there
    specification.loader.exec_module(loaded)
    return loaded


def run(source: object, *flags: object, code: int = 0) -> tuple[list[tuple[int, int, int, str]], str]:
    """Lines (epoch, step, rank, key) and what the script says."""
    words = [sys.executable, str(ROOT / "scripts/stream_keys.py"), str(source), *map(str, flags)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(int(epoch), int(step), int(rank), key) for epoch, step, rank, key in lines], done.stderr


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_an_epoch_of_one_process(folder, streaming):
    lines, told = run(folder, "--batch_size", 4, "--epochs", 2, "--streaming", streaming, "--mixing")
    for epoch in (0, 1):
        keys = [key for e, _, _, key in lines if e == epoch]
        assert len(keys) == len(set(keys)) == 60 and set(keys) <= KEYS
    assert Counter(step for _, step, _, _ in lines) == dict.fromkeys(range(1, 31), 4)
    assert "epoch 1: 15 steps, 60 samples, 60 different keys, displacement" in told


def test_over_a_server_that_cuts_refuses_and_asks_to_wait(faulty_server):
    faulty_server.files.update(shards())
    Fault = faulty_server.Fault
    for number, name in enumerate(faulty_server.files):
        faulty_server.faults[name] = [Fault(status=503), Fault(cut_after=4000 + 700 * number), Fault(cut_after=9000)]
    faulty_server.faults["cc3m-train-0001.tar"].append(Fault(status=429, headers={"Retry-After": "1"}))
    url = faulty_server.url("cc3m-train-{0000..0004}.tar")
    lines, _ = run(url, "--batch_size", 4)
    keys = [key for _, _, _, key in lines]
    assert len(keys) == len(set(keys)) == 60 and set(keys) <= KEYS
    for name in list(faulty_server.files)[1:]:  # the first one is also looked at when the data are opened
        sent = sum(request.sent for request in faulty_server.requests if request.path == f"/{name}")
        assert sent <= len(faulty_server.files[name]) + 100, "what was read is not read again"


def test_a_server_that_is_silent_stops_the_run_with_one_line(faulty_server):
    faulty_server.files.update(shards())
    for name in list(faulty_server.files)[1:]:
        faulty_server.faults[name] = [faulty_server.Fault(status=503, forever=True)]
    url = faulty_server.url("cc3m-train-{0000..0004}.tar")
    _, told = run(url, "--batch_size", 4, "--data_timeout", 3, code=1)
    assert told.splitlines()[-1].startswith("stopped: ") and "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [((3, 2), (2, 1)), ((1, 3), (4, 0)), ((4, 1), (1, 0)), ((2, 0), (3, 3))])
def test_stopped_and_restarted_on_other_numbers(folder, first, second, tmp_path):
    state = tmp_path / "position.json"
    layout = [["--processes", w, "--workers", k, "--batch_size", 2, "--streaming", "true"] for w, k in (first, second)]
    head, _ = run(folder, *layout[0], "--stop_after_steps", 4, "--save_state", state)
    tail, _ = run(folder, *layout[1], "--resume_from", state)
    counted = Counter(key for _, _, _, key in head + tail)
    assert max(counted.values()) == 1 and set(counted) <= KEYS
    assert len(KEYS) - len(counted) < 2 * second[0]
    for lines, processes in ((head, first[0]), (tail, second[0])):
        assert {rank for _, _, rank, _ in lines} == set(range(processes))
        assert set(Counter((step, rank) for _, step, rank, _ in lines).values()) == {2}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--processes", "0"], "--processes must be at least 1"),
        (["--resume_from", "nothing.json"], "no such file"),
        (["--save_state", __file__], "exists already"),
        (["--batch_size", "62"], "61 record(s), fewer than one global batch of 62"),
        (["--colour", "1"], "--colour"),
    ],
)
def test_wrong_input_is_one_line(folder, flags, told, script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stream_keys.py", str(folder), *flags])
    with pytest.raises(SystemExit) as ended:
        run_main(script.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ") and told in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_position_of_other_data_is_refused(folder, tmp_path):
    run(folder, "--batch_size", 4, "--stop_after_steps", 2, "--save_state", tmp_path / "position.json")
    (folder / "cc3m-train-0004.tar").unlink()
    _, said = run(folder, "--batch_size", 4, "--resume_from", tmp_path / "position.json", code=2)
    assert "belongs to other data" in said


@pytest.mark.slow
def test_no_process_outlives_a_command_that_was_killed(folder):
    flags = ["--processes", "2", "--workers", "1", "--batch_size", "2", "--epochs", "100000"]
    words = [sys.executable, str(ROOT / "scripts/stream_keys.py"), str(folder), *flags]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        process.stdout.readline()
        process.kill()
        process.stdout.read()  # comes to its end when nobody holds the pipe any longer
    assert process.returncode == -9
