"""The share to forget, estimated: right on known mixtures, nothing where there is one heap, the same after a resume."""

from __future__ import annotations

import pytest
import torch

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.errors import InputError
from ncu_hf.forget_ratio import LEAST_SEPARATION, estimate_share


def normal(n: int, mean: float, deviation: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + deviation * torch.randn(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_finds_the_share_of_a_known_mixture(share):
    wrong = round(4000 * share)
    values = torch.cat([normal(wrong, 0.1, 0.08, 0), normal(4000 - wrong, 0.5, 0.08, 1)])
    found = estimate_share(values[torch.randperm(4000, generator=torch.Generator().manual_seed(2))])
    assert found.forget_ratio == pytest.approx(share, abs=0.02)
    assert found.separation == pytest.approx(0.4 / 0.08, rel=0.05)  # Ashman's D with equal deviations
    assert found.pairs == 4000


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(normal(4000, 0.4, 0.1, 0), id="normal"),
        pytest.param(0.7 - 0.1 * (0.5 * normal(4000, 0.0, 1.0, 3)).exp(), id="skewed"),
        pytest.param(torch.full((50,), 0.3, dtype=torch.float64), id="equal"),
        pytest.param(torch.tensor([0.3], dtype=torch.float64), id="one"),
    ],
)
def test_one_heap_forgets_nothing(values):
    found = estimate_share(values)
    assert found.forget_ratio == 0.0
    assert found.separation < LEAST_SEPARATION


def test_run_forgets_the_estimate_and_tells_it(recipe):
    folder = recipe("run", estimate_forget_ratio="true", negative_prompt_max_steps=2, max_steps=2)
    estimate = read_json(folder / "forget_ratio.json")
    assert estimate["pairs"] > 0
    hyperparameters = read_json(folder / "results.json")["hyperparameters"]
    assert hyperparameters["forget_ratio"] == estimate["forget_ratio"]
    assert hyperparameters["estimate_forget_ratio"] is True


def test_resumed_run_keeps_the_estimate(recipe):
    folder = recipe("run", estimate_forget_ratio="true", negative_prompt_max_steps=2, max_steps=2)
    write_json(folder / "forget_ratio.json", {"forget_ratio": 0.21, "separation": 3.0, "pairs": 7})
    recipe("run", estimate_forget_ratio="true", negative_prompt_max_steps=2, max_steps=2, resume_from_checkpoint="true")
    assert read_json(folder / "results.json")["hyperparameters"]["forget_ratio"] == 0.21


def test_without_an_estimate_nothing_is_told(recipe):
    folder = recipe("run", negative_prompt_max_steps=2, max_steps=2)
    assert not (folder / "forget_ratio.json").exists()
    assert "estimate_forget_ratio" not in read_json(folder / "results.json")["hyperparameters"]


def test_streams_are_refused_before_training(recipe, tmp_path):
    with pytest.raises(InputError, match="--estimate_forget_ratio needs data that can be indexed"):
        recipe("run", estimate_forget_ratio="true", streaming="true", train_pairs=96)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_have_the_estimate_of_one_and_keep_it(recipe, launch, command, tmp_path):
    steps = {"estimate_forget_ratio": "true", "negative_prompt_max_steps": 2, "max_steps": 2}
    one = read_json(recipe("one", **steps) / "forget_ratio.json")
    launch(2, "recipes/ncu.py", *command(tmp_path / "two", **steps))
    assert read_json(tmp_path / "two" / "forget_ratio.json") == pytest.approx(one)
    done = launch(2, "recipes/ncu.py", *command(tmp_path / "two", **steps, resume_from_checkpoint="true"))
    assert done.returncode == 0
