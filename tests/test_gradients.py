"""W processes and any chunk size give the gradient of one process and one batch, for every parameter."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ncu_hf.checkpoint import read_json
from ncu_hf.cli import parse_arguments
from ncu_hf.data import ImageTransform, PairCollator, PairLoader, normalize, open_pairs
from ncu_hf.loading import load_reference
from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.objectives import build_objectives
from ncu_hf.parameters import freeze
from ncu_hf.step import total_loss

BATCH = 24
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
PHASES = ("negative_prompt", "unlearning")
# As in the released code, and with negatives that have parameters of their own.
SETTINGS = {
    "released": (),
    "own": (*("--formulation", "paper", "--negative_rank", 3, "--forget_target", "none"), *("--forget_window", 4)),
}


def flags(scenes: Path, clip_folder: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("--model", clip_folder, "--train_data", scenes, "--image_column", "image", "--caption_column", "caption"),
        *("--global_batch_size", BATCH, "--output_dir", folder, "--use_cpu", "true", "--warmup_steps", 0),
        *("--report_to", "none", "--forget_ratio", 0.25),
        *more,
    ]


def relative_error(found: dict, expected: dict) -> float:
    """Largest over the parameters of |found - expected| / |expected| (Euclidean).

    The bias of a key adds the same to all logits of a softmax, so that its gradient is zero up to rounding: it is
    compared with the size of the query bias' gradient. A gradient that is 0 (of half of a low-rank update, at its
    start) must be found as 0.
    """
    assert found.keys() == expected.keys()
    sizes = {k: expected[k.replace("k_proj.bias", "q_proj.bias")].norm().item() or 1.0 for k in expected}
    return max((found[k] - expected[k]).norm().item() / sizes[k] for k in expected)


@pytest.fixture(scope="module", params=SETTINGS)
def settings(request) -> tuple:
    return SETTINGS[request.param]


@pytest.fixture(scope="module")
def single(settings, scenes, clip_folder, tmp_path_factory):
    """Gradients by plain autograd through the towers and the objective: no trainer, no chunks, no processes."""
    expected = {}
    for dtype in TOLERANCE:
        folder = tmp_path_factory.mktemp("single")
        arguments, _ = parse_arguments([str(f) for f in flags(scenes, clip_folder, folder, *settings)])
        reference = load_reference(arguments.model, list, 0, folder)
        source = open_pairs(str(scenes), image_column="image", caption_column="caption")
        processor = reference.processor
        collator = PairCollator(
            processor.tokenizer, ImageTransform(processor.image_processor, train=True), context_length=32
        )
        batch = next(iter(PairLoader(source, collator, batch_size=BATCH, rank=0, world_size=1, seed=42)))
        pixels = normalize(
            batch["pixel_values"], processor.image_processor.image_mean, processor.image_processor.image_std
        )
        for objective in build_objectives(arguments.method):
            torch.manual_seed(0)
            rank = arguments.method.negative_rank
            prompt = NegativePrompt(NegativePromptConfig.of(reference.clip.config.text_config, 8, rank))
            model = NCUModel(reference.clip, prompt).to(getattr(torch, dtype))
            freeze(model, objective)
            model.zero_grad()
            embeddings, scale = model(pixels.to(model.clip.dtype), batch["input_ids"], batch["input_ids"])
            total_loss(objective(*embeddings, scale)).backward()
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
            expected[dtype, objective.phase] = gradients
    return expected


@pytest.mark.parametrize(
    ("processes", "chunk_sizes"),
    [
        (2, "0,5"),
        *(pytest.param(n, chunks, marks=pytest.mark.slow) for n, chunks in ((1, "0,7"), (3, "3,8"), (4, "4"))),
    ],
)
def test_processes_and_chunks_give_the_gradient_of_one_batch(
    processes, chunk_sizes, settings, single, scenes, clip_folder, tmp_path, launch
):
    words = flags(scenes, clip_folder, tmp_path, *settings)
    launch(processes, "tests/workers/gradients.py", tmp_path, chunk_sizes, *words)
    for phase, dtype, chunk_size in itertools.product(PHASES, TOLERANCE, chunk_sizes.split(",")):
        found = load_file(tmp_path / f"{phase}.{dtype}.{chunk_size}.safetensors")
        assert ("clip.logit_scale" in found) == (phase == "unlearning" or not settings)
        assert relative_error(found, single[dtype, phase]) < TOLERANCE[dtype], (phase, dtype, chunk_size)
        if processes > 1:
            counted = read_json(tmp_path / f"{phase}.{dtype}.{chunk_size}.json")
            assert counted["reduced"] == counted["trained"] > 0  # each gradient once, however many chunks
