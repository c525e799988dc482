"""Phase 1 of NCU: learn the hardest negatives (paper, section 4.2)."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ncu_hf.config import NCUTrainingArguments
from ncu_hf.distributed import Shard
from ncu_hf.losses import matching_losses, relation_loss, separation_losses
from ncu_hf.objectives.base import Schedule
from ncu_hf.objectives.forgetting import ForgettingObjective
from ncu_hf.objectives.statistics import margin_statistics
from ncu_hf.selection import promote


class NegativePromptObjective(ForgettingObjective):
    """L_HN = λ (L_sep + L_rel) + L_itm (eq. 6) on the retained pairs of the batch.

    The text tower, both projections, `logit_scale` and the prompt train; the vision tower is frozen. With a
    `negative_rank` the prompt and its own updates of the text tower train, and everything else is frozen: captions
    are encoded as before, and the half of L_itm that is about them is a constant.
    """

    phase = "negative_prompt"
    sharded = True
    settings = (*ForgettingObjective.settings, "relation_weight", "margin_low", "margin_high", "negative_rank")
    needs_negative_text = True

    def schedule(self, training: NCUTrainingArguments) -> Schedule:
        return Schedule(
            training.negative_prompt_epochs, training.negative_prompt_max_steps, training.negative_prompt_learning_rate
        )

    def trains(self, name: str, text_layers: int) -> bool:
        if self.arguments.negative_rank:
            return name.startswith("negative_prompt.")
        return not name.startswith("clip.vision_model.")

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
        batch = Shard.whole(len(image)) if shard is None else shard
        similarity = image.detach() @ batch.all_rows(text.detach()).T
        chosen = self.choose(similarity, log_scale, batch)
        image, text, negative, kept = retained(chosen.retain, batch, image, text, negative)
        own = torch.arange(kept.n, device=image.device)[kept.rows]
        matching = matching_losses(kept.all_rows(image), text, negative, own, log_scale)
        matching_positive, matching_negative = (kept.sum(part) for part in matching)
        return {
            **self.opposition(text, negative, kept),
            "matching_loss": matching_positive + matching_negative,
            "matching_positive": matching_positive.detach(),
            "matching_negative": matching_negative.detach(),
            **chosen.statistics,
            **margin_statistics(text, negative, a.margin_low, a.margin_high, kept),
        }

    def opposition(self, text: Tensor, negative: Tensor, shard: Shard) -> dict[str, Tensor]:
        """Losses that hold this process's captions and their negatives apart, of all retained pairs, weights included.

        Args:
            text, negative (`Tensor`): The retained ones of this process.
            shard (`Shard`): Whose rows these are, among the retained.
        """
        a = self.arguments
        separation = shard.mean(separation_losses(text, negative, a.margin_low, a.margin_high))
        everyone = shard.all_rows(text), shard.all_rows(negative)
        relation = shard.sum(relation_loss(text, negative, *everyone, a.formulation))
        return {"separation_loss": a.relation_weight * separation, "relation_loss": a.relation_weight * relation}


def retained(retain: Tensor, shard: Shard, *embeds: Tensor) -> tuple[Tensor, ...]:
    """The retained rows of this process, and the batch that those of all processes make.

    Args:
        retain (`Tensor`): Indices in the global batch, ascending.
        shard (`Shard`): Whose rows `embeds` are.
        *embeds (`Tensor`): (B, D).
    """
    borders = torch.tensor([0, *accumulate(shard.sizes)], device=retain.device)
    before = torch.searchsorted(retain, borders).tolist()  # retained pairs before each process's rows
    kept = Shard(tuple(stop - start for start, stop in pairwise(before)), shard.rank)
    mine = retain[kept.rows] - shard.start
    return *(rows[mine] for rows in embeds), kept
