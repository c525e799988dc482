"""Losses as functions of embeddings: no model, no configuration, no randomness.

Shapes: N pairs, D embedding width. `image_embeds` v, `text_embeds` t and `negative_embeds` n are unit vectors (N, D);
`log_scale` is the log of s = 1/τ. Every function returns 0-dim tensors (`contrastive_losses`: one value a pair) in the
precision of its inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ncu_hf.partitions import empty_matrix


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, log_scale: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Symmetric InfoNCE: the mean of the image-to-text and the text-to-image cross entropy.

    This is eq. 1 of the NCU paper up to the factor 1/2 that CLIP and `CLIPModel(return_loss=True)` have. Label
    smoothing σ spreads that share of each target evenly over all N samples (Szegedy et al. 2016, arXiv:1512.00567).
    """
    rows, columns = _cross_entropies(image_embeds, text_embeds, log_scale, label_smoothing, "mean")
    return (rows + columns) / 2


def contrastive_losses(image_embeds: Tensor, text_embeds: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of each pair (N,): the terms whose mean is [`contrastive_loss`]."""
    rows, columns = _cross_entropies(image_embeds, text_embeds, log_scale, 0.0, "none")
    return (rows + columns) / 2


def _cross_entropies(
    image_embeds: Tensor, text_embeds: Tensor, log_scale: Tensor, label_smoothing: float, reduction: str
) -> tuple[Tensor, Tensor]:
    """Image to text and text to image, each pair against all of the batch."""
    logits = log_scale.exp() * (image_embeds @ text_embeds.T)
    target = torch.arange(logits.shape[0], device=logits.device)
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    return F.cross_entropy(logits, target, **options), F.cross_entropy(logits.T, target, **options)


def separation_losses(text_embeds: Tensor, negative_embeds: Tensor, margin_low: float, margin_high: float) -> Tensor:
    """The terms whose mean is L_sep (eq. 3), (N,): the hinge that holds ⟨t_i, n_i⟩ inside [margin_low, margin_high]."""
    similarity = (text_embeds * negative_embeds).sum(dim=-1)
    return F.relu(margin_low - similarity) + F.relu(similarity - margin_high)


def distance_losses(text_embeds: Tensor, negative_embeds: Tensor) -> Tensor:
    """2 - ‖t_i - n_i‖₂, (N,): 0 where the negative is the opposite of its caption.

    Wang et al. 2023, "CLIPN for Zero-Shot OOD Detection", arXiv:2308.12213. Where t_i = n_i the gradient is 0.
    """
    return 2 - torch.linalg.vector_norm(text_embeds - negative_embeds, dim=-1)


def relation_loss(
    text_embeds: Tensor, negative_embeds: Tensor, all_texts: Tensor, all_negatives: Tensor, formulation: str
) -> Tensor:
    """L_rel: negatives keep the relations of their captions. The part of the given rows i, against all j:

    `"paper"` (eq. 4): (1/N) Σ_ij (⟨t_i, n_j⟩ - ⟨t_j, n_i⟩)². `"released"` (the authors' code):
    (1/N) Σ_ij (⟨t_i, t_j⟩ - ⟨n_i, n_j⟩)².

    Args:
        text_embeds, negative_embeds (`Tensor`): (B, D), rows i: some of all, or all.
        all_texts, all_negatives (`Tensor`): (N, D).
        formulation (`str`): `"released"` or `"paper"`.
    """
    if formulation == "released":
        difference = text_embeds @ all_texts.T - negative_embeds @ all_negatives.T
    else:
        difference = text_embeds @ all_negatives.T - negative_embeds @ all_texts.T
    return difference.square().sum() / len(all_texts)


def matching_losses(
    all_images: Tensor, text_embeds: Tensor, negative_embeds: Tensor, own: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The two halves of L_itm (eq. 5, with the minus signs that the printed equation lacks), of the given rows i.

    Captions match their own image and no other; negatives match every image but their own:
    (1/N) Σ_ij -log σ(m_ij s⟨t_i, v_j⟩) and (1/N) Σ_ij -log σ(-m_ij s⟨n_i, v_j⟩), m_ij = +1 for the own image, else -1.

    Args:
        all_images (`Tensor`): (N, D).
        text_embeds, negative_embeds (`Tensor`): (B, D), rows i: some of all, or all.
        own (`Tensor`): (B,) int64, which image is that of each row.
        log_scale (`Tensor`): 0-dim.
    """
    scale = log_scale.exp()
    positive = -F.logsigmoid(_signed_logits(text_embeds, all_images, own, scale)).sum() / len(all_images)
    negative = -F.logsigmoid(_signed_logits(negative_embeds, all_images, own, -scale)).sum() / len(all_images)
    return positive, negative


def _signed_logits(embeds: Tensor, all_images: Tensor, own: Tensor, scale: Tensor) -> Tensor:
    """m_ij s⟨e_i, v_j⟩, (B, N)."""
    matched = (embeds * all_images[own]).sum(dim=1, keepdim=True)
    return (-scale * (embeds @ all_images.T)).scatter_(1, own[:, None], scale * matched)


@torch.no_grad()
def extended_similarity(image_embeds: Tensor, all_texts: Tensor, negative_embeds: Tensor) -> Tensor:
    """S̄ (B, N + 1), without gradient: ⟨v_i, t_j⟩ in the first N columns, ⟨v_i, n_i⟩ in the last.

    Args:
        image_embeds, negative_embeds (`Tensor`): (B, D), rows i: some of all, or all.
        all_texts (`Tensor`): (N, D).
    """
    similarity = empty_matrix(len(image_embeds), len(all_texts) + 1, image_embeds)
    torch.mm(image_embeds, all_texts.T, out=similarity[:, :-1])
    torch.sum(image_embeds * negative_embeds, dim=1, out=similarity[:, -1])
    return similarity


def alignment_loss(
    similarity: Tensor, row_target: Tensor, column_target: Tensor, log_scale: Tensor, formulation: str
) -> Tensor:
    """L_otr (eq. 11): KL divergence from the refined alignment to the softmax of s·S̄, both ways.

    Args:
        similarity (`Tensor`): (N, C), S̄ or its first columns.
        row_target (`Tensor`): (N, C), image to text.
        column_target (`Tensor`): (C, N), text to image. Rows need not sum to 1 (see the `released` formulation).
        log_scale (`Tensor`): 0-dim.
        formulation (`str`): `"paper"` adds the two means over rows, `"released"` averages them.
    """
    logits = log_scale.exp() * similarity
    rows = _divergence(row_target, logits.log_softmax(dim=1)) / similarity.shape[0]
    columns = _divergence(column_target, logits.log_softmax(dim=0).T) / similarity.shape[1]
    return (rows + columns) / (2 if formulation == "released" else 1)


def _divergence(target: Tensor, log_prediction: Tensor) -> Tensor:
    return (torch.xlogy(target, target) - target * log_prediction).sum()
