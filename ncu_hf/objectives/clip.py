"""`clip`: symmetric InfoNCE, to train a reference from scratch or to continue its training (the first baseline)."""

from __future__ import annotations

from torch import Tensor

from ncu_hf.losses import contrastive_loss
from ncu_hf.objectives.base import Objective
from ncu_hf.selection import promote


class ClipObjective(Objective):
    """L_CLIP (eq. 1) on all pairs; everything but the negative prompt trains."""

    phase = "contrastive"

    def trains(self, name: str, text_layers: int) -> bool:
        return name.startswith("clip.")

    def __call__(
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        return {"contrastive_loss": contrastive_loss(promote(image_embeds), promote(text_embeds), log_scale)}
