"""`sdd`: Self-Drop and Dual-Weight, a way of fine-tuning on noisy pairs that NCU is compared with.

Liu et al., "Robust Noisy Correspondence Learning via Self-Drop and Dual-Weight". All its equations are here; what they
need beside a batch (a memory bank, a pass over all pairs, a look ahead) is in `ncu_hf.samples`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncu_hf.losses import contrastive_losses
from ncu_hf.mixture import fit_two_gaussians
from ncu_hf.objectives.base import SampleWeights
from ncu_hf.objectives.clip import ClipObjective
from ncu_hf.selection import promote

# Of the mixture (authors' release).
_MIXTURE = {"max_iterations": 10, "tolerance": 1e-2, "regularisation": 5e-4}


class SelfDropObjective(ClipObjective):
    """Mean over the kept pairs of w_con · w_sig · symmetric InfoNCE; a dropped pair is no one's negative either.

    Dropped pairs are met as all others are, and left out of their batch: every method has the same number of steps
    and the same order of data, and a batch of this one is the smaller.
    """

    phase = "self_drop"
    needs_sample_weights = True
    settings = ("sdd_clean_threshold", "sdd_drop_threshold")

    def __call__(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        negative_embeds: Tensor | None,
        log_scale: Tensor,
        weights: SampleWeights,
    ) -> dict[str, Tensor]:
        losses = contrastive_losses(promote(image_embeds), promote(text_embeds), log_scale)
        return {
            "contrastive_loss": (weights.confidence * weights.significance * losses).mean(),
            "unweighted": losses.detach().mean(),
            "kept_share": weights.kept_share,
            "confidence_weight": weights.confidence.mean(),
            "significance_weight": weights.significance.mean(),
        }

    def clean(self, similarity: Tensor) -> Tensor:
        """Which pairs the memory bank may take, by their paired cosine (n,) under the starting model."""
        return similarity > self.arguments.sdd_clean_threshold

    def kept(self, similarity: Tensor) -> Tensor:
        """Self-drop: which pairs an epoch trains on, by their paired cosine (n,) at its start."""
        return similarity > self.arguments.sdd_drop_threshold


@torch.no_grad()
def confidence_weights(logits: Tensor) -> Tensor:
    """w_con: how sure it is that a pair belongs to the better of two Gaussians, min-max scaled to [0, 1].

    Where all pairs are equally sure, all weights are 1.

    Args:
        logits (`Tensor`): (n,) paired cosines times s, of all pairs, dropped ones included.

    Returns:
        `Tensor`: (n,) float64.
    """
    posterior = fit_two_gaussians(logits, **_MIXTURE).posterior(logits)[:, 1]
    low, high = posterior.aminmax()
    return torch.ones_like(posterior) if low == high else (posterior - low) / (high - low)


@torch.no_grad()
def significance_weights(before: Tensor, after: Tensor) -> Tensor:
    """w_sig: tanh(r) where r < 1, else 1; r is the mean over the two banks of loss before / loss after the look ahead.

    A pair whose step harms what the bank says of it counts less. A loss that did not change has the ratio 1, also
    where it is 0.

    Args:
        before, after (`Tensor`): (2, N) symmetric InfoNCE of each pair's entry, in the image and in the text bank.

    Returns:
        `Tensor`: (N,), in [0, 1].
    """
    ratio = torch.where(before == after, 1, before / after).mean(dim=0)
    return torch.where(ratio < 1, ratio.tanh(), 1)
