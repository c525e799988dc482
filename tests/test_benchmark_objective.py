"""The benchmark of the losses compares equal things, and the losses take the memory that they promise."""

from __future__ import annotations

import pytest
import torch

from ncu_hf.config import FORMULATIONS, MethodArguments
from ncu_hf.objectives.unlearning import UnlearningObjective
from ncu_hf.planning.memory import LiveBytes
from ncu_hf.step import total_loss


def test_objective(benchmark):
    shown, report = benchmark("objective", "--n", 96, 160, "--width", 32, "--scale", 20, "--repeats", 1)
    assert [row["n"] for row in report["objective"]] == [96, 160]
    for row in report["objective"]:
        assert row["loss_difference"] < 1e-5 and row["gradient_difference"] < 1e-4
        assert row["ours_paper_peak_n2_floats"] < row["ours_peak_n2_floats"] < row["reference_peak_n2_floats"]
        assert row["reference_over_ours"] == pytest.approx(row["reference_ms"] / row["ours_ms"])
        assert row["products_gflop"] == pytest.approx(6 * row["n"] ** 2 * 32 / 1e9)
    assert "reference_over_ours" in shown and "machine" in report


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_memory_of_the_losses_is_five_matrices_at_most(formulation):
    n = 2048
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(n, 16, generator=generator)
    image, negative = (text + torch.randn(n, 16, generator=generator) for _ in range(2))
    leaves = [torch.nn.functional.normalize(e, dim=1).requires_grad_() for e in (image, text, negative)]
    leaves.append(torch.tensor(3.0, requires_grad=True))
    objective = UnlearningObjective(MethodArguments(formulation=formulation))
    with LiveBytes(leaves) as live:
        torch.autograd.grad(total_loss(objective(*leaves)), leaves)
    assert 2 * 4 * n * n < live.peak <= 5 * 4 * n * n
