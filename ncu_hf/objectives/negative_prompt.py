"""Phase 1 of NCU: learn the hardest negatives (paper, section 4.2)."""

from __future__ import annotations

from torch import Tensor

from ncu_hf.config import NCUTrainingArguments
from ncu_hf.losses import matching_losses, relation_loss, separation_loss
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
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        a = self.arguments
        chosen = self.choose(image_embeds, text_embeds, log_scale)
        image, text, negative = (promote(e)[chosen.retain] for e in (image_embeds, text_embeds, negative_embeds))
        matching_positive, matching_negative = matching_losses(image, text, negative, log_scale)
        return {
            **self.opposition(text, negative),
            "matching_loss": matching_positive + matching_negative,
            "matching_positive": matching_positive.detach(),
            "matching_negative": matching_negative.detach(),
            **chosen.statistics,
            **margin_statistics(text, negative, a.margin_low, a.margin_high),
        }

    def opposition(self, text: Tensor, negative: Tensor) -> dict[str, Tensor]:
        """Losses that hold captions and their negatives (Ñ, D) apart, weights included."""
        a = self.arguments
        return {
            "separation_loss": a.relation_weight * separation_loss(text, negative, a.margin_low, a.margin_high),
            "relation_loss": a.relation_weight * relation_loss(text, negative, a.formulation),
        }
