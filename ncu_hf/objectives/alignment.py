"""The refined alignment of phase 2 and its loss (paper, eq. 8 to 11), on matrices of similarities and plans alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncu_hf.distributed import Shard
from ncu_hf.partitions import row_blocks
from ncu_hf.transport import NotFiniteCost, TransportPlan, solve_transport, solve_transport_both_ways

# Marginal error of a converged plan, for the `paper` formulation.
CONVERGED = {torch.float32: 1e-6, torch.float64: 1e-12}


class Mixture(NamedTuple):
    """Weights that make targets of a plan and of the hard target I, of each row or of each column.

    Attributes:
        plan, hard (`Tensor`): (B,) or (C,), what a line of the plan and of I is multiplied by.
        total (`Tensor`): (B,) or (C,), what the line's targets sum to.
    """

    plan: Tensor
    hard: Tensor
    total: Tensor

    def without(self, lines: Tensor) -> Mixture:
        """With targets of zero in the lines that are marked (bool)."""
        return Mixture(*(weights.masked_fill(lines, 0) for weights in self))


class RefinedAlignment(NamedTuple):
    """Targets of phase 2, without gradient, for the images (B) of this process against all C columns of S̄.

    They are kept as plans and weights; [`targets`] makes them of a block of rows.

    Attributes:
        row_plan, column_plan (`TransportPlan`, *optional*): The plans (B, C) behind the targets of rows (image to text)
            and of columns (text to image): the same one, or, in the `released` formulation, two. `None`: hard targets.
        own (`Tensor`): (B,) int64, the column that I assigns to each row: its caption, or the last where forgotten.
        rows, columns (`Mixture`): How much of each goes into the targets.
    """

    row_plan: TransportPlan | None
    column_plan: TransportPlan | None
    own: Tensor
    rows: Mixture
    columns: Mixture

    @property
    def row_target(self) -> Tensor:
        """(B, C), image to text."""
        return self.targets(slice(None))[0]

    @property
    def column_target(self) -> Tensor:
        """(C, B), text to image."""
        return self.targets(slice(None))[1].T

    def targets(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Targets of rows and of columns, both in the layout of S̄: (rows, C)."""
        own = self.own[rows, None]
        row_target = self._from_plan(self.row_plan, rows, self.rows.plan[rows, None])
        column_target = self._from_plan(self.column_plan, rows, self.columns.plan)
        row_target.scatter_add_(1, own, self.rows.hard[rows, None])
        column_target.scatter_add_(1, own, self.columns.hard[own])
        return row_target, column_target

    def _from_plan(self, plan: TransportPlan | None, rows: slice, weights: Tensor) -> Tensor:
        if plan is None:
            return self.columns.plan.new_zeros(len(self.own[rows]), len(self.columns.plan))
        return plan.plan[rows] * weights

    def without(self, forget: Tensor, shard: Shard) -> RefinedAlignment:
        """In which forgotten pairs have no target, neither image nor caption, and no image belongs to its negative.

        What a line of zeros stands for adds nothing to L_otr, and remains a negative of the others.
        """
        forgotten = members(forget, shard.n)
        columns = torch.ones_like(self.columns.plan, dtype=torch.bool)
        columns[: shard.n] = forgotten
        return self._replace(rows=self.rows.without(forgotten[shard.rows]), columns=self.columns.without(columns))


def members(indices: Tensor, n: int) -> Tensor:
    """(n,) bool, true at the indices."""
    return torch.zeros(n, dtype=torch.bool, device=indices.device).index_fill_(0, indices, True)


def transport_mask(forget: Tensor, columns: int, shard: Shard) -> Tensor:
    """M (B, C), eq. 8: a forgotten image may not go to its own caption, a retained one not to its negative.

    Args:
        forget (`Tensor`): Indices of the pairs of the global batch to forget.
        columns (`int`): C = N + 1, or N where there is no column of negatives.
        shard (`Shard`): Whose rows these are.
    """
    forgotten = members(forget, shard.n)[shard.rows]
    mask = torch.ones(len(forgotten), columns, dtype=torch.bool, device=forget.device)
    mask[:, shard.rows].diagonal().copy_(~forgotten)
    mask[:, shard.n :] = forgotten[:, None]
    return mask


