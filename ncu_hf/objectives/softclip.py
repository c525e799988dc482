"""`softclip`: targets softened by the similarities inside each modality (paper, section 5.3).

Gao et al. 2024, "SoftCLIP: Softer Cross-modal Alignment Makes CLIP Stronger", AAAI, arXiv:2303.17561.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncu_hf.losses import alignment_loss
from ncu_hf.objectives.base import ReferenceEmbeds
from ncu_hf.objectives.clip import ClipObjective
from ncu_hf.selection import promote


@torch.no_grad()
def softened_target(embeds: Tensor, soft_weight: float, temperature: float) -> Tensor:
    """(1 - w) I + w softmax(E Eᵀ / τ), (N, N), rows sum to 1: what resembles a sample shares in its target.

    Args:
        embeds (`Tensor`): (N, D) unit vectors of one modality.
        soft_weight (`float`): w, in [0, 1].
        temperature (`float`): τ of the self-similarity.
    """
    soft = (embeds @ embeds.T / temperature).softmax(dim=1)
    return (1 - soft_weight) * torch.eye(len(soft), dtype=soft.dtype, device=soft.device) + soft_weight * soft


class SoftClipObjective(ClipObjective):
    """Mean over both directions of KL(softened target ‖ softmax of s⟨v_i, t_j⟩), on all pairs.

    An image's target over the captions is softened by its similarity to the other images, a caption's target over the
    images by its similarity to the other captions. With `soft_weight` 0 it is L_CLIP.

    What differs from SoftCLIP: the similarities come from the embeddings of the frozen model that the run starts
    from, where SoftCLIP has features of detected regions, and its further term for the relations among negatives is
    left out. Weight and temperature are this project's choice.
    """

    phase = "soft_contrastive"
    needs_reference = True
    settings = ("soft_weight", "soft_temperature")

    def __call__(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        negative_embeds: Tensor | None,
        log_scale: Tensor,
        reference: ReferenceEmbeds,
    ) -> dict[str, Tensor]:
        a = self.arguments
        row_target, column_target = (softened_target(promote(e), a.soft_weight, a.soft_temperature) for e in reference)
        similarity = promote(image_embeds) @ promote(text_embeds).T
        return {
            "alignment_loss": alignment_loss(similarity, row_target, column_target, log_scale, "released"),
            # The share of a target that is not the pair's own.
            "image_softness": 1 - row_target.diagonal().mean(),
            "text_softness": 1 - column_target.diagonal().mean(),
        }
