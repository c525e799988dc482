"""Phase 2 of NCU: unlearn noisy correspondence under an optimal-transport plan (paper, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ncu_hf.distributed import Shard
from ncu_hf.losses import extended_similarity, separation_losses
from ncu_hf.objectives.alignment import RefinedAlignment, refine_alignment, refined_alignment_loss
from ncu_hf.objectives.forgetting import ForgettingObjective
from ncu_hf.objectives.statistics import margin_statistics, plan_statistics
from ncu_hf.partitions import column_log_partition
from ncu_hf.selection import promote


class UnlearningObjective(ForgettingObjective):
    """L_UL = L_otr + L_sep (eq. 12) on all pairs of the batch.

    The prompt, the text tower's position embedding, its token embedding (`freeze_token_embedding`) and its lower
    blocks (`frozen_text_blocks`) are frozen; everything else trains. With a `negative_rank` no gradient goes through
    the negatives.
    """

    phase = "unlearning"
    sharded = True
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
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        negative_embeds: Tensor | None,
        log_scale: Tensor,
        shard: Shard | None = None,
    ) -> dict[str, Tensor]:
        a = self.arguments
        image, text, negative = (promote(e) for e in (image_embeds, text_embeds, negative_embeds))
        shard = Shard.whole(len(image)) if shard is None else shard
        embeds = image, shard.all_rows(text), negative
        with torch.no_grad():
            similarity = self.similarity(*embeds)
            column_partition = column_log_partition(similarity, log_scale.exp(), shard)
        chosen = self.choose(similarity[:, : shard.n], log_scale, shard, column_partition[: shard.n])
        alignment = self.align(similarity, chosen.forget, shard)
        plan = {} if alignment.row_plan is None else plan_statistics(alignment.row_plan, shard)
        if a.forget_target == "none":
            alignment = alignment.without(chosen.forget, shard)
        return {
            "alignment_loss": refined_alignment_loss(
                similarity, column_partition, alignment, embeds, log_scale, a.formulation, shard
            ),
            **self.opposition(text, negative, shard),
            **chosen.statistics,
            **margin_statistics(text, negative, a.margin_low, a.margin_high, shard),
            **plan,
        }

    # What a variant of the method replaces

    def similarity(self, image: Tensor, texts: Tensor, negative: Tensor) -> Tensor:
        """S̄ (B, N + 1) of this process's images (B, D), all texts (N, D) and its negatives (B, D), without gradient."""
        return extended_similarity(image, texts, negative)

    def align(self, similarity: Tensor, forget: Tensor, shard: Shard) -> RefinedAlignment:
        """Targets of the rows and of the columns of `similarity`, without gradient."""
        a = self.arguments
        weights = {"plan_weight": a.plan_weight, "entropy": a.entropy}
        return refine_alignment(similarity, forget, **weights, formulation=a.formulation, shard=shard)

    def opposition(self, text: Tensor, negative: Tensor, shard: Shard) -> dict[str, Tensor]:
        """Losses that hold this process's captions and their negatives (B, D) apart; of the global batch."""
        a = self.arguments
        return {"separation_loss": shard.mean(separation_losses(text, negative, a.margin_low, a.margin_high))}
