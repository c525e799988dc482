"""The methods that NCU is compared with, against sums written out over pairs: value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ncu_hf.config import MethodArguments
from ncu_hf.objectives.base import ReferenceEmbeds
from ncu_hf.objectives.clip import ClipObjective, RetainedClipObjective
from ncu_hf.objectives.gradient_ascent import GradientAscentObjective
from ncu_hf.objectives.softclip import SoftClipObjective, softened_target
from ncu_hf.selection import clean_confidence, split_batch
from ncu_hf.step import total_loss

N, D = 11, 5
DROPPING = (RetainedClipObjective, GradientAscentObjective)


def unit(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, D, generator=generator, dtype=torch.float64), dim=-1)


def batch(n: int = N, scale: float = 30) -> list[Tensor]:
    """Images near their captions, and log s, all of which want a gradient."""
    text = unit(n, 1)
    image = F.normalize(text + unit(n, 2) / 2, dim=-1)
    return [x.requires_grad_() for x in (image, text, torch.tensor(math.log(scale), dtype=torch.float64))]


def loss_of(objective, inputs: list[Tensor], *beside) -> Tensor:
    image, text, log_scale = inputs
    return total_loss(objective(image, text, None, log_scale, *beside))


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs = [torch.autograd.grad(x, inputs, retain_graph=True) for x in (found, expected)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def cross_entropy(
    inputs: list[Tensor], members: list[int], row_target: Callable[..., float], column_target: Callable[..., float]
) -> Tensor:
    """Half the sum of the two mean cross entropies of `members`, from targets `(i, j)` image to text, text to image."""
    image, text, log_scale = inputs
    total = 0 * log_scale
    for i in members:
        row = torch.stack([log_scale.exp() * (image[i] @ text[j]) for j in members]).log_softmax(0)
        column = torch.stack([log_scale.exp() * (image[j] @ text[i]) for j in members]).log_softmax(0)
        for place, j in enumerate(members):
            total = total - (row_target(i, j) * row[place] + column_target(i, j) * column[place]) / (2 * len(members))
    return total


def smoothed(members: list[int], smoothing: float) -> Callable[..., float]:
    return lambda i, j: (1 - smoothing) * (i == j) + smoothing / len(members)


def split(inputs: list[Tensor], forget_ratio: float, formulation: str) -> tuple[list[int], list[int]]:
    confidence = clean_confidence(*inputs[:2], inputs[2], formulation)
    return tuple(part.tolist() for part in split_batch(confidence, forget_ratio))


@pytest.mark.parametrize("formulation", ["released", "paper"])
@pytest.mark.parametrize(("forget_ratio", "k"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.95, 10)])
def test_clip_retained(forget_ratio, k, formulation):
    inputs = batch()
    forget, retain = split(inputs, forget_ratio, formulation)
    objective = RetainedClipObjective(MethodArguments(forget_ratio=forget_ratio, formulation=formulation))
    hard = smoothed(retain, 0.0)
    found = loss_of(objective, inputs)
    assert len(forget) == k
    assert_same(found, cross_entropy(inputs, retain, hard, hard), inputs)
    for gradient in torch.autograd.grad(found, inputs[:2]):
        assert gradient[forget].eq(0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("forget_ratio", "k"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.95, 10)])
def test_gradient_ascent(forget_ratio, k, smoothing):
    inputs = batch()
    forget, retain = split(inputs, forget_ratio, "released")
    objective = GradientAscentObjective(MethodArguments(forget_ratio=forget_ratio, label_smoothing=smoothing))
    hard, soft = smoothed(forget, 0.0) if forget else None, smoothed(retain, smoothing)
    expected = cross_entropy(inputs, retain, soft, soft) - cross_entropy(inputs, forget, hard, hard)
    assert len(forget) == k
    assert_same(loss_of(objective, inputs), expected, inputs)


@pytest.mark.parametrize("forget_ratio", [0.0, 0.1])
def test_no_pair_or_a_single_one_gives_nothing_to_ascend(forget_ratio):
    inputs = batch()
    image, text, log_scale = inputs
    outputs = GradientAscentObjective(MethodArguments(forget_ratio=forget_ratio))(image, text, None, log_scale)
    assert outputs["forget_loss"] == 0
    found = torch.autograd.grad(outputs["forget_loss"], inputs, allow_unused=True, materialize_grads=True)
    assert all(gradient.eq(0).all() for gradient in found)


def test_ascent_raises_the_loss_of_the_forget_set():
    inputs = batch()
    forget, _ = split(inputs, 0.3, "released")
    objective = GradientAscentObjective(MethodArguments(forget_ratio=0.3))
    before = objective(*inputs[:2], None, inputs[2])
    gradients = torch.autograd.grad(total_loss(before), inputs[:2])
    image, text = (F.normalize(x - 0.01 * g, dim=-1) for x, g in zip(inputs, gradients, strict=False))
    hard = smoothed(forget, 0.0)
    after = cross_entropy([image, text, inputs[2]], forget, hard, hard)
    assert after > -before["forget_loss"]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_softclip(weight):
    inputs, reference = batch(), ReferenceEmbeds(unit(N, 5), unit(N, 6))
    temperature = 0.2
    objective = SoftClipObjective(MethodArguments(soft_weight=weight, soft_temperature=temperature))

    def target(embeds: Tensor) -> list[list[float]]:
        powers = [[math.exp((embeds[i] @ embeds[j]).item() / temperature) for j in range(N)] for i in range(N)]
        return [[(1 - weight) * (i == j) + weight * powers[i][j] / sum(powers[i]) for j in range(N)] for i in range(N)]

    rows, columns = target(reference.image), target(reference.text)
    entropy = sum(p * math.log(p) for matrix in (rows, columns) for row in matrix for p in row if p) / (2 * N)
    expected = entropy + cross_entropy(inputs, list(range(N)), lambda i, j: rows[i][j], lambda i, j: columns[i][j])
    assert_same(loss_of(objective, inputs, reference), expected, inputs)


def test_softclip_without_softness_is_clip():
    inputs, reference = batch(), ReferenceEmbeds(unit(N, 5), unit(N, 6))
    found = loss_of(SoftClipObjective(MethodArguments(soft_weight=0.0)), inputs, reference)
    assert_same(found, loss_of(ClipObjective(MethodArguments()), inputs), inputs)


def test_softclip_is_guided_by_the_reference_without_gradient():
    objective, inputs = SoftClipObjective(MethodArguments()), batch()
    reference = [x.requires_grad_() for x in (unit(N, 5), unit(N, 6))]
    loss = loss_of(objective, inputs, ReferenceEmbeds(*reference))
    assert all(g.eq(0).all() for g in torch.autograd.grad(loss, reference, allow_unused=True, materialize_grads=True))
    swapped = loss_of(objective, inputs, ReferenceEmbeds(*reversed(reference)))
    assert not torch.isclose(loss, swapped)


def test_duplicates_share_a_softened_target():
    embeds = unit(4, 0)[[0, 0, 1, 2]]
    target = softened_target(embeds, 0.6, 1e-3)
    expected = torch.tensor([[0.7, 0.3, 0, 0], [0.3, 0.7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(target, expected)


@pytest.mark.parametrize("kind", [*DROPPING, SoftClipObjective])
def test_order_of_the_batch_does_not_matter(kind):
    objective, inputs = kind(MethodArguments(forget_ratio=0.3)), batch()
    reference = ReferenceEmbeds(unit(N, 5), unit(N, 6))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    moved = [inputs[0][order], inputs[1][order], inputs[2]]
    beside = [reference] if kind.needs_reference else []
    moved_beside = [ReferenceEmbeds(*(x[order] for x in reference))] if kind.needs_reference else []
    found = loss_of(objective, moved, *moved_beside)
    assert_same(found, loss_of(objective, inputs, *beside), inputs)


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*DROPPING, SoftClipObjective])
def test_edge_cases_are_finite(kind, dtype, scale, alike, n):
    image, text, log_scale = batch(n, scale)
    image, text = (x.detach()[[0] * n if alike else slice(None)].to(dtype).requires_grad_() for x in (image, text))
    inputs = [image, text, log_scale.detach().float().requires_grad_()]
    beside = [ReferenceEmbeds(image.detach(), text.detach())] if kind.needs_reference else []
    loss = loss_of(kind(MethodArguments(forget_ratio=0.5)), inputs, *beside)
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, inputs))
