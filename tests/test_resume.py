"""A run killed at any step, of either phase or between them, ends in the weights of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ncu_hf.checkpoint import list_checkpoints, read_json
from ncu_hf.trainer import NCUTrainer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def recipe_words(command) -> Callable[..., list[str]]:
    """The command of a run of 6 and 12 steps, as a user types it: `recipe_words(output, seed=7)`."""

    def line(output: Path, **changes) -> list[str]:
        flags = command(output, num_train_epochs=2, warmup_steps=2, **changes)
        return [sys.executable, str(ROOT / "recipes/ncu.py"), *flags]

    return line


def finish(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_when(words: list[str], *, ready: Callable[[], bool]) -> None:
    """Start the command and SIGKILL it (and its workers) as soon as `ready()`."""
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not ready():
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def uninterrupted(recipe_words, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    finish(recipe_words(output))
    return output


def test_killed_in_phase_2(recipe_words, uninterrupted, tmp_path, distance):
    output = tmp_path / "run"
    words = recipe_words(output, resume_from_checkpoint="true")
    kill_when(words, ready=lambda: len(list_checkpoints(output / "phases/unlearning")) == 2)
    finish(words)
    assert distance(output, uninterrupted) == 0


@pytest.mark.slow
def test_killed_in_phase_1_and_behind_it(recipe_words, uninterrupted, tmp_path, distance):
    output = tmp_path / "run"
    words = recipe_words(output, resume_from_checkpoint="true")
    first = output / "phases/negative_prompt"
    kill_when(words, ready=lambda: len(list_checkpoints(first)) == 2)
    assert not (first / "final").exists()
    kill_when(words, ready=(first / "final").is_dir)
    finish(words)
    assert distance(output, uninterrupted) == 0


@pytest.mark.slow
def test_other_seeds_give_other_weights(recipe_words, uninterrupted, tmp_path, distance):
    finish(recipe_words(tmp_path / "run", seed=7))
    assert distance(tmp_path / "run", uninterrupted) > 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(recipe_words, uninterrupted, tmp_path, workers, distance):
    output = tmp_path / "run"
    words = recipe_words(output, resume_from_checkpoint="true", dataloader_num_workers=workers)
    draw = random.Random(workers)
    for _ in range(6):
        limit = time.monotonic() + draw.uniform(5, 14)
        process = subprocess.Popen(words, start_new_session=True)
        while process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finish(words)
    assert distance(output, uninterrupted) == 0


# In this process: other methods and settings, at fixed steps


class Killed(BaseException):
    """Stands for a signal: nothing in the library may catch it."""


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"lora_rank": 4, "lora_towers": "text"}, marks=pytest.mark.slow),
        pytest.param({"gradient_accumulation_steps": 2, "save_steps": 1}, marks=pytest.mark.slow),
        pytest.param(
            {"model": None, "model_config": "tiny", "vocab_size": 600, "method": "clip", "num_train_epochs": 2},
            marks=pytest.mark.slow,
        ),
        {"forget_window": 3, "negative_rank": 2},
        # Epochs of 6 batches, checkpoints in the middle of both.
        {
            "method": "sdd",
            "num_train_epochs": 2,
            "sdd_clean_threshold": 0.1,
            "sdd_drop_threshold": 0.0,
            "max_grad_norm": 10,
        },
        pytest.param({"lora_rank": 4}, marks=pytest.mark.slow),
        pytest.param({"bf16": "true"}, marks=pytest.mark.slow),
        pytest.param({"optim": "adafactor"}, marks=pytest.mark.slow),
        pytest.param({"method": "sdd", "num_train_epochs": 2, "lora_rank": 4}, marks=pytest.mark.slow),
        pytest.param({"augment_negative_captions": "true", "dataloader_num_workers": 2}, marks=pytest.mark.slow),
        pytest.param({"streaming": "true", "train_pairs": 96}, marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_run_ends_in_the_same_weights(changes, recipe, monkeypatch, distance):
    whole = recipe("whole", **changes)
    training_step, save_outcome, calls = NCUTrainer.training_step, NCUTrainer.save_outcome, {"batch": 0, "outcome": 0}

    def batch(trainer: NCUTrainer, *args):
        calls["batch"] += 1
        if calls["batch"] in (6, 12):  # on the way to step 6 of phase 1, and in the one after that
            raise Killed
        return training_step(trainer, *args)

    def outcome(trainer: NCUTrainer, folder: Path):
        calls["outcome"] += 1
        if calls["outcome"] == 1:  # the last step has its checkpoint, but the phase has no outcome yet
            raise Killed
        save_outcome(trainer, folder)

    monkeypatch.setattr(NCUTrainer, "training_step", batch)
    monkeypatch.setattr(NCUTrainer, "save_outcome", outcome)
    for _ in range(3):
        with pytest.raises(Killed):
            recipe("cut", **changes, resume_from_checkpoint="true")
    cut = recipe("cut", **changes, resume_from_checkpoint="true")
    assert distance(cut, whole) == 0
    found, expected = (read_json(folder / "data_health.json") for folder in (cut, whole))
    assert found == expected
