"""`clip` and `clip_retained`: symmetric InfoNCE on all pairs, and on the retained ones alone."""

from __future__ import annotations

from torch import Tensor

from ncu_hf.losses import contrastive_loss
from ncu_hf.objectives.base import Objective
from ncu_hf.objectives.statistics import selection_statistics
from ncu_hf.selection import clean_confidence, promote, split_batch


class ClipObjective(Objective):
    """L_CLIP (eq. 1) on all pairs, to train a reference from scratch or to continue its training (the first baseline).

    Everything but the negative prompt trains.
    """

    phase = "contrastive"

    def trains(self, name: str, text_layers: int) -> bool:
        return name.startswith("clip.")

    def __call__(
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        return {"contrastive_loss": contrastive_loss(promote(image_embeds), promote(text_embeds), log_scale)}


class RetainedClipObjective(ClipObjective):
    """L_CLIP on the retained pairs of each batch, as if the others were not there.

    The control that tells how much of a gain comes from dropping pairs alone.
    """

    settings = ("formulation", "forget_ratio")

    def __call__(
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        a = self.arguments
        image, text = promote(image_embeds), promote(text_embeds)
        confidence = clean_confidence(image, text, log_scale, a.formulation)
        forget, retain = split_batch(confidence, a.forget_ratio)
        return {
            "contrastive_loss": contrastive_loss(image[retain], text[retain], log_scale),
            **selection_statistics(confidence, forget, retain),
        }
