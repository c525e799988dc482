"""How far matching pairs stand apart from the others: the distributions of the paper's Figure 5 (section 5.6)."""

from __future__ import annotations

import torch
from torch import Tensor

from ncu_hf.errors import InputError

KINDS = ("positives", "negatives_mean", "negatives_top")
TOP_SHARE = 0.05  # the paper's "top 5 % maximum of negative pairs"
_SCORES = 2**25  # similarities that are held at a time; with their masks, 13 bytes each


def similarity_distributions(
    image_embeds: Tensor, text_embeds: Tensor, *, groups: Tensor | None = None, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """Cosines of every image with its own text and with the texts of the others.

    Args:
        image_embeds, text_embeds (`Tensor` (N, D)): Unit vectors; row i of both is a pair.
        groups (`LongTensor` (N,), *optional*): Pairs of one group match each other, so they are not negatives.
        chunk_size (`int`, *optional*): Images whose similarities are held at a time; by default as many as take some
            400 MiB, up to 1024.

    Returns:
        `dict[str, Tensor]`: float32 (N,) each: `positives`; `negatives_mean`, the mean over an image's negatives;
        `negatives_top`, the mean over the highest 5 % of them (at least one, rounded up).

    Raises:
        InputError: sizes disagree, or an image has no negative.
    """
    n = len(image_embeds)
    if image_embeds.shape != text_embeds.shape or image_embeds.ndim != 2:
        shapes = f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        raise InputError(f"Similarities: image and text embeddings must be (N, D) alike, not {shapes}.")
    groups = torch.arange(n) if groups is None else torch.as_tensor(groups)
    if groups.shape != (n,) or (torch.unique(groups).numel() < 2):
        raise InputError(f"Similarities: {n} pairs need {n} group ids of at least two groups, so that negatives exist.")
    groups = groups.to(image_embeds.device)
    chunk_size = chunk_size or min(1024, max(1, _SCORES // n))
    chunks = [
        _negatives(images, groups_of_images, text_embeds, groups)
        for images, groups_of_images in zip(image_embeds.split(chunk_size), groups.split(chunk_size), strict=True)
    ]
    mean, top = (torch.cat(parts).float().cpu() for parts in zip(*chunks, strict=True))
    positives = (image_embeds * text_embeds).sum(dim=1).float().cpu()
    return dict(zip(KINDS, (positives, mean, top), strict=True))


def _negatives(images: Tensor, image_groups: Tensor, texts: Tensor, text_groups: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and top mean (B,) of the negatives of B images; their number differs between images where groups do."""
    negative = image_groups[:, None] != text_groups[None, :]  # (B, N)
    similarity = images @ texts.T
    counts = negative.sum(dim=1)
    mean = similarity.masked_fill(~negative, 0.0).sum(dim=1) / counts
    wanted = (counts * TOP_SHARE).ceil().clamp(min=1).long()
    highest = similarity.masked_fill(~negative, -torch.inf).topk(int(wanted.max()), dim=1).values
    unwanted = torch.arange(highest.shape[1], device=highest.device)[None, :] >= wanted[:, None]
    return mean, highest.masked_fill(unwanted, 0.0).sum(dim=1) / wanted


def summarise_similarity(distributions: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Plain floats for each distribution: `{"positives": {"mean": ..., "std": ...}, ...}`."""
    return {
        kind: {"mean": values.double().mean().item(), "std": values.double().std(correction=0).item()}
        for kind, values in distributions.items()
    }
