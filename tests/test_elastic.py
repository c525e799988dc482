"""A killed run goes on with another number of processes and workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ncu_hf.checkpoint import list_checkpoints, read_json

ROOT = Path(__file__).resolve().parent.parent
RECIPE = str(ROOT / "recipes/ncu.py")
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def kill_when(words: list[str], *, ready: Callable[[], bool]) -> None:
    """Start the command and SIGKILL it with all its processes as soon as `ready()`."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, start_new_session=True, **quiet)
    while process.poll() is None and not ready():
        time.sleep(0.01)
    ended = process.poll()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ended is None, "the run ended before it could be killed"


def finish(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(output: Path) -> list[float]:
    """Loss of each step of both phases."""
    phases = [read_json(output / "phases" / name / "final/phase.json") for name in ("negative_prompt", "unlearning")]
    return [line["loss"] for phase in phases for line in phase["log_history"] if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_two_processes_then_one(command, tmp_path, streaming):
    """6 + 12 steps of 16 pairs; killed on two processes in phase 1, ended on one with two workers."""
    output = tmp_path / "cut"
    options = {"num_train_epochs": 2, "streaming": streaming, "resume_from_checkpoint": "true"}
    kill_when(
        [*LAUNCHER, RECIPE, *command(output, **options)],
        ready=lambda: len(list_checkpoints(output / "phases/negative_prompt")) == 2,
    )
    assert not (output / "phases/unlearning").is_dir()
    finish([sys.executable, RECIPE, *command(output, **options, dataloader_num_workers=2)])
    assert read_json(output / "data_health.json")["seen"] == 18 * 16
    if streaming == "false":  # the same global batches, so the same losses but for the order of additions
        finish([sys.executable, RECIPE, *command(tmp_path / "whole", num_train_epochs=2)])
        assert losses(output) == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
