"""Phase 2 of NCU: unlearn noisy correspondence under an optimal-transport plan (paper, section 4.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncu_hf.losses import alignment_loss, extended_similarity, separation_loss
from ncu_hf.objectives.forgetting import ForgettingObjective
from ncu_hf.objectives.statistics import margin_statistics, plan_statistics
from ncu_hf.selection import promote
from ncu_hf.transport import TransportPlan, solve_transport

# Marginal error of a converged plan, for the `paper` formulation.
CONVERGED = {torch.float32: 1e-6, torch.float64: 1e-12}


class RefinedAlignment(NamedTuple):
    """Targets of phase 2, without gradient.

    Attributes:
        row_target (`Tensor`): (N, N + 1), image to text.
        column_target (`Tensor`): (N + 1, N), text to image.
        row_plan (`TransportPlan`): The plan (N, N + 1) behind `row_target`.
        column_plan (`Tensor`): The plan (N + 1, N) behind `column_target`: `row_plan` transposed, or, in the
            `released` formulation, the solution of the transposed problem after its own 100 iterations at most.
    """

    row_target: Tensor
    column_target: Tensor
    row_plan: TransportPlan
    column_plan: Tensor


def transport_mask(n: int, forget: Tensor) -> Tensor:
    """M (N, N + 1), eq. 8: a forgotten image may not go to its own caption, a retained one not to its negative."""
    forgotten = _indicator(n, forget)
    mask = torch.ones(n, n + 1, dtype=torch.bool, device=forget.device)
    mask[:, :n].diagonal().copy_(~forgotten)
    mask[:, n] = forgotten
    return mask


def hard_target(n: int, forget: Tensor, dtype: torch.dtype) -> Tensor:
    """I (N, N + 1): 1 at (i, i) for retained i, 1 at (i, N + 1) for forgotten i; the cells that an image belongs to."""
    forgotten = _indicator(n, forget)
    target = torch.zeros(n, n + 1, dtype=dtype, device=forget.device)
    target[:, :n].diagonal().copy_(~forgotten)
    target[:, n] = forgotten.to(dtype)
    return target


@torch.no_grad()
def refine_alignment(
    similarity: Tensor, forget: Tensor, *, plan_weight: float, entropy: float, formulation: str
) -> RefinedAlignment:
    """T = γ Γ̂* + (1 - γ) I (eq. 10), normalised for both directions.

    `paper`: one converged plan on the cost 1 - S̄; every row of both targets sums to 1 (a column that no image may go
    to, as the last one is when nothing is forgotten, keeps a zero row).
    `released`: the cost is divided by its maximum, the plan is solved twice (on the cost and on its transpose, each
    with the authors' stop rule), and only the plan's part is normalised: row N + 1 of the column target sums to
    γ + (1 - γ) k, the rows of forgotten texts to γ.

    Args:
        similarity (`Tensor`): (N, N + 1), S̄; or its first N columns where nothing is forgotten, and all that follows
            is without the last column then.
        forget (`Tensor`): (k,) indices of the pairs to forget.
        plan_weight (`float`): γ, weight of the plan.
        entropy (`float`): ε.
        formulation (`str`): `"released"` or `"paper"`.
    """
    n, columns = similarity.shape
    mask = transport_mask(n, forget)[:, :columns]
    target = hard_target(n, forget, similarity.dtype)[:, :columns]
    cost = 1 - similarity
    if formulation == "released":
        cost = cost / cost.max().clamp(min=torch.finfo(cost.dtype).tiny)
        row_plan = solve_transport(cost, mask, entropy=entropy, stop="potential")
        column_plan = solve_transport(cost.T, mask.T, entropy=entropy, stop="potential").plan
    else:
        tolerance = CONVERGED[similarity.dtype]
        row_plan = solve_transport(cost, mask, entropy=entropy, stop="marginal", tolerance=tolerance)
        column_plan = row_plan.plan.T
    row_target = _mix(row_plan.plan, target, plan_weight)
    column_target = _mix(column_plan, target.T, plan_weight)
    if formulation == "paper":
        row_target, column_target = normalise_rows(row_target), normalise_rows(column_target)
    return RefinedAlignment(row_target, column_target, row_plan, column_plan)


class UnlearningObjective(ForgettingObjective):
    """L_UL = L_otr + L_sep (eq. 12) on all pairs of the batch.

    The prompt, the text tower's position embedding, its token embedding (`freeze_token_embedding`) and its lower
    blocks (`frozen_text_blocks`) are frozen; everything else trains. With a `negative_rank` no gradient goes through
    the negatives.
    """

    phase = "unlearning"
    settings = (
        *(*ForgettingObjective.settings, "forget_target", "plan_weight", "entropy", "margin_low", "margin_high"),
        *("frozen_text_blocks", "freeze_token_embedding"),
    )
    needs_negative_text = True

    def trains(self, name: str, text_layers: int) -> bool:
        embeddings = "clip.text_model.embeddings."
        if name.startswith(("negative_prompt.", embeddings + "position_embedding.")):
            return False
        if name.startswith(embeddings + "token_embedding."):
            return not self.arguments.freeze_token_embedding
        blocks = "clip.text_model.encoder.layers."
        if name.startswith(blocks):
            return int(name[len(blocks) :].split(".")[0]) >= self.arguments.text_blocks_to_freeze(text_layers)
        return True

    def __call__(
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        a = self.arguments
        image, text, negative = (promote(e) for e in (image_embeds, text_embeds, negative_embeds))
        chosen = self.choose(image, text, log_scale)
        similarity = self.similarity(image, text, negative)
        row_target, column_target, statistics = self.targets(similarity.detach(), chosen.forget)
        if a.forget_target == "none":
            row_target, column_target = leave_out(row_target, column_target, chosen.forget)
        return {
            "alignment_loss": alignment_loss(similarity, row_target, column_target, log_scale, a.formulation),
            **self.opposition(text, negative),
            **chosen.statistics,
            **margin_statistics(text, negative, a.margin_low, a.margin_high),
            **statistics,
        }

    # What a variant of the method replaces

    def similarity(self, image: Tensor, text: Tensor, negative: Tensor) -> Tensor:
        """S̄ (N, N + 1)."""
        return extended_similarity(image, text, negative)

    def targets(self, similarity: Tensor, forget: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Targets of the rows and of the columns of `similarity`, without gradient, and what to log of them."""
        a = self.arguments
        refined = refine_alignment(
            similarity, forget, plan_weight=a.plan_weight, entropy=a.entropy, formulation=a.formulation
        )
        return refined.row_target, refined.column_target, plan_statistics(refined.row_plan)

    def opposition(self, text: Tensor, negative: Tensor) -> dict[str, Tensor]:
        """Losses that hold captions and their negatives (N, D) apart."""
        a = self.arguments
        return {"separation_loss": separation_loss(text, negative, a.margin_low, a.margin_high)}


def leave_out(row_target: Tensor, column_target: Tensor, forget: Tensor) -> tuple[Tensor, Tensor]:
    """Targets (N, C) and (C, N) in which forgotten pairs have none, neither image nor caption, and no image belongs to
    its negative. A row of zeros adds nothing to L_otr; what it stands for remains a negative of the others."""
    n = len(row_target)
    row_target = row_target.index_fill(0, forget, 0)
    column_target = column_target.index_fill(0, forget, 0)
    column_target[n:] = 0
    return row_target, column_target


def normalise_rows(matrix: Tensor) -> Tensor:
    """`matrix` with rows that sum to 1. An empty row stays empty: it is the column that no image may go to."""
    total = matrix.sum(dim=1, keepdim=True)
    return torch.where(total > 0, matrix / total, 0)


def _indicator(n: int, members: Tensor) -> Tensor:
    return torch.zeros(n, dtype=torch.bool, device=members.device).index_fill_(0, members, True)


def _mix(plan: Tensor, target: Tensor, plan_weight: float) -> Tensor:
    return plan_weight * normalise_rows(plan) + (1 - plan_weight) * target
