"""Models between two models: weights, configuration, refusals; the script that writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from ncu_hf.errors import InputError
from ncu_hf.interpolation import interpolate

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def two(make_clip):
    return make_clip(seed=0), make_clip(seed=1)


def test_every_weight_is_the_mean(two):
    reference, result = two
    with torch.no_grad():
        result.logit_scale.fill_(3.5)
    states = [{name: value.clone() for name, value in model.state_dict().items()} for model in two]
    mixed = interpolate(reference, result, 0.3)
    assert type(mixed) is CLIPModel and mixed is not result
    for name, value in mixed.state_dict().items():
        before, after = (state[name] for state in states)
        expected = 0.7 * before.double() + 0.3 * after.double()
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-7), name
    assert mixed.logit_scale.item() == pytest.approx(0.7 * states[0]["logit_scale"].item() + 0.3 * 3.5)
    for model, state in zip(two, states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("weight", "side"), [(0, 0), (1, 1)])
def test_the_ends_are_the_two_models_exactly(two, weight, side):
    mixed = interpolate(*two, weight).state_dict()
    assert all(torch.equal(value, mixed[name]) for name, value in two[side].state_dict().items())


def test_a_weight_that_is_not_finite_at_one_end_is_seen(two):
    with torch.no_grad():
        two[0].visual_projection.weight[0, 0] = torch.nan
    assert interpolate(*two, 0.5).visual_projection.weight[0, 0].isnan()


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_weights_outside_are_refused(two, weight):
    with pytest.raises(InputError, match=r"lies in \[0, 1\]"):
        interpolate(*two, weight)


def test_models_of_other_shapes_are_refused(make_clip):
    with pytest.raises(InputError, match=r"different shapes.*text_model") as error:
        interpolate(make_clip(), make_clip(text_layers=2), 0.5)
    assert "\n" not in str(error.value)


def script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "interpolate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_the_script_writes_plain_models(clip_folder, load_plain, tmp_path):
    other = tmp_path / "other"
    model = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.visual_projection.weight.mul_(3)
    model.save_pretrained(other)
    for file in clip_folder.iterdir():
        if not (other / file.name).exists():
            (other / file.name).write_bytes(file.read_bytes())
    flags = (clip_folder, other, "--weights", 0, 0.5, "--output_dir", tmp_path / "mixed")
    done = script(*flags)
    assert done.returncode == 0, done.stderr
    reference, half = load_plain(tmp_path / "mixed" / "0"), load_plain(tmp_path / "mixed" / "0.5")
    assert torch.allclose(half.visual_projection.weight, 2 * reference.visual_projection.weight)
    again = script(*flags)
    assert again.returncode == 2 and "exists" in again.stderr and again.stderr.count("\n") == 1
    assert script(*flags, "--overwrite").returncode == 0
    wrong = script(clip_folder, other, "--weights", 2, "--output_dir", tmp_path / "none")
    assert wrong.returncode == 2 and "--weights 2" in wrong.stderr and not (tmp_path / "none").exists()