@torch.no_grad()
def refine_alignment(
    similarity: Tensor,
    forget: Tensor,
    *,
    plan_weight: float,
    entropy: float,
    formulation: str,
    shard: Shard | None = None,
) -> RefinedAlignment:
    """T = γ Γ̂* + (1 - γ) I (eq. 10), normalised for both directions.

    `paper`: one converged plan on the cost 1 - S̄; the targets of every row and column sum to 1 (a column that no image
    may go to, as the last one is when nothing is forgotten, keeps zeros).
    `released`: the cost is divided by its maximum, the plan is solved twice (on the cost and on its transpose, each
    with the authors' stop rule), and only the plan's part is normalised: the targets of column N + 1 sum to
    γ + (1 - γ) k, those of forgotten texts to γ.

    Args:
        similarity (`Tensor`): (B, N + 1), S̄; or its first N columns where nothing is forgotten, and all that follows
            is without the last column then.
        forget (`Tensor`): (k,) indices of the pairs of the global batch to forget.
        plan_weight (`float`): γ, weight of the plan.
        entropy (`float`): ε.
        formulation (`str`): `"released"` or `"paper"`.
        shard (`Shard`, *optional*): Whose rows these are; all of them by default.
    """
    shard = Shard.whole(len(similarity)) if shard is None else shard
    mask = transport_mask(forget, similarity.shape[1], shard)
    cost = 1 - similarity
    options = {"entropy": entropy, "shard": shard}
    try:
        if formulation == "released":
            highest = cost.amax() if len(cost) else cost.new_tensor(-torch.inf)
            cost /= shard.largest(highest).clamp(min=torch.finfo(cost.dtype).tiny)
            row_plan, column_plan = solve_transport_both_ways(cost, mask, **options)
        else:
            tolerance = CONVERGED[similarity.dtype]
            row_plan = solve_transport(cost, mask, stop="marginal", tolerance=tolerance, **options)
            column_plan = row_plan
    except NotFiniteCost:  # nor is the loss finite then, whatever the targets
        return hard_alignment(similarity, forget, formulation, shard)
    return mixed(row_plan, column_plan, similarity, forget, plan_weight, formulation, shard)


def hard_alignment(similarity: Tensor, forget: Tensor, formulation: str, shard: Shard) -> RefinedAlignment:
    """γ = 0: the hard target alone, and no plan."""
    return mixed(None, None, similarity, forget, 0.0, formulation, shard)


def mixed(
    row_plan: TransportPlan | None,
    column_plan: TransportPlan | None,
    similarity: Tensor,
    forget: Tensor,
    plan_weight: float,
    formulation: str,
    shard: Shard,
) -> RefinedAlignment:
    """Targets of the plans, mixed with I; arguments as of [`refine_alignment`]."""
    forgotten = members(forget, shard.n)
    own = torch.arange(shard.n, device=forget.device).masked_fill(forgotten, shard.n)
    column_hard = similarity.new_full((similarity.shape[1],), len(forget))
    column_hard[: shard.n] = (~forgotten).to(similarity)
    row_mass = column_mass = None
    if row_plan is not None:
        row_mass, column_mass = row_plan.row_sums, column_plan.column_sums
    own = own[shard.rows]
    return RefinedAlignment(
        row_plan,
        column_plan,
        own,
        _mixture(row_mass, torch.ones_like(own, dtype=similarity.dtype), plan_weight, formulation),
        _mixture(column_mass, column_hard, plan_weight, formulation),
    )


def _mixture(plan_mass: Tensor | None, hard_mass: Tensor, plan_weight: float, formulation: str) -> Mixture:
    """Weights of lines whose entries in the plan and in I sum to these masses."""
    plan_mass = torch.zeros_like(hard_mass) if plan_mass is None else plan_mass
    filled = (plan_mass > 0).to(hard_mass)
    plan = torch.where(plan_mass > 0, plan_weight / plan_mass, 0)
    hard = torch.full_like(hard_mass, 1 - plan_weight)
    total = plan_weight * filled + hard * hard_mass
    if formulation == "released":
        return Mixture(plan, hard, total)
    share = torch.where(total > 0, 1 / total, 0)
    return Mixture(plan * share, hard * share, total * share)


