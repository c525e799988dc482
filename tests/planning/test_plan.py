"""The plan of a run: how it is printed, and its numbers against hand-computed ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ncu_hf.cli import parse_arguments
from ncu_hf.planning.units import count, duration, size
from ncu_hf.recipe import main

WORDS = 600  # at most, of the vocabulary of the tiny model


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# The flag


def test_the_flag_needs_no_value(command, tmp_path):
    flags = command(tmp_path / "run")
    assert parse_arguments([*flags, "--plan"])[0].training.plan is True
    assert parse_arguments([*flags, "--plan", "--seed", "3"])[0].training.plan is True
    assert parse_arguments(flags)[0].training.plan is False


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "clip"},
        {"model": None, "model_config": "tiny", "vocab_size": WORDS},
        {"lora_rank": 2},
        {"method": "sdd"},
    ],
    ids=["ncu", "clip", "scratch", "lora", "sdd"],
)
def test_a_recipe_prints_the_plan_and_writes_nothing(changes, command, tmp_path, monkeypatch, capfd):
    flags = command(tmp_path / "run", **changes)
    monkeypatch.setattr(sys, "argv", ["ncu.py", *flags, "--plan"])
    main({})
    printed = capfd.readouterr().out
    assert printed.startswith(f"Plan of {tmp_path / 'run'} (nothing is trained or written)\n")
    assert printed.count("Plan of") == 1
    assert f"Written to {tmp_path / 'run'}" in printed
    assert ("contrastive" in printed) == (changes.get("method") == "clip")
    assert ("initial/" in printed) == ("model_config" in changes)
    assert ("siamese copy" in printed) == ("passes that only rate" in printed) == (changes.get("method") == "sdd")
    assert "None" not in printed
    assert "nan" not in printed
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 100
    assert not (tmp_path / "run").exists()
    assert files(tmp_path) == []


@pytest.mark.slow
def test_two_processes_print_one_plan(command, tmp_path, launch):
    done = launch(2, "recipes/ncu.py", *command(tmp_path / "run"), "--plan")
    assert done.stdout.count("Plan of") == 1
    assert "2 (2 processes x 1): indexed" in done.stdout
    assert "reduction buckets" in done.stdout
    assert files(tmp_path) == []


# Numbers, by hand


def tower(width: int, positions: int) -> int:
    """Parameters of two blocks of the tiny CLIP, its position embedding and its last normalisation."""
    attention = 4 * (width * width + width)
    mlp = width * 4 * width + 4 * width + 4 * width * width + width
    return 2 * (attention + mlp + 2 * 2 * width) + positions * width + 2 * width


def test_parameters(plan_of, prepare):
    words = prepare().reference.clip.config.text_config.vocab_size
    patches = 3 * 8 * 8 * 32  # without a bias
    vision = tower(32, 4 * 4 + 1) + patches + 32 + 2 * 32  # class embedding, first normalisation
    text = tower(32, 32) + words * 32
    projections = 2 * 32 * 32
    prompt, scale = 8 * 32, 1
    first, second = plan_of().phases
    assert first.parameters == second.parameters == vision + text + projections + prompt + scale
    assert first.trainable == text + projections + prompt + scale
    # Phase 2 freezes the prompt and both embeddings of the text; 5/12 of two blocks are none.
    assert second.trainable == vision + text - words * 32 - 32 * 32 + projections + scale
    assert first.memory.weights == 4 * first.parameters
    assert first.memory.gradients == 4 * first.trainable
    assert first.memory.embeddings == 3 * 16 * 32 * 4


def test_steps(plan_of):
    first, second = plan_of(negative_prompt_epochs=2, num_train_epochs=5, warmup_steps=0.1, global_batch_size=20).phases
    assert (first.steps, second.steps) == (2 * 4, 5 * 4)  # 96 pairs: four batches of 20, 16 left
    assert (first.epochs, second.epochs) == (2, 5)
    assert (first.warmup_steps, second.warmup_steps) == (1, 2)
    assert (first.samples_seen, second.samples_seen) == (160, 400)
    assert (first.learning_rate, second.learning_rate) == (1e-4, 5e-5)
    assert (first.negatives, second.negatives) == ("17 + 1 learned", "19 + 1 learned")  # two of 20 are forgotten


def test_steps_of_accumulated_batches(plan_of):
    (phase,) = plan_of(method="clip", num_train_epochs=3, gradient_accumulation_steps=4).phases
    assert (phase.steps, phase.accumulation, phase.samples_seen) == (4, 4, 256)  # 18 batches of 16
    assert phase.epochs == pytest.approx(16 / 6)
    assert phase.negatives == "15"


def test_a_method_that_rates_all_pairs_at_each_epoch(plan_of):
    (phase,) = plan_of(method="sdd", max_steps=13).phases  # epochs of 6 batches
    assert (phase.passes, phase.negatives, phase.samples_seen) == (3, "at most 15", 13 * 16)
    assert phase.memory.copy == phase.memory.gradients + phase.memory.optimizer
    assert [other.passes for other in plan_of().phases] == [None, None]


def test_data(plan_of):
    data = plan_of(global_batch_size=20, max_bad_fraction=0.25).data
    assert (data.samples, data.exact, data.tail) == (96, True, 16)
    assert (data.shards, data.readers, data.processes) == (None, 1, 1)


def test_the_loader_is_tried_with_its_workers(plan_of):
    plan = plan_of(dataloader_num_workers=2)
    assert (plan.workers, plan.data.readers) == (2, 2)
    assert plan.trial.rate > 0 and not plan.trial.settled  # six batches are ready before the pace shows
    assert ": at least " not in plan.text() and "at least " in plan.text()
    assert plan.trial.batch_bytes == 16 * (3 * 32 * 32 + 8 * plan.trial.tokens)
    assert 3 <= plan.trial.tokens <= 32


def test_units():
    assert [size(n) for n in (0, 999, 1000, 1024, 10 * 1024, 150 * 1024, 3.4 * 2**30, 2**50)] == [
        *("0 bytes", "999 bytes", "0.98 KiB", "1.00 KiB", "10.0 KiB", "150 KiB", "3.40 GiB", "1,024 TiB"),
    ]
    assert [duration(s) for s in (0.123, 12.3, 99, 3723)] == ["0.12 s", "12 s", "99 s", "1:02:03"]
    assert count(1234567.4) == "1,234,567"
