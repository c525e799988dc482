"""The benchmarks run, and their figures are what their names say."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from PIL import Image

from ncu_hf.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
LINUX = Path("/proc/self/status").exists()


def test_data(benchmark):
    samples = 96 if LINUX else 0
    shown, report = benchmark(
        *("data", "--images", 3, "--sizes", 240, 320, "--repeats", 1, "--workers", 0, 1),
        *("--batch_size", 8, "--seconds", 0.2, "--memory_samples", samples),
    )
    first, second = report["transforms"]
    assert (first["size"], second["size"]) == (240, 320)
    for row in (first, second):
        assert row["evaluation_max_difference"] == 0
        ratio = row["training_a_second"] / row["clip_processor_a_second"]
        assert row["training_speedup"] == pytest.approx(ratio)
        assert row["training_with_normalize_speedup"] < row["training_speedup"]
        assert 1 < row["bits_a_pixel"] < 5 and row["files"] == 3
    assert [row["workers"] for row in report["loader"]] == [0, 1]
    alone, helped = report["loader"]
    assert alone["samples_a_second_and_core"] == alone["samples_a_second"] > 0
    assert 0.2 < alone["wait_share"] < 1 and 0 <= helped["wait_share"] < 1
    if LINUX:
        (memory,) = report["memory"]
        assert memory["samples"] >= samples
        assert memory["highest_mib"] >= max(memory["start_mib"], memory["end_mib"]) > 10
    assert "evaluation_max_difference" in shown and "machine" in report and "commit" in report


@pytest.mark.skipif(not LINUX, reason="memory is read from /proc")
@pytest.mark.slow
def test_memory_of_a_worker_is_flat(benchmark):
    """Over pictures of several sizes, some of them cut."""
    _, report = benchmark(
        *("data", "--images", 4, "--sizes", 240, 1000, "--repeats", 1, "--workers", "--memory_samples", 12_000)
    )
    assert "loader" not in report
    (memory,) = report["memory"]
    assert memory["samples"] >= 12_000 and memory["growth_mib"] < 16


def test_data_on_own_files(benchmark, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.effect_noise((300, 200), 40).save(folder / "a.jpg")
    _, report = benchmark(
        *("data", "--jpegs", folder, "--repeats", 1, "--workers", "--memory_samples", 0),
    )
    assert [(row["size"], row["files"]) for row in report["transforms"]] == [("files", 1)]
    assert report["transforms"][0]["evaluation_max_difference"] == 0


def test_transport(benchmark):
    _, report = benchmark("transport", "--n", 48, 64, "--repeats", 1)
    assert [row["n"] for row in report["rows"]] == [48, 64]
    assert all(row["released_difference"] < 1e-3 and row["marginal_converged"] for row in report["rows"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["transport", "--device", "no_such"], "--device no_such"),
        (["objective", "--foo"], "--foo"),
        (["objective", "--json", "absent/x.json"], "--json"),
        (["data", "--jpegs", "absent"], "--jpegs absent"),
    ],
)
def test_wrong_input(words, named, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    with pytest.raises(InputError, match=named):
        importlib.import_module("benchmark").main(words)


def test_a_report_is_not_replaced_unasked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="--overwrite"):
        importlib.import_module("benchmark").main(["transport", "--json", str(tmp_path / "x.json")])
