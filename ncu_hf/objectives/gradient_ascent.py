"""`gradient_ascent`: unlearn by going up the loss of what is to be forgotten (paper, section 5.3)."""

from __future__ import annotations

from torch import Tensor

from ncu_hf.losses import contrastive_loss
from ncu_hf.objectives.clip import RetainedClipObjective
from ncu_hf.objectives.statistics import selection_statistics
from ncu_hf.selection import clean_confidence, promote, split_batch


class GradientAscentObjective(RetainedClipObjective):
    """-L_CLIP on the forget set + L_CLIP with label smoothing on the retained set of the batch.

    The first is meant for false positives, the second for false negatives. Each set is contrasted with itself alone, so
    that a forget set of one pair, which has no negatives, has the loss 0 and the gradient 0, as an empty one has. The
    ascent is bounded: the loss of k pairs is at most 2 s + log k, and s is clamped.

    The paper does not give the amount of smoothing: `label_smoothing` is the usual 0.1 (Szegedy et al. 2016).
    """

    phase = "gradient_ascent"
    settings = (*RetainedClipObjective.settings, "label_smoothing")

    def __call__(
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        a = self.arguments
        image, text = promote(image_embeds), promote(text_embeds)
        confidence = clean_confidence(image, text, log_scale, a.formulation)
        forget, retain = split_batch(confidence, a.forget_ratio)
        forgotten = contrastive_loss(image[forget], text[forget], log_scale) if forget.numel() else 0 * log_scale
        return {
            "forget_loss": -forgotten,
            "retain_loss": contrastive_loss(image[retain], text[retain], log_scale, a.label_smoothing),
            **selection_statistics(confidence, forget, retain),
        }
