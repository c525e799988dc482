"""`gradient_ascent`: unlearn by going up the loss of what is to be forgotten (paper, section 5.3)."""

from __future__ import annotations

from torch import Tensor

from ncu_hf.distributed import Shard
from ncu_hf.losses import contrastive_loss
from ncu_hf.objectives.clip import RetainedClipObjective
from ncu_hf.selection import promote


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
        image, text = promote(image_embeds), promote(text_embeds)
        forget, retain, statistics = self.choose((image @ text.T).detach(), log_scale, Shard.whole(len(image)))
        forgotten = contrastive_loss(image[forget], text[forget], log_scale) if forget.numel() else 0 * log_scale
        return {
            "forget_loss": -forgotten,
            "retain_loss": contrastive_loss(image[retain], text[retain], log_scale, self.arguments.label_smoothing),
            **statistics,
        }
