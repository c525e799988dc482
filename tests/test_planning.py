"""The plan of a run: its numbers against hand-computed ones, and against what a real run then does."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ncu_hf.cli import parse_arguments
from ncu_hf.data import StreamSource, open_pairs
from ncu_hf.data.shards.base import Shard
from ncu_hf.loading import load_reference
from ncu_hf.objectives import build_objectives
from ncu_hf.phases import make_trainer
from ncu_hf.planning import Plan, make_plan
from ncu_hf.planning.data import plan_data
from ncu_hf.planning.doubts import doubts
from ncu_hf.planning.memory import LiveBytes, matrix_bytes
from ncu_hf.planning.units import count, duration, size
from ncu_hf.recipe import main
from ncu_hf.run import Run
from ncu_hf.workspace import Workspace

WORDS = 600  # at most, of the vocabulary of the tiny model


@pytest.fixture
def prepare(command, tmp_path) -> Callable[..., Run]:
    """A run of the recipe that stands before its first phase: `prepare(global_batch_size=32)`."""

    def make(source: StreamSource | None = None, **changes) -> Run:
        arguments, _ = parse_arguments(command(tmp_path / "run", **changes))
        data = arguments.data
        if source is None:
            columns = {"image_column": data.image_column, "caption_column": data.caption_column}
            source = open_pairs(data.train_data, **columns)
        reference = load_reference(arguments.model, source.captions, 0, tmp_path / "initial")
        return Run(arguments, Workspace(tmp_path / "run"), source, reference)

    return make


@pytest.fixture
def plan_of(prepare) -> Callable[..., Plan]:
    def make(**changes) -> Plan:
        run = prepare(**changes)
        return make_plan(run, build_objectives(run.arguments.method))

    return make


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


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


# Against what a run does


def trained(run: Run, objective, folder: Path, **changes):
    trainer = make_trainer(run, objective, copy.deepcopy(run.reference.clip), None, folder)
    for name, value in {"save_strategy": "no", "max_steps": 2, **changes}.items():
        setattr(trainer.args, name, value)
    return trainer


@pytest.mark.parametrize(
    "changes", [{}, {"method": "clip", "optim": "sgd"}, {"lora_rank": 4}], ids=["ncu", "sgd", "lora"]
)
def test_optimizer_state_is_what_a_step_leaves(changes, prepare, tmp_path):
    run = prepare(**changes)
    objectives = build_objectives(run.arguments.method)
    for objective, phase in zip(objectives, make_plan(run, objectives).phases, strict=True):
        trainer = trained(run, objective, tmp_path, max_steps=1)
        trainer.train()
        state = trainer.optimizer.state.values()
        tensors = [value for values in state for value in values.values() if isinstance(value, torch.Tensor)]
        assert phase.memory.optimizer == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunk_size": 4},
        pytest.param({"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        {"bf16": "true"},
        pytest.param({"lora_rank": 4}, marks=pytest.mark.slow),
        pytest.param({"global_batch_size": 96, "formulation": "paper"}, marks=pytest.mark.slow),
        {"method": "clip"},
        {"method": "sdd", "sdd_drop_threshold": -1.0, "sdd_clean_threshold": 0.1},
    ],
    ids=str,
)
def test_memory_of_a_step_is_what_training_takes(changes, prepare, tmp_path):
    run = prepare(**changes)
    objectives = build_objectives(run.arguments.method)
    for objective, phase in zip(objectives, make_plan(run, objectives).phases, strict=True):
        trainer = trained(run, objective, tmp_path)
        weights = list(trainer.model.parameters())
        with LiveBytes([*weights, *trainer.model.buffers()]) as live:
            trainer.train()
        taken = live.peak + sum(weight.nbytes for weight in weights)
        assert phase.memory.peak == pytest.approx(taken, rel=0.25)


@pytest.mark.parametrize("formulation", ["released", "paper"])
@pytest.mark.parametrize("phase", [0, 1])
def test_memory_of_large_batches_follows_from_small_ones(formulation, phase, monkeypatch):
    arguments, _ = parse_arguments(["--formulation", formulation, "--output_dir", "none", "--use_cpu", "true"])
    objective = build_objectives(arguments.method)[phase]
    monkeypatch.setattr("ncu_hf.planning.memory._TRIAL_ROWS", 1000)
    tried = matrix_bytes(objective, 800, 64)
    monkeypatch.setattr("ncu_hf.planning.memory._TRIAL_ROWS", 128)
    assert matrix_bytes(objective, 800, 64) == pytest.approx(tried, rel=0.15)
    assert tried > 800 * 801 * 4


@pytest.mark.parametrize("method", [{}, {"method": "sdd"}], ids=["ncu", "sdd"])
def test_checkpoints_and_disk_are_what_a_run_leaves(method, recipe, prepare, tmp_path):
    changes = {"save_total_limit": 0, "save_steps": 4, **method}  # of 6 steps
    run = prepare(**changes)
    plan = make_plan(run, build_objectives(run.arguments.method))
    output = recipe(**changes)
    for phase in plan.phases:
        found = sorted(output.glob(f"phases/{phase.name}/checkpoint-*"))
        assert len(found) == phase.checkpoints == phase.checkpoints_kept == 2
        for folder in found:
            assert phase.checkpoint_bytes == pytest.approx(folder_bytes(folder), rel=0.05, abs=40_000)
        final = folder_bytes(output / "phases" / phase.name / "final")
        assert phase.outcome_bytes == pytest.approx(final, rel=0.05, abs=40_000)
    evidence = ["README.md", "results.json", "data_health.json", "run.json", *(output / "plots").iterdir()]
    written = folder_bytes(output) - sum((output / name).stat().st_size for name in evidence)
    assert plan.disk.final == pytest.approx(written, rel=0.05, abs=7 * 40_000)  # a card in each of seven folders


@pytest.mark.parametrize(
    ("changes", "written", "kept"),
    [
        ({"save_steps": 5}, 2, 2),
        ({"save_steps": 1}, 6, 2),
        ({"save_steps": 0.3, "save_total_limit": 9}, 3, 3),
        ({"save_steps": 100}, 1, 1),
        ({"save_strategy": "no"}, 0, 0),
        ({"save_strategy": "epoch", "num_train_epochs": 3}, 3, 2),
    ],
    ids=str,
)
def test_number_of_checkpoints(changes, written, kept, prepare, tmp_path, monkeypatch):
    run = prepare(method="clip", **changes)
    (objective,) = build_objectives(run.arguments.method)
    (phase,) = make_plan(run, [objective]).phases
    assert (phase.checkpoints, phase.checkpoints_kept) == (written, kept)
    monkeypatch.setattr("ncu_hf.trainer.rotate_checkpoints", lambda folder, limit: None)
    make_trainer(run, objective, copy.deepcopy(run.reference.clip), None, tmp_path).train()
    assert len(list(tmp_path.glob("checkpoint-*"))) == written


def test_peak_of_the_disk_has_room_for_the_checkpoint_that_replaces_one(plan_of):
    many, one = plan_of(save_steps=1, save_total_limit=1), plan_of(save_steps=100)
    assert one.disk.peak == one.disk.final == many.disk.final
    assert many.disk.peak > many.disk.final


def test_a_resumed_run_tells_what_is_done(recipe, prepare):
    recipe()
    run = prepare(resume_from_checkpoint="true")
    run.workspace.final("unlearning").rename(run.workspace.folder / "elsewhere")
    first, second = make_plan(run, build_objectives(run.arguments.method)).phases
    assert (first.standing, second.standing) == ("complete", "goes on from checkpoint-6")
    run = prepare()
    assert {phase.standing for phase in make_plan(run, build_objectives(run.arguments.method)).phases} == {""}


# Streams


class Stored(Shard):
    """A shard that only tells about itself."""

    def __init__(self, name: str, rows: int | None, size: int | None):
        self.name, self.rows, self.size = name, rows, size

    def read(self, start, first, problems):
        raise AssertionError("a plan does not read it")

    count = read

    def estimate_rows(self) -> float:
        return 50.0


def stream(rows: list[int | None], **options: Any) -> StreamSource:
    shards = [Stored(f"{i}.tar", length, 1000 * (i + 1)) for i, length in enumerate(rows)]
    return StreamSource(shards, name="shards", format="webdataset", fingerprint="abc", **options)


def test_a_stream_of_known_lengths(prepare):
    data = plan_data(prepare(stream([30, 40, 31]), method="clip"))
    assert (data.samples, data.exact, data.tail) == (101, True, 5)
    assert (data.shards, data.all_shards, data.shard_bytes, data.by_density) == (3, 3, 6000, None)
    assert data.record_bytes == pytest.approx(6000 / 101)


def test_a_stream_of_unknown_lengths(prepare):
    data = plan_data(prepare(stream([None] * 3), method="clip", max_steps=2))
    assert (data.samples, data.exact, data.tail) == (300, False, None)  # 50 in the first, the others by size
    data = plan_data(prepare(stream([None] * 3, total_rows=1000), method="clip"))
    assert (data.samples, data.exact, data.by_density) == (1000, False, 300)


def test_a_subset_of_a_stream(prepare):
    data = plan_data(prepare(stream([30, 40, 31], parts=[(0, 0, 20), (2, 5, None)]), method="clip"))
    assert (data.samples, data.shards, data.all_shards, data.shard_bytes) == (20 + 26, 2, 3, 4000)


def test_density_of_a_subset(prepare):
    data = plan_data(prepare(stream([None] * 3, total_rows=1200, parts=[(2, 0, None)]), method="clip"))
    assert (data.samples, data.by_density) == (600, 150)  # half of the bytes


def test_a_subset_is_told(plan_of):
    plan = plan_of()
    data = replace(plan.data, shards=2, all_shards=9, subset={"count": 5000, "seed": 0, "shards": 2})
    printed = replace(plan, data=data).text()
    assert "5,000 pairs, chosen by seed 0\n" in printed and "2 of 9 shards, " in printed


@pytest.mark.parametrize(
    ("shards", "processes", "readers", "told"),
    [
        (12, 2, 2, "12 shards, 3 for each"),
        (11, 2, 1, "11 shards, 5 or 6 for each"),
        (2, 7, 1, "2 shards, each shared by 3 or 4 readers"),
        (1, 3, 1, "1 shard, each shared by 3 readers"),
    ],
)
def test_shards_for_each_reader(shards, processes, readers, told, plan_of):
    plan = plan_of()
    data = replace(plan.data, shards=shards, all_shards=shards, processes=processes, readers=readers)
    assert f"): {told}\n" in replace(plan, data=data).text()


def test_a_stream_is_planned_as_it_is_read(scenes, command, tmp_path, monkeypatch, capfd):
    flags = command(tmp_path / "run", streaming="true", train_subset="0.5", subset_seed=3)
    monkeypatch.setattr(sys, "argv", ["ncu.py", *flags, "--plan"])
    main({})
    printed = capfd.readouterr().out
    assert "  subset                    0.5 of the pairs, chosen by seed 3\n" in printed
    assert "48, as the shards tell" in printed
    assert "1 (1 process x 1): 1 shard, " in printed
    assert files(tmp_path) == []


# Doubtful choices


def warned(plan: Plan, **method) -> list[str]:
    flags = [word for name, value in method.items() for word in (f"--{name}", str(value))]
    arguments, _ = parse_arguments(["--output_dir", "none", "--use_cpu", "true", *flags])
    return [line.split(":")[0] for line in doubts(plan, arguments)]


def test_a_sound_plan_is_silent(plan_of):
    assert warned(plan_of()) == []


def test_space(plan_of):
    plan = plan_of()
    disk = replace(plan.disk, free=plan.disk.peak - 1)
    assert warned(replace(plan, disk=disk)) == ["Disk"]
    assert warned(replace(plan, disk=replace(disk, free=plan.disk.peak))) == []
    memory = replace(plan.memory, device="cuda:0", device_total=plan.memory.step - 1)
    assert warned(replace(plan, memory=memory)) == ["Memory"]
    assert warned(replace(plan, memory=replace(memory, device_total=plan.memory.step))) == []
    memory = replace(plan.memory, host_free=int(plan.memory.host) - 1)
    assert warned(replace(plan, memory=memory)) == ["Memory"]


def test_readers(plan_of):
    plan = plan_of()

    def with_data(workers: int, **changes) -> list[str]:
        return warned(replace(plan, workers=workers, data=replace(plan.data, **changes)))

    assert with_data(0, shards=3, processes=4, readers=1) == ["Shards"]
    assert with_data(0, shards=4, processes=4, readers=1) == []
    assert with_data(3, shards=8, processes=4, readers=2) == ["Shards"]
    assert with_data(2, shards=8, processes=4, readers=2) == []
    assert with_data(0, samples=3_000_000) == ["Workers"]
    assert with_data(1, samples=3_000_000) == []
    assert with_data(0, samples=3_000) == []


def test_length(plan_of):
    plan = plan_of()
    for by_density, doubtful in ((None, False), (90, False), (140, False), (150, True), (60, True)):
        data = replace(plan.data, by_density=by_density)  # 96 pairs
        assert warned(replace(plan, data=data)) == ["Length"] * doubtful


def test_warm_up(plan_of):
    assert warned(plan_of(warmup_steps=6)) == ["Warm-up", "Warm-up"]
    assert warned(plan_of(warmup_steps=6, num_train_epochs=2)) == ["Warm-up"]
    assert warned(plan_of(warmup_steps=5)) == []


def test_batches(plan_of):
    plan = plan_of()
    assert warned(plan, global_batch_size=255) == ["Batch"]
    assert warned(plan, global_batch_size=256) == []
    assert warned(plan, global_batch_size=8) == ["Batch", "Forgetting"]
    assert warned(plan, global_batch_size=8, forget_ratio=0) == ["Batch"]
    assert warned(plan, global_batch_size=8, method="clip") == ["Batch"]


# Counting


def test_live_bytes():
    known = torch.ones(1000)
    with LiveBytes([known]) as live:
        assert known.view(10, 100).T.sum() == 1000  # a view is free, the sum is 4 bytes
        first = torch.zeros(100)
        second = first + 1
        assert live.now == 800
        third = second.view(10, 10)
        del second
        assert live.now == 800  # the view still holds it
        del third
        assert live.now == 400
        first = torch.zeros(25)
        assert live.now == 100
    assert live.peak >= 800
    assert first.sum() == 0


def test_units():
    assert [size(n) for n in (0, 999, 1000, 1024, 10 * 1024, 150 * 1024, 3.4 * 2**30, 2**50)] == [
        *("0 bytes", "999 bytes", "0.98 KiB", "1.00 KiB", "10.0 KiB", "150 KiB", "3.40 GiB", "1,024 TiB"),
    ]
    assert [duration(s) for s in (0.123, 12.3, 99, 3723)] == ["0.12 s", "12 s", "99 s", "1:02:03"]
    assert count(1234567.4) == "1,234,567"
