"""The benchmark of the text passes compares like with like, and counts what it says."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("ours", "longest", "padded_77")


@pytest.fixture
def parts(monkeypatch):
    """The modules behind `benchmark.py text`."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("benchmark_text"), importlib.import_module("benchmark_models")


def test_text(benchmark):
    shown, report = benchmark("text", "--model", "small", "--batch", 96, "--words", 6, "--repeats", 1)
    (row,) = report["rows"]
    assert (row["batch"], row["longest_words"] > 2 * row["mean_words"]) == (96, True)
    assert row["padded_77_tokens"] == 2 * 96 * 77
    assert row["longest_tokens"] == 96 * (2 * (round(1.2 * row["longest_words"]) + 2) + 8)
    # Of start, words and end, once as a caption and once without the start token behind the prompt.
    assert 96 * (2 * 1.2 * 0.8 * row["mean_words"] + 3) < row["ours_tokens"] < 0.7 * row["longest_tokens"]
    assert row["forward_passes"] > 3
    for other in ("longest", "padded_77"):
        assert row[f"{other}_difference"] < 1e-5
        assert row[f"{other}_over_ours_tokens"] == pytest.approx(row[f"{other}_tokens"] / row["ours_tokens"])
        # Nearly all operations are those of linear layers.
        assert row[f"{other}_over_ours_operations"] == pytest.approx(row[f"{other}_over_ours_tokens"], rel=0.1)
        assert row[f"{other}_over_ours"] == pytest.approx(row[f"{other}_ms"] / row["ours_ms"])
    assert all(row[f"{name}_ms"] > 0 for name in VARIANTS)
    assert math.isfinite(row["tokens_a_sub_batch"])
    assert "padded_77_over_ours" in shown


def test_gradients_of_the_variants_are_the_same(parts):
    text, models = parts
    torch.manual_seed(0)
    clip = models.make_clip("small")
    model = text.NCUModel(clip, text.NegativePrompt(text.NegativePromptConfig(8, 32)))
    generator = torch.Generator().manual_seed(0)
    ids = text.random_captions(torch.tensor([2, 60, 4, 55, 30, 2, 2, 70]), clip, generator)
    weights = torch.randn(8, 32, generator=generator)
    gradients = {}
    for name, encoders in text.passes(model, ids, torch.device("cpu")).items():
        text.forward_backward(model, encoders, weights)
        gradients[name] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name in VARIANTS[1:]:
        for parameter, gradient in gradients[name].items():
            torch.testing.assert_close(gradients["ours"][parameter], gradient, atol=2e-5, rtol=1e-4)


def test_words_have_the_mean_and_a_long_tail(parts):
    text, _ = parts
    words = text.word_counts(20_000, 10, torch.Generator().manual_seed(0)).double()
    assert words.min() >= 2
    assert words.mean().item() == pytest.approx(10, rel=0.02)
    assert words.std().item() == pytest.approx(4.4, rel=0.05)
    assert words.median() < words.mean() and words.max() > 4 * words.mean()


@pytest.mark.parametrize(("name", "patch"), [("vit-b-32", 32), ("vit-b-16", 16), ("small", 16)])
def test_models_have_the_shapes_of_their_names(name, patch, parts):
    _, models = parts
    with torch.device("meta"):
        clip = models.make_clip(name)
    text, vision = clip.config.text_config, clip.config.vision_config
    assert isinstance(clip, CLIPModel) and text.max_position_embeddings == 77 and vision.patch_size == patch
    assert text.eos_token_id == 2
    if name != "small":
        count = sum(p.numel() for p in clip.parameters())
        assert count == {"vit-b-32": 151_277_313, "vit-b-16": 149_620_737}[name]  # as on the Hub
