"""`clip` and `clip_retained`: symmetric InfoNCE on all pairs, and on the retained ones alone."""

from __future__ import annotations

from torch import Tensor

from ncu_hf.distributed import Shard
from ncu_hf.losses import contrastive_loss
from ncu_hf.objectives.base import Objective
from ncu_hf.objectives.forgetting import ForgettingObjective
from ncu_hf.selection import promote


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


class RetainedClipObjective(ForgettingObjective, ClipObjective):
    """L_CLIP on the retained pairs of each batch, as if the others were not there.

    The control that tells how much of a gain comes from dropping pairs alone.
    """

    def __call__(
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        image, text = promote(image_embeds), promote(text_embeds)
        chosen = self.choose((image @ text.T).detach(), log_scale, Shard.whole(len(image)))
        return {
            "contrastive_loss": contrastive_loss(image[chosen.retain], text[chosen.retain], log_scale),
            **chosen.statistics,
        }
