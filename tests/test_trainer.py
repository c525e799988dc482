"""What the trainer promises beside the gradient: metrics, clamp, rates, and that it learns nothing from a bad batch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed
from transformers.integrations import integration_utils

from ncu_hf.checkpoint import list_checkpoints
from ncu_hf.cli import parse_arguments
from ncu_hf.config import FORMULATIONS, MethodArguments
from ncu_hf.data import BadRecord, TooManyBadRecords, collator, open_pairs
from ncu_hf.data.loader.split import sealed
from ncu_hf.distributed import Shard
from ncu_hf.errors import TrainingStopped
from ncu_hf.loading import load_reference
from ncu_hf.modeling import Embeddings
from ncu_hf.objectives import Objective, build_objectives
from ncu_hf.phases import make_trainer
from ncu_hf.recipe import main
from ncu_hf.run import Run
from ncu_hf.step import Chunks, two_stage_backward
from ncu_hf.trainer import NCUTrainer
from ncu_hf.workspace import Workspace

PHASES = ("negative_prompt", "unlearning")
LOSSES = {
    "negative_prompt": {"separation_loss", "relation_loss", "matching_loss"},
    "unlearning": {"alignment_loss", "separation_loss"},
    "contrastive": {"contrastive_loss"},
}
CONFIDENCE = {f"clean_confidence_{part}" for part in ("q10", "q50", "q90", "forget", "retain")}
EVERY_STEP = {"loss", "learning_rate", "grad_norm", "epoch", "logit_scale", "samples_per_second"}
EVERY_STEP |= {"data_wait_ms", "data_wait_share"}


class Observer(TrainerCallback):
    """Keeps what it sees at each optimizer step, and every line of the log."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.lines: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append(dict(logs))


class Own(Objective):
    """An objective made of one function of the step's number (from 1 on) and log s; everything trains."""

    phase = "own"

    def __init__(self, loss: Callable[[int, Tensor], Tensor]):
        super().__init__(MethodArguments())
        self.loss, self.steps = loss, 0

    def trains(self, name: str, text_layers: int) -> bool:
        return True

    def __call__(self, image_embeds, text_embeds, negative_embeds, log_scale) -> dict[str, Tensor]:
        self.steps += 1
        return {"own_loss": self.loss(self.steps, log_scale) + (image_embeds * text_embeds).sum()}


@pytest.fixture
def options(scene_options, tmp_path) -> dict[str, Any]:
    return {
        **scene_options,
        "forget_ratio": 0.25,
        "max_steps": 2,
        "negative_prompt_max_steps": 2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": "true",
        "output_dir": tmp_path / "run",
    }


@pytest.fixture
def trainer_of(options, words) -> Callable[..., tuple[NCUTrainer, Observer]]:
    """The trainer of a phase (or of an objective of the test's own), as a run makes it, and its observer."""

    def make(phase: str | Objective, start_batch: int = 0, **changes) -> tuple[NCUTrainer, Observer]:
        arguments, _ = parse_arguments(words({**options, **changes}))
        data, output = arguments.data, Path(options["output_dir"])
        source = open_pairs(data.train_data, image_column=data.image_column, caption_column=data.caption_column)
        reference = load_reference(arguments.model, list, 0, output / "initial")
        run = Run(arguments, Workspace(output), source, reference)
        known = {objective.phase: objective for objective in build_objectives(arguments.method)}
        objective = phase if isinstance(phase, Objective) else known[phase]
        set_seed(arguments.training.seed)
        trainer = make_trainer(run, objective, reference.clip, None, output / "phases" / objective.phase)
        if start_batch:
            place = {"epoch": 0, "position": start_batch * arguments.training.global_batch_size}
            state = {"fingerprint": source.fingerprint, "seed": arguments.training.seed, **place}
            trainer.make_loader = lambda _: run.loader(sealed(state))
        observer = Observer()
        trainer.add_callback(observer)
        return trainer, observer

    return make


