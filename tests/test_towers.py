"""Lean, checkpointed and compiled towers learn the same; the first two keep less."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from ncu_hf.checkpoint import list_checkpoints
from ncu_hf.config import MethodArguments
from ncu_hf.errors import InputError
from ncu_hf.lean_towers import lean_towers
from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.objectives import build_objectives
from ncu_hf.parameters import freeze
from ncu_hf.planning.memory import LiveBytes
from ncu_hf.planning.phases import step_memory
from ncu_hf.step import split_rows, two_stage_backward
from ncu_hf.towers import blocks, checkpoint_blocks, compile_blocks
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


# Lean towers


@pytest.mark.parametrize("phase", [0, 1])
def test_lean_towers_learn_the_same(phase, make_model, batch):
    found = []
    for lean in (True, False):
        model, objective = make_model(phase)
        model.double()
        names = list(model.state_dict())
        if lean:
            lean_towers(model.clip)
            lean_towers(model.clip)  # nothing more to do
        assert list(model.state_dict()) == names
        found.append(step_gradients(model, objective, {**batch, "pixel_values": batch["pixel_values"].double()}))
    assert largest_error(found[:1], found[1:]) < 1e-12


def test_only_what_computes_the_same_is_replaced(make_clip):
    clip = make_clip()
    embeddings, block = clip.vision_model.embeddings, clip.text_model.encoder.layers[0]
    embeddings.patch_embedding = torch.nn.Conv2d(3, 8, 8, stride=4)
    block.mlp.activation_fn = torch.nn.GELU()
    lean_towers(clip)
    assert type(embeddings.patch_embedding) is torch.nn.Conv2d and type(block.mlp.activation_fn) is torch.nn.GELU


@pytest.mark.parametrize("size", [(32, 32), (35, 41)])
def test_patches_are_those_of_the_convolution(size, make_clip):
    clip = make_clip()
    pixels = torch.randn(2, 3, *size)
    expected = clip.vision_model.embeddings.patch_embedding(pixels)
    lean_towers(clip)
    torch.testing.assert_close(clip.vision_model.embeddings.patch_embedding(pixels), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_activation_is_rounded_as_before(dtype, make_clip):
    stock, lean = make_clip(), make_clip()
    lean_towers(lean)
    x = (8 * torch.randn(64, 64)).to(dtype)
    outputs = [clip.text_model.encoder.layers[0].mlp.activation_fn(x) for clip in (stock, lean)]
    assert torch.equal(*outputs)
    activation = lean.text_model.encoder.layers[0].mlp.activation_fn
    assert torch.autograd.gradcheck(activation, torch.randn(3, 5, dtype=torch.float64, requires_grad=True))


def test_under_autocast_lean_towers_keep_less_and_are_as_exact(make_model, batch):
    def gradient(lean: bool, half: bool) -> tuple[dict[str, torch.Tensor], int]:
        model, _ = make_model(0)
        model.requires_grad_()
        if lean:
            lean_towers(model.clip)
        with LiveBytes(model.parameters()) as live, torch.autocast("cpu", torch.bfloat16, enabled=half):
            embeddings, log_scale = model(batch["pixel_values"], batch["input_ids"], batch["input_ids"])
            kept = live.now
        weights = torch.Generator().manual_seed(1)
        loss = sum((embeds * torch.randn(embeds.shape, generator=weights)).sum() for embeds in embeddings)
        (loss + log_scale).backward()
        return {name: p.grad for name, p in model.named_parameters()}, kept

    exact, _ = gradient(False, False)
    (stock, kept_before), (lean, kept) = gradient(False, True), gradient(True, True)

    def error(found: dict[str, torch.Tensor]) -> float:
        return sum((found[name] - exact[name]).square().sum() for name in exact).sqrt().item()

    assert 0 < error(lean) < 1.3 * error(stock)
    assert kept < 0.95 * kept_before


# Checkpointed blocks


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


@pytest.mark.parametrize(
    "changes",
    [{}, *(pytest.param(c, marks=pytest.mark.slow) for c in ({"chunk_size": 5}, {"bf16": "true"}, {"lora_rank": 2}))],
    ids=str,
)
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


# Compiled blocks


@pytest.fixture(autouse=True)
def fresh_compiler():
    """What earlier tests compiled is forgotten, and the compiler's own settings are as before."""
    torch._dynamo.reset()
    counters.clear()
    kept = {name: getattr(torch._dynamo.config, name) for name in ("recompile_limit", "skip_nnmodule_hook_guards")}
    with torch._dynamo.config.patch(kept):
        yield


