"""Both phases of NCU: golden values, targets, edge cases, and precision."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ncu_hf.config import FORMULATIONS, MethodArguments
from ncu_hf.distributed import Shard
from ncu_hf.objectives.alignment import hard_alignment, refine_alignment, transport_mask
from ncu_hf.objectives.negative_prompt import NegativePromptObjective
from ncu_hf.objectives.unlearning import UnlearningObjective
from ncu_hf.selection import clean_confidence, split_batch
from ncu_hf.step import total_loss
from ncu_hf.transport.kernel import ScaledKernel

PHASES = (NegativePromptObjective, UnlearningObjective)
SHARED = Path(__file__).resolve().parents[3] / "shared" / "golden"


def batch(n: int, d: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Images near their captions, negatives away from them; log s of a trained CLIP."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(3)]
    text = F.normalize(noise[0], dim=-1)
    image, negative = F.normalize(text + noise[1] / 4, dim=-1), F.normalize(noise[2] / 2 - text, dim=-1)
    return [*(e.to(dtype) for e in (image, text, negative)), torch.tensor(math.log(30), dtype=dtype)]


def gradients(objective, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    loss = total_loss(objective(*leaves))
    return loss.detach(), torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("phase", PHASES)
def test_float32_stays_within_a_thousandth_of_float64(phase, formulation):
    objective = phase(MethodArguments(formulation=formulation, forget_ratio=0.25))
    inputs = batch(48)
    loss, exact = gradients(objective, inputs)
    single_loss, single = gradients(objective, [x.float() for x in inputs])
    assert abs(single_loss - loss) <= 1e-3 * loss.abs()
    for a, b in zip(single, exact, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm()


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(phase, formulation, dtype):
    objective = phase(MethodArguments(formulation=formulation))
    inputs = [*batch(20, dtype=dtype)[:3], torch.tensor(3.0)]
    assert total_loss(objective(*inputs)).dtype == torch.float32
    expected = total_loss(objective(*(x.float() for x in inputs)))
    assert torch.equal(total_loss(objective(*inputs)), expected)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("phase", PHASES)
def test_order_of_the_batch_does_not_matter(phase, formulation):
    objective, inputs = phase(MethodArguments(formulation=formulation, forget_ratio=0.25)), batch(18)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))
    permuted = [*(x[order] for x in inputs[:3]), inputs[3]]
    loss, exact = gradients(objective, inputs)
    other, moved = gradients(objective, permuted)
    torch.testing.assert_close(other, loss)
    for a, b in zip(moved[:3], exact[:3], strict=True):
        torch.testing.assert_close(a, b[order], rtol=1e-6, atol=1e-9)


def edge_cases() -> dict[str, list[Tensor]]:
    image, text, negative, _ = batch(6)
    s = [torch.tensor(0.0).double(), torch.tensor(math.log(100)).double()]
    same = text[:1].expand(6, -1)
    return {
        "duplicate captions": [image, same, negative, s[1]],
        "duplicate images": [same, text, negative, s[1]],
        "similarity 1": [text, text, text, s[1]],
        "similarity -1": [-text, text, -text, s[1]],
        "all alike": [same, same, -same, s[1]],
        "scale 1": [image, text, negative, s[0]],
        "scale 100": [image, text, negative, s[1]],
        "two pairs": [image[:2], text[:2], negative[:2], s[1]],
        "one pair": [image[:1], text[:1], negative[:1], s[1]],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", edge_cases())
@pytest.mark.parametrize("forget_ratio", [0.0, 0.5])
def test_edge_cases_are_finite(case, phase, formulation, dtype, forget_ratio):
    objective = phase(MethodArguments(formulation=formulation, forget_ratio=forget_ratio))
    loss, found = gradients(objective, [x.to(dtype) for x in edge_cases()[case]])
    assert loss.isfinite() and loss >= -1e-6
    assert all(gradient.isfinite().all() for gradient in found)


def test_cosines_that_are_all_low_need_nothing_absorbed(monkeypatch):
    """All pairs are far from each other, the matched ones too: far scalings are no reason to start again."""
    generator = torch.Generator().manual_seed(0)
    similarity = 0.05 + 0.1 * torch.rand(32, 33, generator=generator, dtype=torch.float64)
    similarity.diagonal().add_(0.2)
    options = {"plan_weight": 0.7, "entropy": 0.03, "formulation": "released"}
    exact = refine_alignment(similarity, torch.tensor([0, 5]), **options)
    monkeypatch.setattr(ScaledKernel, "absorb", lambda *_, **__: pytest.fail("The kernel was computed again."))
    single = refine_alignment(similarity.float(), torch.tensor([0, 5]), **options)
    for found, expected in ((single.row_plan, exact.row_plan), (single.column_plan, exact.column_plan)):
        torch.testing.assert_close(found.plan.double(), expected.plan, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("k", [0, 1, 3, 8])
def test_targets(formulation, k):
    n, plan_weight = 8, 0.7
    image, text, negative, _ = batch(n)
    similarity = torch.cat([image @ text.T, (image * negative).sum(-1, keepdim=True)], dim=1)
    forget = torch.arange(k)
    refined = refine_alignment(similarity, forget, plan_weight=plan_weight, entropy=0.03, formulation=formulation)
    rows, columns = refined.row_target, refined.column_target
    closed = ~transport_mask(forget, n + 1, Shard.whole(n))
    assert refined.row_plan.plan[closed].eq(0).all() and refined.column_plan.plan[closed].eq(0).all()
    torch.testing.assert_close(rows.sum(1), torch.ones(n, dtype=torch.float64))
    sums = columns.sum(1)
    if formulation == "paper":
        expected = torch.ones(n + 1, dtype=torch.float64)
        expected[n] = float(k > 0)
    else:
        expected = torch.full((n + 1,), 1.0, dtype=torch.float64)
        expected[:k] = plan_weight
        expected[n] = (plan_weight if k else 0) + (1 - plan_weight) * k
    torch.testing.assert_close(sums, expected)
    if k == 0:
        torch.testing.assert_close(
            refined.row_plan.plan[:, :n].sum(0), torch.full((n,), 1 / n).double(), atol=1e-3, rtol=0
        )


def test_mask_and_hard_target():
    forget = torch.tensor([1])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 0]]).bool()
    target = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    batch = Shard.whole(3)
    assert torch.equal(transport_mask(forget, 4, batch), mask)
    hard = hard_alignment(torch.zeros(3, 4), forget, "released", batch)
    assert torch.equal(hard.row_target, target) and torch.equal(hard.column_target, target.T)


def test_targets_carry_no_gradient():
    image, text, negative, log_scale = (x.requires_grad_() for x in batch(8))
    assert not clean_confidence(image, text, log_scale, "paper").requires_grad
    similarity = torch.cat([image @ text.T, (image * negative).sum(-1, keepdim=True)], dim=1)
    refined = refine_alignment(similarity, torch.tensor([0]), plan_weight=0.7, entropy=0.03, formulation="paper")
    assert not refined.row_target.requires_grad and not refined.column_target.requires_grad


def test_phase_1_uses_the_retained_pairs_alone():
    objective = NegativePromptObjective(MethodArguments(forget_ratio=0.25))
    inputs = batch(16)
    forget, retain = split_batch(clean_confidence(*inputs[:2], inputs[3], "released"), 0.25)
    _, (image, text, negative, _) = gradients(objective, inputs)
    for gradient in (image, text, negative):
        assert gradient[forget].eq(0).all() and gradient[retain].norm(dim=1).gt(0).all()


@pytest.mark.parametrize(
    ("n", "forget_ratio", "k"), [(10, 0.1, 1), (9, 0.1, 0), (10, 0.35, 3), (1, 0.9, 0), (4, 1.0, 4)]
)
def test_split(n, forget_ratio, k):
    confidence = torch.rand(n, generator=torch.Generator().manual_seed(0))
    forget, retain = split_batch(confidence, forget_ratio)
    assert len(forget) == k and sorted([*forget.tolist(), *retain.tolist()]) == list(range(n))
    if 0 < k < n:
        assert confidence[forget].max() <= confidence[retain].min()


def test_equal_confidences_are_split_in_order():
    forget, retain = split_batch(torch.full((6,), 0.5), 0.5)
    assert forget.tolist() == [0, 1, 2] and retain.tolist() == [3, 4, 5]


def test_clean_confidence():
    image, text, _, log_scale = batch(5)
    logits = log_scale.exp() * image @ text.T
    rows, columns = logits.softmax(1).diagonal(), logits.softmax(0).diagonal()
    torch.testing.assert_close(clean_confidence(image, text, log_scale, "released"), rows)
    torch.testing.assert_close(clean_confidence(image, text, log_scale, "paper"), (rows + columns) / 2)


@pytest.mark.parametrize("name", ["released", "paper"])
def test_golden_file(name, monkeypatch, capsys):
    path = SHARED / f"{name}_losses.safetensors"
    if not path.is_file():
        pytest.skip("the golden files are not part of the project; they lie beside some checkouts")
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts")
    monkeypatch.setattr(sys, "argv", ["check_golden.py", str(path)])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("check_golden").main()
    assert ended.value.code == 0, capsys.readouterr().out
