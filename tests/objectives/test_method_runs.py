"""Every method in the trainer: its gradient in chunks, a whole run, and the frozen reference of `softclip`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, TrainerCallback

from ncu_hf.adapters import has_adapters
from ncu_hf.config import MethodArguments
from ncu_hf.objectives import METHODS, Objective, build_objectives
from ncu_hf.reporting.methods import describe
from ncu_hf.trainer import NCUTrainer


class Gradient(TrainerCallback):
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.found = self.found or {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def first_gradient(trainer: NCUTrainer) -> dict[str, Tensor]:
    gradient = Gradient()
    trainer.add_callback(gradient)
    trainer.args.max_steps = 1
    trainer.train()
    return gradient.found


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest over the parameters; the bias of a key has no gradient but rounding, see `tests/test_gradients.py`."""
    assert found.keys() == expected.keys()
    return max(
        ((found[k] - expected[k]).norm() / expected[k.replace("k_proj.bias", "q_proj.bias")].norm()).item()
        for k in expected
    )


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("ncu", "clip")])
def test_two_chunks_give_the_gradient_of_one(method, trainers_of):
    whole, cut = trainers_of(method), trainers_of(method, chunk_size=11)
    for one, two in zip(whole, cut, strict=True):
        assert relative_error(first_gradient(two), first_gradient(one)) < 2e-5


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run(method, recipe, clip_folder, distance, load_plain):
    output = recipe(method=method, max_steps=2, negative_prompt_max_steps=2, save_steps=1, forget_ratio=0.25)
    kinds = build_objectives(MethodArguments(method=method))
    assert all(weight.isfinite().all() for weight in load_plain(output).state_dict().values())
    assert {path.name for path in (output / "phases").iterdir()} == {kind.phase for kind in kinds}
    assert (output / "negative_prompt").exists() == any(kind.needs_prompt for kind in kinds)
    reference = CLIPModel.from_pretrained(clip_folder).state_dict()
    checkpoint = load_file(output / "phases" / kinds[-1].phase / "checkpoint-2" / "model.safetensors")
    assert checkpoint.keys() == reference.keys() and not checkpoint["logit_scale"].equal(reference["logit_scale"])
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["method"] == method and [phase["steps"] for phase in results["phases"]] == [2] * len(kinds)
    assert describe(results)["procedure"][:60] in (output / "README.md").read_text(encoding="utf-8")


# The frozen reference


class Seen:
    """An objective that keeps what it is called with."""

    def __init__(self, objective: Objective):
        self.objective, self.calls = objective, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, *inputs) -> dict[str, Tensor]:
        self.calls.append(inputs)
        return self.objective(*inputs)


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 5}, {"bf16": "true"}, {"lora_rank": 2}], ids=str)
def test_the_reference_stays_what_the_run_started_from(changes, trainers_of):
    (trainer,) = trainers_of("softclip", learning_rate=1e-3, **changes)
    trainer.objective = Seen(trainer.objective)
    before = {name: weight.clone() for name, weight in trainer.model.reference.state_dict().items()}
    trainer.train()
    first, second = trainer.objective.calls
    tolerance = {"rtol": 0, "atol": 1e-6}
    for own, reference in zip(first[:2], first[4], strict=True):
        torch.testing.assert_close(own, reference, **tolerance)  # at the first step the model is the reference
        assert not reference.requires_grad
    assert not torch.allclose(second[0], second[4].image, **tolerance)
    after = trainer.model.reference.state_dict()
    assert before.keys() == after.keys() and all(after[name].equal(weight) for name, weight in before.items())
    assert not has_adapters(trainer.model.reference) and not trainer.model.clip.logit_scale.equal(
        before["clip.logit_scale"]
    )


@pytest.mark.parametrize("changes", [{}, {"model": None, "model_config": "tiny", "vocab_size": 600}], ids=str)
def test_a_resumed_run_has_the_same_reference(changes, recipe, monkeypatch, distance):
    class Killed(BaseException):
        pass

    settings = {"method": "softclip", "max_steps": 4, "save_steps": 2, **changes}
    whole = recipe("whole", **settings)
    step = NCUTrainer.training_step

    def die(trainer: NCUTrainer, *inputs):
        if trainer.state.global_step == 3:
            raise Killed
        return step(trainer, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(NCUTrainer, "training_step", die)
        with pytest.raises(Killed):
            recipe("cut", **settings)
    assert distance(recipe("cut", **settings, resume_from_checkpoint="true"), whole) == 0


def test_the_reference_reaches_the_loss(recipe, distance):
    """Twice the same run, but for the weight of what the reference says."""
    outputs = [recipe(str(w), method="softclip", max_steps=2, soft_weight=w) for w in (0.0, 0.9)]
    assert distance(*outputs) > 0
    assert distance(outputs[0], recipe("clip", method="clip", max_steps=2)) < 5e-5


@pytest.mark.slow
def test_processes_share_the_reference_embeddings(trainers_of, scene_options, tmp_path, launch, words):
    """The gradient of two processes, in chunks, is that of one."""
    options = {**scene_options, "method": "softclip", "warmup_steps": 0, "report_to": "none", "output_dir": tmp_path}
    launch(2, "tests/workers/gradients.py", tmp_path, 5, *words(options))
    found = load_file(tmp_path / "soft_contrastive.float32.5.safetensors")
    (trainer,) = trainers_of("softclip")
    assert relative_error(found, first_gradient(trainer)) < 2e-5
    assert "clip.logit_scale" in found and not [name for name in found if name.startswith("reference.")]


def test_a_model_has_no_more_than_its_method_needs(trainers_of):
    for method in METHODS:
        for trainer in trainers_of(method):
            assert (trainer.model.reference is not None) == trainer.objective.needs_reference
            assert (trainer.model.negative_prompt is not None) == trainer.objective.needs_prompt
