"""The plan of a run against what the run then does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ncu_hf.cli import parse_arguments
from ncu_hf.modeling import NCUModel
from ncu_hf.objectives import build_objectives
from ncu_hf.phases import make_trainer
from ncu_hf.planning import make_plan
from ncu_hf.planning.memory import LiveBytes, encoding_bytes, matrix_bytes
from ncu_hf.planning.phases import PhasePlan
from ncu_hf.run import Run


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
        pytest.param({"global_batch_size": 96, "chunk_size": 16, "formulation": "paper"}, marks=pytest.mark.slow),
        {"method": "clip"},
        {"method": "sdd", "sdd_drop_threshold": -1.0, "sdd_clean_threshold": 0.1},
    ],
    ids=str,
)
def test_memory_of_a_step_is_what_training_takes(changes, prepare, tmp_path):
    for phase, taken in memory_taken(prepare(**changes), tmp_path):
        assert phase.memory.peak == pytest.approx(taken, rel=0.25)


@pytest.mark.slow
def test_memory_of_a_step_is_planned_for_captions_that_all_are_long(prepare, tmp_path):
    for phase, taken in memory_taken(prepare(global_batch_size=96), tmp_path):  # enough rows for batches by length
        assert 0.6 * phase.memory.peak < taken < phase.memory.peak


def memory_taken(run: Run, folder: Path) -> Iterator[tuple[PhasePlan, int]]:
    """The plan of each phase, and the most bytes that two steps of it took."""
    objectives = build_objectives(run.arguments.method)
    for objective, phase in zip(objectives, make_plan(run, objectives).phases, strict=True):
        trainer = trained(run, objective, folder)
        weights = list(trainer.model.parameters())
        with LiveBytes([*weights, *trainer.model.buffers()]) as live:
            trainer.train()
        yield phase, live.peak + sum(weight.nbytes for weight in weights)


@pytest.mark.parametrize("half", [False, True])
def test_memory_does_not_depend_on_where_the_model_lies(half, make_clip):
    here, elsewhere = (
        encoding_bytes(NCUModel(make_clip().to(device)), (4, 3, 32, 32), 12, False, half, False)
        for device in ("cpu", "meta")
    )
    assert elsewhere == here > 0


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