def refined_alignment_loss(
    similarity: Tensor,
    column_partition: Tensor,
    alignment: RefinedAlignment,
    embeds: tuple[Tensor, Tensor, Tensor],
    log_scale: Tensor,
    formulation: str,
    shard: Shard,
) -> Tensor:
    """L_otr (eq. 11): KL divergence from the refined alignment to the softmax of s·S̄, both ways.

    `"paper"` adds the means over rows and over columns, `"released"` averages them. Value and gradient are found in one
    pass over blocks of rows. The gradient with respect to S̄ is written over `similarity`, and is the one matrix that
    the backward pass needs: it multiplies the embeddings with it.

    Args:
        similarity (`Tensor`): (B, C), S̄ or its first columns, of this process's images, without gradient; used up.
        column_partition (`Tensor`): (C,), [`column_log_partition`] of it.
        alignment (`RefinedAlignment`): The targets.
        embeds (`tuple[Tensor, Tensor, Tensor]`): What `similarity` was computed of: images (B, D), all texts (N, D) and
            the negatives (B, D) of its last column, which do not count where C = N.
        log_scale (`Tensor`): 0-dim.
        formulation (`str`): `"released"` or `"paper"`.
        shard (`Shard`): Whose rows these are.

    Returns:
        `Tensor`: 0-dim, of the global batch.
    """
    halves = 2 if formulation == "released" else 1
    weights = 1 / (halves * shard.n), 1 / (halves * similarity.shape[1])
    return _AlignmentLoss.apply(*embeds, log_scale, similarity, column_partition, alignment, weights, shard)


class _AlignmentLoss(torch.autograd.Function):
    """With Z = s S̄, targets R and C, and softmaxes p and q of Z over rows and columns, the gradient with respect to Z
    is w_r (p Σ_j R_ij - R) + w_c (q Σ_i C_ij - C)."""

    @staticmethod
    def forward(
        ctx,
        image: Tensor,
        texts: Tensor,
        negative: Tensor,
        log_scale: Tensor,
        similarity: Tensor,
        column_partition: Tensor,
        alignment: RefinedAlignment,
        weights: tuple[float, float],
        shard: Shard,
    ) -> Tensor:
        scale = log_scale.exp()
        loss, scale_gradient = scale.new_zeros(()), scale.new_zeros(())
        for rows in row_blocks(similarity):
            logits = scale * similarity[rows]
            row_target, column_target = alignment.targets(rows)
            own = similarity[rows].zero_()
            loss += _divergence(row_target, logits.log_softmax(1), alignment.rows.total[rows, None], weights[0], own)
            loss += _divergence(column_target, logits - column_partition, alignment.columns.total, weights[1], own)
            scale_gradient += (own * logits).sum()
            own.mul_(scale)
        ctx.save_for_backward(image, texts, negative, similarity, scale_gradient)
        return shard.sum(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        image, texts, negative, gradient, scale_gradient = ctx.saved_tensors
        of_texts, of_negatives = gradient[:, : len(texts)], gradient[:, len(texts) :]
        if not of_negatives.shape[1]:
            of_negatives = gradient.new_zeros(len(image), 1)
        found = (of_texts @ texts).addcmul_(of_negatives, negative), of_texts.T @ image, of_negatives * image
        return *(own.mul_(upstream) for own in found), upstream * scale_gradient, None, None, None, None, None


def _divergence(target: Tensor, log_prediction: Tensor, total: Tensor, weight: float, gradient: Tensor) -> Tensor:
    """weight · Σ T (log T - log p), 0 where T is; its gradient with respect to logits is added to `gradient`.

    Args:
        target, gradient (`Tensor`): (rows, C).
        log_prediction (`Tensor`): (rows, C), used up.
        total (`Tensor`): What the targets sum to, of each row or column.
        weight (`float`): Of this direction.
    """
    smallest = torch.finfo(target.dtype).tiny
    value = (target.clamp(min=smallest).log_().sub_(log_prediction).mul_(target)).sum()
    gradient.add_(log_prediction.exp_().mul_(total).sub_(target), alpha=weight)
    return weight * value
