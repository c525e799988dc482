"""A run killed at any step, of either phase or between them, ends in the weights of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ncu_hf.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parent.parent


def command(scenes: Path, clip_folder: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "recipes/ncu.py"), "--model", clip_folder, "--train_data", scenes),
        *("--image_column", "image", "--caption_column", "caption", "--global_batch_size", "16", "--use_cpu", "true"),
        *("--negative_prompt_epochs", "1", "--num_train_epochs", "2", "--warmup_steps", "2", "--save_steps", "2"),
        *("--logging_steps", "1", "--report_to", "none", "--output_dir", output),
        *more,
    ]


def finish(words: list, *more: str) -> None:
    done = subprocess.run([*map(str, words), *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_when(words: list, *more: str, ready) -> None:
    """Start the command and SIGKILL it (and its workers) as soon as `ready()`."""
    process = subprocess.Popen(
        [*map(str, words), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not ready():
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def weights(output: Path) -> dict:
    prompt = load_file(output / "negative_prompt" / "model.safetensors")
    return {**load_file(output / "model.safetensors"), **{f"negative_prompt.{k}": v for k, v in prompt.items()}}


def assert_equal(found: Path, expected: Path) -> None:
    found, expected = weights(found), weights(expected)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not found[name].equal(expected[name])] == []


@pytest.fixture(scope="module")
def uninterrupted(scenes, clip_folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    finish(command(scenes, clip_folder, output))
    return output


def test_killed_in_each_phase_and_between(scenes, clip_folder, uninterrupted, tmp_path):
    output = tmp_path / "run"
    words = command(scenes, clip_folder, output, "--resume_from_checkpoint", "true")
    first, second = output / "phases/negative_prompt", output / "phases/unlearning"
    kill_when(words, ready=lambda: len(list_checkpoints(first)) == 2)
    assert not (first / "final").exists()
    kill_when(words, ready=(first / "final").is_dir)
    kill_when(words, ready=lambda: len(list_checkpoints(second)) == 2)
    finish(words)
    assert_equal(output, uninterrupted)


def test_other_seeds_give_other_weights(scenes, clip_folder, uninterrupted, tmp_path):
    finish(command(scenes, clip_folder, tmp_path / "run", "--seed", "7"))
    found, expected = weights(tmp_path / "run"), weights(uninterrupted)
    assert any(not found[name].equal(expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(scenes, clip_folder, uninterrupted, tmp_path, workers):
    output = tmp_path / "run"
    more = ("--resume_from_checkpoint", "true", "--dataloader_num_workers", str(workers))
    words = command(scenes, clip_folder, output, *more)
    draw = random.Random(workers)
    for _ in range(6):
        limit = time.monotonic() + draw.uniform(5, 14)
        process = subprocess.Popen(list(map(str, words)), start_new_session=True)
        while process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finish(words)
    assert_equal(output, uninterrupted)
