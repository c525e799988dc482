"""The losses on a GPU: the numbers of the CPU, and no wait for the host inside the loop of iterations."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.functional import normalize

from ncu_hf.config import MethodArguments
from ncu_hf.objectives.unlearning import UnlearningObjective
from ncu_hf.step import total_loss
from ncu_hf.transport import solve_transport, solve_transport_both_ways

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
N = 300


def embeds(device: str) -> list[torch.Tensor]:
    """Images, captions that match them somewhat, negatives, and log s; leaves."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, N, 64, generator=generator)
    drawn[1] += drawn[0]
    leaves = [rows.to(device).requires_grad_() for rows in normalize(drawn, dim=-1)]
    return [*leaves, torch.tensor(3.0, device=device, requires_grad=True)]


@pytest.mark.parametrize("formulation", ["released", "paper"])
def test_losses_and_gradients_are_those_of_the_cpu(formulation):
    found = []
    for device in ("cuda", "cpu"):
        leaves = embeds(device)
        loss = total_loss(UnlearningObjective(MethodArguments(formulation=formulation))(*leaves))
        found.append([loss.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(loss, leaves))])
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).norm() < 1e-4 * expected.norm()


def waits(solve) -> int:
    """How often the host waits for the device, as far as torch can tell."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            solve()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in found)


def test_iterations_do_not_wait_for_the_host():
    image, text, _, _ = embeds("cuda")
    cost = (1 - image @ text.T).detach()
    few, many = (
        waits(lambda limit=limit: solve_transport(cost, tolerance=0.0, max_iterations=limit)) for limit in (10, 100)
    )
    assert few == many
    mask = torch.ones_like(cost, dtype=torch.bool)
    assert waits(lambda: solve_transport_both_ways(cost, mask)) < 6
