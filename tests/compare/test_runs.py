"""`scripts/compare_methods.py` from end to end: killed, failed and dying runs."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_methods.py"


def command(study: Path, file: Path, output: Path, *flags: object) -> list[str]:
    words = [SCRIPT, file, "--study", study, "--output_dir", output, "--jobs", 2, *flags]
    return [sys.executable, *map(str, words)]


NUMBERS = ("summary", "differences", "interpolation", "missing")


@pytest.mark.slow
def test_a_killed_comparison_ends_in_the_same_numbers(study, write_config, row, tmp_path):
    file = write_config(interpolate=["ncu"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(study, file, whole), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean recall") == 6 and "8/8" in done.stdout

    process = subprocess.Popen(command(study, file, killed), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("3/8"):
            break
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1 and "stopped: interrupted" in told and "Traceback" not in told
    partial = json.loads((killed / "comparison.json").read_text())
    assert 0 < len(partial["missing"]) < 8

    done = subprocess.run(command(study, file, killed), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{8 - len(partial['missing'])} of 8 runs are complete" in done.stdout
    first, second = (json.loads((folder / "comparison.json").read_text()) for folder in (whole, killed))
    for name in NUMBERS:
        assert first[name] == second[name], name
    assert first["machines"][0]["cores"] == len(os.sched_getaffinity(0))
    stages = row(first["runs"], entry="ncu", seed=1)["forget_set"]
    assert list(stages) == ["before", "negative_prompt", "after"]
    for folder in (whole, killed):
        assert (folder / "runs" / "0.4" / "1" / "ncu.log").read_text()
        assert "noise 0.4, seed 1, ncu" in (folder / "comparison.log").read_text()


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_go_on(study, write_config, row, tmp_path):
    methods = {"clip": {"method": "clip"}, "long": {"method": "ncu", "prompt_length": 200}}
    file = write_config(methods=methods, seeds=[0])
    done = subprocess.run(command(study, file, tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 1 and "stopped: 1 of 3 runs failed" in done.stderr
    assert "noise 0.4, seed 0, long: --prompt_length 200 leaves no room" in done.stdout
    numbers = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert numbers["missing"] == ["noise 0.4, seed 0, long"]
    assert row(numbers["differences"], entry="clip", against="reference", metric="mean_recall")


@pytest.mark.slow
def test_a_process_that_dies_costs_its_run_alone(make_units, monkeypatch):
    """Its place is taken by another one; it ends with what started it."""
    schedule = importlib.import_module("compare_schedule")
    reference = make_units(seeds=[0])[0]
    worker = schedule.Worker(0, 1, 0)
    alive = []

    def kill_soon() -> None:
        while worker._process is None:
            time.sleep(0.01)
        alive.append(worker._process)
        worker._process.kill()

    thread = schedule.threading.Thread(target=kill_soon)
    thread.start()
    ended = worker.run(reference)
    thread.join()
    assert "its process was ended by signal 9" in ended.error
    assert worker.run(reference).error is None and reference.complete
    assert worker._process is not alive[0]
    worker._process.stdin.close()
    assert worker._process.wait(timeout=60) == 0
