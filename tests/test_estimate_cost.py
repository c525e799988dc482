"""The estimate of hours is its formula, on the rates of the reports, and says what it is made of."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ncu_hf.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def estimate(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """What the script prints: `estimate("--gpus", 8, gpu="A GPU", rates=(1000.0, 500.0))`."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("estimate_cost")

    def run(
        *flags: object, gpu: str | None = "A GPU", rates: tuple = (1000.0, 500.0), phases: tuple = script.PHASES
    ) -> str:
        files = []
        for phase, rate in enumerate(rates):
            row = {"variant": "ours", "samples_a_second": rate, "tflop": 2.0 * (phase + 1)}
            files.append(tmp_path / f"{phase}.json")
            options = {"batch": 100, "phase": phases[phase]}
            files[-1].write_text(json.dumps({"options": options, "gpu": gpu, "step": [row]}))
        monkeypatch.setattr(sys, "argv", [str(word) for word in ("estimate_cost.py", *files, *flags)])
        script.main()
        return capsys.readouterr().out

    return run


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_hours_follow_from_measured_rates(estimate):
    told = estimate("--gpus", 1, 4, "--efficiency", 0.5, "--pairs", 3_600_000, "--epochs", 1, 2)
    # 3.6 M pairs: 1 epoch at 1000 a second is an hour, 2 epochs at 500 are four; 4 GPUs at half efficiency are two.
    assert cells(told, "yours")[1:] == ["3,600,000", "5.0", "2.5"]
    assert "Measured" in told and "A GPU" in told


def test_what_is_assumed_is_called_so(estimate):
    told = estimate("--peak_tflops", 100, "--mfu", 0.4, "--gpus", 1, "--pairs", 3_600_000, "--epochs", 1, 1, gpu=None)
    # 0.02 and 0.04 TFLOP a sample at 40 TFLOP/s: 2000 and 1000 a second.
    assert cells(told, "yours")[2] == "1.5"
    assert "Assumed, not measured" in told and "Measured:" not in told


@pytest.mark.parametrize(
    ("flags", "gpu", "rates", "said"),
    [
        ((), None, (1.0, 1.0), "measured on a CPU"),
        (("--mfu", 0.4), "A GPU", (1.0, 1.0), "--peak_tflops"),
        (("--efficiency", 0), "A GPU", (1.0, 1.0), "--efficiency"),
        (("--gpus", 0), "A GPU", (1.0, 1.0), "--gpus"),
        (("--variant", "fast"), "A GPU", (1.0, 1.0), "ours"),
        ((), "A GPU", (1.0, None), "did not fit"),
    ],
)
def test_wrong_input(estimate, flags, gpu, rates, said):
    with pytest.raises(InputError, match=said):
        estimate(*flags, gpu=gpu, rates=rates)


def test_reports_in_the_wrong_order(estimate):
    with pytest.raises(InputError, match=r"is of phase unlearning, not negative_prompt"):
        estimate(phases=("unlearning", "negative_prompt"))