@pytest.mark.parametrize(
    ("phase", "chunk_size"),
    [(0, None), (1, None), *(pytest.param(phase, 3, marks=pytest.mark.slow) for phase in (0, 1))],
)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_compiled_blocks_learn_the_same(rank, phase, chunk_size, make_model, batch):
    expected = step_gradients(*make_model(phase, rank), batch, chunk_size)
    model, objective = make_model(phase, rank)
    names = [name for name, _ in model.named_parameters()]
    lean_towers(model.clip)
    compile_blocks(model, "eager", None)
    found = step_gradients(model, objective, batch, chunk_size)
    assert largest_error([found], [expected]) < 1e-5
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_other_captions_compile_nothing_anew(rank, make_model, batch):
    model, _ = make_model(1, rank)
    compile_blocks(model, "eager", None)
    plain, _ = make_model(1, rank)
    graphs = []
    for length in (9, 8, 7, 6):
        ids = batch["input_ids"][:, :length].clone()
        ids[:, -1] = END
        torch.testing.assert_close(model.encode_negative_text(ids), plain.encode_negative_text(ids))
        torch.testing.assert_close(model.encode_text(ids), plain.encode_text(ids))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] > 0


def test_more_blocks_compile_nothing_anew(make_clip, batch):
    """Those that are alike share what is compiled, behind a shared prefix too."""
    graphs = []
    for layers in (2, 4):
        torch._dynamo.reset()
        counters.clear()
        clip = make_clip(text_layers=layers)
        model = NCUModel(clip, NegativePrompt(NegativePromptConfig.of(clip.config.text_config, 4)))
        compile_blocks(model, "eager", None)
        model(batch["pixel_values"], batch["input_ids"], batch["input_ids"])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 2


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"chunk_size": 5}], ids=str)
def test_a_compiled_run_saves_plain_weights_and_goes_on(changes, trainers_of, load_plain, tmp_path):
    changes |= {"save_strategy": "steps", "save_steps": 1}
    plain = trainers_of("ncu", **changes, output_dir=tmp_path / "plain")[1]
    expected = gradients(plain)
    trainer, again = (trainers_of("ncu", **changes, torch_compile_backend="eager")[1] for _ in range(2))
    found = gradients(trainer)
    assert counters["stats"]["unique_graphs"] > 2
    assert largest_error(found, expected) < 1e-5
    first, second = list_checkpoints(Path(trainer.args.output_dir))
    saved = load_plain(second).state_dict()
    for name, weight in plain.model.clip.state_dict().items():
        torch.testing.assert_close(saved[name], weight, atol=1e-6, rtol=1e-5)
    again.train(resume_from_checkpoint=str(first))
    assert all(torch.equal(saved[name], weight) for name, weight in again.model.clip.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"method": "clip"}, {"method": "ncu", "negative_rank": 2}], ids=str)
def test_the_default_backend_learns_the_same(changes, trainers_of):
    for compiled, plain in zip(trainers_of(**changes, torch_compile=True), trainers_of(**changes), strict=True):
        assert largest_error(gradients(compiled), gradients(plain)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gradient_checkpointing": "true"}, "--chunk_size"),
        ({"torch_compile_backend": "inductorr"}, "'inductor'"),
        ({"torch_compile_mode": "reduce-overhead"}, "max-autotune-no-cudagraphs"),
    ],
    ids=str,
)
def test_what_does_not_compile_is_refused(changes, named, trainers_of):
    with pytest.raises(InputError, match=named):
        trainers_of("ncu", torch_compile="true", **changes)


def test_a_missing_compiler_is_told_at_the_start(trainers_of, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="no-such-compiler"):
        trainers_of("ncu", torch_compile="true")


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_weights_of_the_launcher_are_refused(kind, trainers_of, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "false")
    trainers_of("clip")
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(InputError, match=f"{kind.lower()} configuration .* --shard_weights"):
        trainers_of("clip")


def test_a_compilation_of_the_whole_model_is_refused(trainers_of, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    trainers_of("clip")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(InputError, match="--torch_compile_backend inductor"):
        trainers_of("clip")
