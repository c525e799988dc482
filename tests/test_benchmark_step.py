"""The benchmarks of a step compare steps that learn the same, and count what they say."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from ncu_hf.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PHASES = ["unlearning", "negative_prompt"]


@pytest.fixture
def scripts(monkeypatch):
    """Import a module of `scripts/`: `scripts("benchmark_step")`."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


@pytest.fixture
def setting(scripts):
    """Twelve pairs of random noise for the small model: `setting("unlearning", "fp32")`."""

    def make(phase: str = "unlearning", precision: str = "fp32", rows: int = 12):
        options = Namespace(
            model="small", phase=phase, precision=precision, words=10.0, device=torch.device("cpu"), peak_tflops=None
        )
        return scripts("benchmark_step").make_setting(options, rows)

    return make


def gradients(variant) -> dict[str, torch.Tensor]:
    variant.backward()
    return {name: p.grad for name, p in variant.model.named_parameters() if p.requires_grad}


def largest_error(found: dict, expected: dict) -> float:
    """Largest difference of an entry, over the largest entry of all gradients."""
    assert found.keys() == expected.keys()
    size = max(value.abs().max() for value in expected.values())
    return max(((found[key] - expected[key]).abs().max() / size).item() for key in expected)


@pytest.mark.parametrize("phase", PHASES)
def test_chunks_learn_what_the_whole_batch_does(phase, scripts, setting):
    variants, shared = scripts("benchmark_variants"), setting(phase)
    expected = gradients(variants.ours(shared))
    for size in (5, 12):
        assert largest_error(gradients(variants.ours(shared, size)), expected) < 1e-5
    assert largest_error(gradients(variants.floor(shared)), expected) > 1e-2


def test_the_released_structure_learns_the_same_where_both_train(scripts, setting):
    variants, shared = scripts("benchmark_variants"), setting()
    ours, released = gradients(variants.ours(shared)), gradients(variants.released(shared))
    assert set(released) - set(ours) == {"clip.text_model.embeddings.token_embedding.weight"}
    assert largest_error({name: released[name] for name in ours}, ours) < 1e-3


