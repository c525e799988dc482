"""Named references of the benchmarks: the structure of the authors' released code, written from its description."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def textbook_loop(cost: Tensor, mask: Tensor, entropy: float, rebuild: bool) -> tuple[Tensor, int]:
    """Log-domain Sinkhorn to the released tolerance: two logsumexp and a host check an iteration.

    Args:
        cost (`torch.Tensor`): (R, C).
        mask (`torch.Tensor`): (R, C), 1 where mass may go.
        entropy (`float`): ε.
        rebuild (`bool`): Form (u + v - C) / ε and mask it at each half step, as the widely copied loop does; else
            divide and mask once and add only the other side's potential, the leanest way to write it.
    """
    rows, columns = cost.shape
    closed = mask == 0
    u, v = cost.new_zeros(rows), cost.new_zeros(columns)
    scaled = (cost / -entropy).masked_fill(closed, -torch.inf)

    def logits() -> Tensor:
        return ((u[:, None] + v - cost) / entropy).masked_fill(closed, -torch.inf)

    for done in range(1, 101):
        before = u
        if rebuild:
            u = entropy * (-math.log(rows) - torch.logsumexp(logits(), 1)) + u
            v = entropy * (-math.log(columns) - torch.logsumexp(logits(), 0)) + v
        else:
            u = entropy * (-math.log(rows) - torch.logsumexp(scaled + v / entropy, 1))
            v = entropy * (-math.log(columns) - torch.logsumexp(scaled + u[:, None] / entropy, 0))
        if (u - before).abs().sum().item() < 1e-4 or done == 100:
            return logits().exp(), done


def released_unlearning(
    image: Tensor,
    text: Tensor,
    negative: Tensor,
    log_scale: Tensor,
    *,
    forget_ratio: float,
    plan_weight: float,
    entropy: float,
    margin_low: float,
    margin_high: float,
) -> Tensor:
    """Phase 2's loss as the released code is built: the similarities once for the confidence and once a direction,
    int64 masks and targets, the plan solved twice in the log domain, KL divergence of whole matrices by autograd.

    Args:
        image, text, negative (`Tensor`): (N, D) unit vectors.
        log_scale (`Tensor`): 0-dim, log of s.
        forget_ratio, plan_weight, entropy, margin_low, margin_high (`float`): P, γ, ε, α, β.
    """
    n, scale = len(image), log_scale.exp()
    forget, retain = _split(image, text, scale, forget_ratio)
    own_negative = (image * negative).sum(1)
    rows = torch.cat([image @ text.T, own_negative[:, None]], dim=1)
    columns = torch.cat([text @ image.T, own_negative[None]], dim=0)
    mask, target = _mask_and_target(n, forget, retain)
    row_target = _refined(rows.detach(), mask, target, plan_weight, entropy)
    column_target = _refined(columns.detach(), mask.T, target.T, plan_weight, entropy)
    alignment = (_divergence(scale * rows, row_target) / n + _divergence(scale * columns, column_target) / (n + 1)) / 2
    paired = (text * negative).sum(1)
    return alignment + (torch.relu(margin_low - paired) + torch.relu(paired - margin_high)).mean()


@torch.no_grad()
def _split(image: Tensor, text: Tensor, scale: Tensor, forget_ratio: float) -> tuple[Tensor, Tensor]:
    confidence = (scale * image @ text.T).softmax(dim=1).diagonal()
    order = confidence.argsort(stable=True)
    k = int(forget_ratio * len(image))
    return order[:k], order[k:]


def _mask_and_target(n: int, forget: Tensor, retain: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.ones(n, n + 1, dtype=torch.int64, device=forget.device)
    mask[forget, forget] = 0
    mask[retain, n] = 0
    target = torch.zeros(n, n + 1, dtype=torch.int64, device=forget.device)
    target[retain, retain] = 1
    target[forget, n] = 1
    return mask, target


@torch.no_grad()
def _refined(similarity: Tensor, mask: Tensor, target: Tensor, plan_weight: float, entropy: float) -> Tensor:
    cost = 1 - similarity
    plan, _ = textbook_loop(cost / cost.max(), mask, entropy, rebuild=True)
    return plan_weight * plan / plan.sum(dim=1, keepdim=True) + (1 - plan_weight) * target.to(plan.dtype)


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(logits.log_softmax(dim=1), target, reduction="sum")
