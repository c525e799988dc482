"""Checkpointed blocks learn the same and keep less."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from transformers import TrainerCallback

from ncu_hf.config import MethodArguments
from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.objectives import build_objectives
from ncu_hf.parameters import freeze
from ncu_hf.planning.memory import LiveBytes
from ncu_hf.planning.phases import step_memory
from ncu_hf.step import split_rows, two_stage_backward
from ncu_hf.towers import blocks, checkpoint_blocks
from ncu_hf.trainer import NCUTrainer

START, END = 118, 119
BATCH = 7


class Capture(TrainerCallback):
    """Gradients as the optimizer gets them, by step."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.steps.append({name: p.grad.clone() for name, p in trained.items()})


def gradients(trainer: NCUTrainer) -> list[dict[str, torch.Tensor]]:
    capture = Capture()
    trainer.add_callback(capture)
    trainer.train()
    return capture.steps


def largest_error(found: list[dict], expected: list[dict]) -> float:
    """Largest difference of an entry, over the largest entry of all gradients of its step."""
    errors = []
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        size = max(value.abs().max() for value in other.values())
        errors += [((one[name] - other[name]).abs().max() / size).item() for name in other]
    return max(errors)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, START, (BATCH, 9), generator=generator)
    ids[:, 0], ids[:, -1] = START, END
    ids[1:4, 5:] = END
    return {"pixel_values": torch.randn(BATCH, 3, 32, 32, generator=generator), "input_ids": ids}


@pytest.fixture
def make_model(make_clip) -> Callable[..., tuple[NCUModel, Callable]]:
    """A model that is frozen as a phase wants it, updates that are not zero, and the phase's objective."""

    def make(phase: int, rank: int = 0) -> tuple[NCUModel, Callable]:
        clip = make_clip()
        torch.manual_seed(0)
        prompt = NegativePrompt(NegativePromptConfig.of(clip.config.text_config, 4, rank))
        with torch.no_grad():
            for parameter in prompt.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        objective = build_objectives(MethodArguments(negative_rank=rank, forget_ratio=0.3))[phase]
        model = NCUModel(clip, prompt).train()
        freeze(model, objective)
        return model, objective

    return make


def step_gradients(model, objective, batch, chunk_size=None) -> dict[str, torch.Tensor]:
    two_stage_backward(
        lambda chunk: model(chunk["pixel_values"], chunk["input_ids"], chunk["input_ids"]),
        split_rows(batch, chunk_size),
        objective,
        backward=lambda loss: loss.backward(),
        check=lambda loss: None,
    )
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("phase", [0, 1])
def test_checkpointed_blocks_learn_the_same(phase, rank, chunk_size, make_model, batch):
    expected = step_gradients(*make_model(phase, rank), batch, chunk_size)
    model, objective = make_model(phase, rank)
    checkpoint_blocks(model)
    found = step_gradients(model, objective, batch, chunk_size)
    assert largest_error([found], [expected]) < 1e-6
    assert not any(module._forward_hooks for module in model.clip.modules())


def test_frozen_parts_stay_without_gradient(make_model, batch):
    """As they would not with the switch of `CLIPModel`, which makes the embeddings require one."""
    model, _ = make_model(1)
    checkpoint_blocks(model)
    frozen, trained = model.clip.text_model.encoder.layers[0], model.clip.text_model.encoder.layers[-1]
    outputs = []
    for block in (frozen, trained):
        block.register_forward_hook(lambda _module, _args, output: outputs.append(output.requires_grad))
    model.encode_text(batch["input_ids"])
    assert outputs == [False, True]


@pytest.mark.parametrize("phase", [0, 1])
def test_checkpointed_blocks_keep_less(phase, make_model, batch):
    kept = []
    for checkpointed in (False, True):
        model, _ = make_model(phase)
        if checkpointed:
            checkpoint_blocks(model)
        with LiveBytes(model.parameters()) as live:
            embeddings = model(batch["pixel_values"], batch["input_ids"], batch["input_ids"])
            kept.append(live.now)
            del embeddings
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 5}, {"bf16": "true"}, {"lora_rank": 2}], ids=str)
def test_the_flag_changes_the_memory_and_not_the_run(changes, trainers_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of the newer name
        pairs = zip(
            trainers_of("ncu", **changes), trainers_of("ncu", gradient_checkpointing=True, **changes), strict=True
        )
    for plain, checkpointed in pairs:
        assert all(block.gradient_checkpointing for block in blocks(checkpointed.model.clip))
        tokens = 12
        assert step_memory(checkpointed, tokens).backward < step_memory(plain, tokens).backward
        assert largest_error(gradients(checkpointed), gradients(plain)) < 1e-6