def state_of(trainer: NCUTrainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [
        name for name in expected if not torch.equal(found[name].nan_to_num(77), expected[name].nan_to_num(77))
    ]
    assert different == []


# Metrics


@pytest.mark.parametrize("phase", [*PHASES, "contrastive"])
def test_every_line_of_the_log_has_the_promised_metrics(phase, trainer_of):
    trainer, observer = trainer_of(phase, **({"method": "clip"} if phase == "contrastive" else {}))
    trainer.train()
    lines = [line for line in observer.lines if "loss" in line]
    assert len(lines) == 2
    promised = EVERY_STEP | LOSSES[phase]
    if phase != "contrastive":
        promised |= CONFIDENCE | {"margin_hits", "text_negative_similarity"}
    if phase == "unlearning":
        promised |= {"plan_entropy", "plan_marginal_error", "plan_iterations"}
    for line in lines:
        assert promised - line.keys() == set()
        assert [key for key, value in line.items() if not math.isfinite(value)] == []
        assert {key for key in line if key.endswith("_loss")} == LOSSES[phase]
        assert line["loss"] == pytest.approx(sum(line[key] for key in LOSSES[phase]), rel=1e-4)
        assert line["samples_per_second"] > 0
        assert line["data_wait_ms"] >= 0 and 0 <= line["data_wait_share"] <= 1
    if phase != "contrastive":
        quantiles = [lines[0][f"clean_confidence_{q}"] for q in ("q10", "q50", "q90")]
        assert quantiles == sorted(quantiles)
        assert lines[0]["clean_confidence_forget"] < lines[0]["clean_confidence_retain"]
        assert 0 <= lines[0]["margin_hits"] <= 1
    assert lines[-1]["logit_scale"] == trainer.model.clip.logit_scale.item()


def test_a_line_is_the_mean_over_its_steps(trainer_of):
    each, together = trainer_of("unlearning"), trainer_of("unlearning", logging_steps=2)
    for trainer, _ in (each, together):
        trainer.train()
    first, second = (line for line in each[1].lines if "loss" in line)
    (mean,) = (line for line in together[1].lines if "loss" in line)
    for key in ("loss", "alignment_loss", "plan_entropy", "clean_confidence_forget"):
        assert mean[key] == pytest.approx((first[key] + second[key]) / 2, rel=1e-4)


def test_report_to(trainer_of, monkeypatch):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    trainer, _ = trainer_of("unlearning", report_to="tensorboard")
    trainer.train()
    assert "plan_entropy" in seen[0]


# What a step does


@pytest.mark.parametrize(("start", "push", "end"), [(4.7, 0, math.log(100)), (4.6, -1, math.log(100)), (0.01, 1, 0)])
def test_logit_scale_is_clamped(start, push, end, trainer_of):
    trainer, _ = trainer_of(Own(lambda step, log_scale: push * log_scale), max_steps=1, learning_rate=0.5)
    with torch.no_grad():
        trainer.model.clip.logit_scale.fill_(start)
    trainer.train()
    assert trainer.model.clip.logit_scale.item() == pytest.approx(end, abs=1e-6)


def test_logit_scale_moves_freely_inside(trainer_of):
    trainer, _ = trainer_of(Own(lambda step, log_scale: -log_scale), max_steps=1, learning_rate=0.5)
    with torch.no_grad():
        trainer.model.clip.logit_scale.fill_(2.0)
    trainer.train()
    assert trainer.model.clip.logit_scale.item() == pytest.approx(2.5, abs=1e-3)  # Adam's first step is the rate


def cosine(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@pytest.mark.parametrize(
    ("phase", "peaks"), [("negative_prompt", {"towers": 2e-4, "prompt": 7e-4}), ("unlearning", {"towers": 3e-5})]
)
def test_warm_up_and_cosine(phase, peaks, trainer_of):
    trainer, observer = trainer_of(
        phase,
        max_steps=9,
        negative_prompt_max_steps=9,
        warmup_steps=3,
        negative_prompt_learning_rate=2e-4,
        prompt_learning_rate=7e-4,
        learning_rate=3e-5,
    )
    trainer.train()
    assert len(observer.rates) == 9
    for step, rates in enumerate(observer.rates):
        expected = [peaks["towers"]] * 2 + ([peaks["prompt"]] if "prompt" in peaks else []) + [peaks["towers"]]
        assert rates == pytest.approx([peak * cosine(step, 3, 9) for peak in expected], abs=1e-12)


def test_accumulated_gradient_is_the_mean_of_the_batches(trainer_of):
    found, parts = [], []
    for changes, gradients in (({"gradient_accumulation_steps": 2}, found), ({}, parts), ({"start_batch": 1}, parts)):
        trainer, observer = trainer_of("unlearning", max_steps=1, **changes)
        trainer.train()
        gradients += observer.gradients
    assert len(found) == 1
    for name, gradient in found[0].items():
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6, msg=name)


def test_bf16_keeps_embeddings_losses_and_weights_in_float32(trainer_of):
    trainer, _ = trainer_of("unlearning", bf16="true", max_steps=1)
    inner, seen = [], []
    trainer.model.clip.text_projection.register_forward_hook(lambda module, args, output: inner.append(output.dtype))
    objective = trainer.objective

    class Watched(Own):
        phase, needs_negative_text = "unlearning", True

        def __call__(self, *embeddings):
            outputs = objective(*embeddings)
            seen.extend([*embeddings, *outputs.values()])
            return outputs

    trainer.objective = Watched(lambda *_: None)
    trainer.train()
    assert set(inner) == {torch.bfloat16}
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    plan = next(line for line in trainer.state.log_history if "plan_marginal_error" in line)
    assert plan["plan_marginal_error"] < 1e-2


@pytest.mark.parametrize(
    ("accumulation", "steps"),
    [(1, [6, 12]), (4, [2, 3])],  # an epoch has 6 batches
)
def test_a_checkpoint_an_epoch(accumulation, steps, trainer_of):
    trainer, _ = trainer_of(
        "unlearning",
        max_steps=-1,
        num_train_epochs=2,
        save_strategy="epoch",
        gradient_accumulation_steps=accumulation,
        save_total_limit=5,
    )
    trainer.train()
    assert [path.name for path in list_checkpoints(Path(trainer.args.output_dir))] == [f"checkpoint-{s}" for s in steps]
    assert trainer.state.epoch == 2


# Records that cannot be used


def spoil(monkeypatch, is_bad: Callable[[int], bool]) -> None:
    """Make the images of some records unreadable, chosen by the number of the record in the order of reading."""
    decode, count = collator.decode_image, iter(range(10**6))

    def decode_or_not(*args):
        if is_bad(next(count)):
            raise BadRecord("truncated")
        return decode(*args)

    monkeypatch.setattr(collator, "decode_image", decode_or_not)


def test_health_ceiling(trainer_of, monkeypatch):
    spoil(monkeypatch, lambda record: record % 8 == 0)
    trainer, _ = trainer_of("unlearning", max_steps=20, max_bad_fraction=0.1)
    with pytest.raises(TooManyBadRecords, match=r"14 of 112 records .*truncated.*--max_bad_fraction"):
        trainer.train()
    assert trainer.state.global_step == 7  # the first line of the log after 100 records


def test_below_the_health_ceiling(trainer_of, monkeypatch):
    spoil(monkeypatch, lambda record: record % 8 == 0)
    trainer, _ = trainer_of("unlearning", max_steps=8, max_bad_fraction=0.2)
    trainer.train()
    assert (trainer.health.seen, trainer.health.reasons) == (128, {"truncated": 16})


def test_the_ceiling_of_a_run_shorter_than_a_line_of_the_log(trainer_of, monkeypatch, tmp_path):
    spoil(monkeypatch, lambda record: record % 8 == 0)
    trainer, _ = trainer_of("unlearning", max_bad_fraction=0.1, logging_steps=50)
    trainer.train()
    with pytest.raises(TooManyBadRecords, match="4 of 32 records"):
        trainer.save_outcome(tmp_path / "final")
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("usable", [0, 1])
def test_a_batch_with_hardly_a_record(usable, phase, trainer_of, monkeypatch):
    """16 records a batch: all of the second are unreadable, or all but one."""
    spoil(monkeypatch, lambda record: 16 <= record < 32 - usable)
    trainer, observer = trainer_of(phase, max_steps=3, negative_prompt_max_steps=3, max_bad_fraction=1.0)
    trainer.train()
    assert trainer.state.global_step == 3
    assert all(tensor.isfinite().all() for tensor in state_of(trainer).values())
    first, second, _ = observer.gradients
    assert any(gradient.any() for gradient in first.values())
    if not usable:
        assert not any(gradient.any() for gradient in second.values())


def test_a_process_without_rows_takes_part():
    """Its stand-in row is encoded, counts for nothing, and reaches every parameter with a zero gradient."""
    weight = torch.nn.Parameter(torch.ones(3))
    log_scale = torch.nn.Parameter(torch.tensor(1.0))
    sizes = []

    def encode(chunk: dict[str, Tensor]) -> tuple[Embeddings, Tensor]:
        return Embeddings(chunk["x"] * weight, chunk["x"] + weight, None), log_scale

    def objective(image, text, negative, scale, shard) -> dict[str, Tensor]:
        sizes.append((len(image), len(text), negative, shard.n))
        return {"some_loss": (image * text).sum() * scale}

    two_stage_backward(
        encode,
        Chunks([{"x": torch.ones(1, 3)}]),
        objective,
        backward=lambda loss: loss.backward(),
        check=lambda loss: None,
        shard=Shard((0,)),
    )
    assert sizes == [(0, 0, None, 0)]
    assert weight.grad.equal(torch.zeros(3))
    assert log_scale.grad.item() == 0


# A loss that is not finite


def test_nan_in_a_weight_stops_before_the_step(trainer_of):
    trainer, observer = trainer_of("unlearning")
    with torch.no_grad():
        trainer.model.clip.visual_projection.weight[0, 0] = math.nan
    before = state_of(trainer)
    with pytest.raises(TrainingStopped) as stopped:
        trainer.train()
    keys = next(iter(trainer.make_loader(None)))["keys"]
    folder = Path(trainer.args.output_dir)
    for part in ("nan", "step 1", "phase unlearning", keys[0], keys[3], "all 16", "non_finite_batch.json", "none yet"):
        assert part in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert json.loads((folder / "non_finite_batch.json").read_text()) == {"step": 1, "keys": keys}
    assert observer.gradients == []
    assert_same(state_of(trainer), before)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("branch", Embeddings._fields)
def test_nan_in_one_embedding_stops(branch, phase, formulation, trainer_of):
    trainer, observer = trainer_of(phase, formulation=formulation)
    encode = trainer._encode

    def spoilt(*inputs):
        embeddings, log_scale = encode(*inputs)
        row = torch.arange(len(embeddings.image))[:, None] == 3
        return embeddings._replace(**{branch: getattr(embeddings, branch).masked_fill(row, math.nan)}), log_scale

    trainer._encode = spoilt
    with pytest.raises(TrainingStopped, match="the loss is nan at step 1"):
        trainer.train()
    assert observer.gradients == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_later_loss_names_the_last_checkpoint(value, trainer_of):
    objective = Own(lambda step, log_scale: log_scale * (value if step == 4 else 1))
    trainer, observer = trainer_of(objective, max_steps=6, save_strategy="steps", save_steps=3)
    with pytest.raises(TrainingStopped, match=rf"{value} at step 4 .*checkpoint-3\.$"):
        trainer.train()
    assert len(observer.gradients) == 3
    resumed, _ = trainer_of(Own(lambda step, log_scale: log_scale), max_steps=6)
    resumed._load_from_checkpoint(str(Path(trainer.args.output_dir) / "checkpoint-3"))
    assert_same(state_of(trainer), state_of(resumed))


def test_the_command_says_it_in_one_line(options, monkeypatch, capfd, words):
    monkeypatch.setattr(sys, "argv", ["ncu.py", *words({**options, "relation_weight": "nan"})])
    with pytest.raises(SystemExit) as stopped:
        main({})
    assert stopped.value.code == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("stopped: ", "Traceback"))]
    assert len(said) == 1
    assert "the loss is nan at step 1 of phase negative_prompt" in said[0]