def test_plain_clip_is_a_contrastive_step(scripts, setting):
    variants, shared = scripts("benchmark_variants"), setting()
    variant = variants.plain_clip(shared)
    expected = dict(variant.model.named_parameters())
    found = gradients(variant)
    pixels = shared.moved(shared.batch)["pixel_values"]
    image = normalize(variant.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    text = normalize(variant.model.get_text_features(input_ids=shared.batch["input_ids"]).pooler_output, dim=-1)
    logits, own = variant.model.logit_scale.exp() * image @ text.T, torch.arange(12)
    cross_entropy = torch.nn.functional.cross_entropy
    loss = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    oracle = dict(zip(expected, torch.autograd.grad(loss, list(expected.values())), strict=True))
    assert largest_error(found, oracle) < 1e-5


@pytest.mark.parametrize("phase", PHASES)
def test_step(phase, benchmark):
    shown, report = benchmark(
        *("step", "--model", "small", "--phase", phase, "--batch", 12, "--chunk", 4, "--repeats", 1),
        *("--peak_tflops", 0.5),
    )
    rows = {row["variant"]: row for row in report["step"]}
    more = {"released"} if phase == "unlearning" else set()
    assert rows.keys() == {"ours", "ours_chunk_4", "floor", "plain_clip"} | more
    ours, chunked, plain = rows["ours"], rows["ours_chunk_4"], rows["plain_clip"]
    assert ours["trained"] == chunked["trained"] == rows["floor"]["trained"] < plain["trained"]
    # The forward pass of chunks is computed twice, the backward pass and the losses once.
    assert 1.2 * ours["tflop"] < chunked["tflop"] < 1.5 * ours["tflop"]
    assert rows["floor"]["tflop"] == pytest.approx(ours["tflop"], rel=0.01) and rows["floor"]["tflop"] < ours["tflop"]
    # In phase 1 the gradient of the token embedding, of which a chunk adds another, is most of the small model.
    assert phase == "negative_prompt" or chunked["peak_gib"] < ours["peak_gib"]
    for row in rows.values():
        assert row["samples_a_second"] == pytest.approx(12_000 / row["ms"])
        assert row["tflop_a_second"] == pytest.approx(row["tflop"] / row["ms"] * 1e3)
    assert ours["mfu"] == pytest.approx(ours["tflop_a_second"] / 0.5)
    assert chunked["mfu"] == pytest.approx(ours["mfu"] * ours["ms"] / chunked["ms"])
    (ratios,) = report["ratios"]
    assert ratios["ours_share_of_floor"] == pytest.approx(rows["floor"]["ms"] / ours["ms"])
    assert ("ours_over_released" in ratios) == (phase == "unlearning")
    assert "ours_over_plain_clip" in shown


def test_compiled_step(benchmark):
    torch._dynamo.reset()
    sizes = ("--batch", 8, "--chunk", 4, "--repeats", 1)
    _, report = benchmark("step", "--model", "small", *sizes, "--compile", "eager")
    rows, (ratios,) = {row["variant"]: row for row in report["step"]}, report["ratios"]
    for name in ("ours", "ours_chunk_4", "floor"):
        assert rows[f"{name}_compiled"]["tflop"] == rows[name]["tflop"] and rows[f"{name}_compiled"]["ms"] > 0
    ms = {name: row["ms"] for name, row in rows.items()}
    assert ratios["ours_compiled_share_of_floor"] == pytest.approx(ms["floor_compiled"] / ms["ours_compiled"])
    assert ratios["ours_compiled_over_released"] == pytest.approx(ms["released"] / ms["ours_compiled"])
    chunked = ratios["ours_chunk_4_compiled_time_over_ours_compiled"]
    assert chunked == pytest.approx(ms["ours_chunk_4_compiled"] / ms["ours_compiled"])


def test_variants_can_be_chosen(benchmark):
    chosen = ("ours_compiled", "released")
    small = ("step", "--model", "small", "--batch", 8, "--repeats", 1, "--compile", "eager", "--peak_tflops", 1)
    _, report = benchmark(*small, "--only", *chosen)
    rows = {row["variant"]: row for row in report["step"]}
    assert tuple(rows) == chosen and report["ratios"][0].keys() == {"ours_compiled_over_released"}
    # Operations are counted where nothing is compiled.
    assert rows["ours_compiled"]["mfu"] is None and rows["released"]["mfu"] > 0
    with pytest.raises(InputError, match=r"--only.*'released'"):
        benchmark(*small, "--only", "releesed")


def test_what_does_not_fit_is_left_out(benchmark, scripts, monkeypatch):
    counted, step = scripts("benchmark_step").tflop, scripts("benchmark_step")

    def full(variant):
        if variant.model.__class__.__name__ == "CLIPModel":
            raise torch.OutOfMemoryError
        return counted(variant)

    monkeypatch.setattr(step, "tflop", full)
    _, report = benchmark("step", "--model", "small", "--batch", 8, "--repeats", 1)
    row = next(row for row in report["step"] if row["variant"] == "plain_clip")
    assert [row[key] for key in ("tflop", "peak_gib", "ms", "samples_a_second")] == [None] * 4
    assert report["ratios"][0].keys() == {"ours_share_of_floor", "ours_over_released"}


def test_flops_are_those_of_the_matrix_products(scripts):
    """A block of attention counted by hand: four projections, two products, and twice that backwards."""
    attention = torch.nn.functional.scaled_dot_product_attention
    rows, heads, length, width = 2, 3, 5, 8
    weights = [torch.randn(heads * width, heads * width, requires_grad=True) for _ in range(4)]

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.view(rows, length, heads, width).transpose(1, 2)

    def backward() -> None:
        x = torch.ones(rows, length, heads * width, requires_grad=True)
        q, k, v = (split(x @ weight) for weight in weights[:3])
        mixed = attention(q, k, v).transpose(1, 2).reshape(rows, length, heads * width)
        (mixed @ weights[3]).sum().backward()

    variant = Namespace(backward=backward, optimizer=torch.optim.SGD(weights))
    projections = 4 * 2 * rows * length * (heads * width) ** 2
    products = 2 * 2 * rows * heads * length**2 * width
    # Backwards the kernel computes the products of queries and keys once more: 2.5 times instead of twice.
    expected = 3 * projections + 3.5 * products
    assert scripts("benchmark_step").tflop(variant) * 1e12 == pytest.approx(expected)


def test_memory(benchmark):
    _, report = benchmark(
        *("memory", "--model", "small", "--batches", 24, 48, "--chunks", 4, 12, "--repeats", 1),
    )
    steps = {(row["batch"], row["chunk"]): row for row in report["steps"]}
    assert list(steps) == [(n, chunk) for n in (24, 48) for chunk in ("none", 4, 12)]
    assert steps[48, "none"]["step_gib"] > 1.5 * steps[24, "none"]["step_gib"]
    assert steps[48, 4]["step_gib"] < 1.2 * steps[24, 4]["step_gib"]
    for row in steps.values():
        assert row["time_over_unchunked"] == pytest.approx(row["ms"] / steps[row["batch"], "none"]["ms"])
    for row in report["losses"]:
        assert row["squares"] == pytest.approx(row["losses_gib"] * 2**30 / 4 / row["batch"] ** 2)


def test_memory_of_large_models_needs_no_memory(scripts, setting):
    """Of tensors without data, and of those of a step that runs: the same."""
    memory, variants, shared = scripts("benchmark_memory"), scripts("benchmark_variants"), setting(rows=48)
    computed = {row["chunk"]: row for row in memory._computed(shared, [None, 12])}
    for chunk, row in computed.items():
        variant = variants.ours(shared, None if chunk == "none" else chunk)
        peak, standing = scripts("benchmark_step").peak_bytes(variant, shared.device), variant.standing_bytes()
        assert row["standing_gib"] * 2**30 == pytest.approx(standing, rel=0.02)
        assert row["step_gib"] * 2**30 == pytest.approx(peak - standing, rel=0.25)
