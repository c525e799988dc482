"""Phase 1 of NCU: learn the hardest negatives (paper, section 4.2)."""

from __future__ import annotations

from torch import Tensor

from ncu_hf.config import NCUTrainingArguments
from ncu_hf.losses import matching_losses, relation_loss, separation_loss
from ncu_hf.objectives.base import Objective, Schedule
from ncu_hf.objectives.statistics import margin_statistics, selection_statistics
from ncu_hf.selection import clean_confidence, promote, split_batch


class NegativePromptObjective(Objective):
    """L_HN = λ (L_sep + L_rel) + L_itm (eq. 6) on the retained pairs of the batch.

    The text tower, both projections, `logit_scale` and the prompt train; the vision tower is frozen.
    """

    phase = "negative_prompt"
    settings = ("formulation", "forget_ratio", "relation_weight", "margin_low", "margin_high")
    needs_negative_text = True

    def schedule(self, training: NCUTrainingArguments) -> Schedule:
        return Schedule(
            training.negative_prompt_epochs, training.negative_prompt_max_steps, training.negative_prompt_learning_rate
        )

    def trains(self, name: str, text_layers: int) -> bool:
        return not name.startswith("clip.vision_model.")

    def __call__(
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        a = self.arguments
        confidence = clean_confidence(image_embeds, text_embeds, log_scale, a.formulation)
        forget, retain = split_batch(confidence, a.forget_ratio)
        image, text, negative = (promote(e)[retain] for e in (image_embeds, text_embeds, negative_embeds))
        matching_positive, matching_negative = matching_losses(image, text, negative, log_scale)
        return {
            **self.opposition(text, negative),
            "matching_loss": matching_positive + matching_negative,
            "matching_positive": matching_positive.detach(),
            "matching_negative": matching_negative.detach(),
            **selection_statistics(confidence, forget, retain),
            **margin_statistics(text, negative, a.margin_low, a.margin_high),
        }

    def opposition(self, text: Tensor, negative: Tensor) -> dict[str, Tensor]:
        """Losses that hold captions and their negatives (Ñ, D) apart, weights included."""
        a = self.arguments
        return {
            "separation_loss": a.relation_weight * separation_loss(text, negative, a.margin_low, a.margin_high),
            "relation_loss": a.relation_weight * relation_loss(text, negative, a.formulation),
        }
