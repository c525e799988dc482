"""Embeddings that look like those of a trained CLIP, for benchmarks of what comes after the towers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


def clip_like_embeds(n: int, common: float = 0.4, seed: int = 0, width: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """Image, text and negative unit embeddings (n, width), paired cosines spread evenly over 0.25 to 0.9.

    Texts share a direction of weight `common` (CLIP's modality is a narrow cone) and one of n/16 topics; an image
    leans on its text by its cosine, the rest on the same direction and topic. Negative texts lie at cosine -0.45 to
    their text.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return normalize(torch.randn(rows, width, generator=generator), dim=1)

    shared = common * draw(1) + 0.5 * draw(max(n // 16, 1))[torch.randint(max(n // 16, 1), (n,), generator=generator)]
    text, other = normalize(shared + 0.7 * draw(n), dim=1), normalize(shared + 0.7 * draw(n), dim=1)
    paired = 0.25 + 0.65 * torch.rand(n, 1, generator=generator)
    image = paired * text + (1 - paired**2).sqrt() * _perpendicular(other, text)
    negative = -0.45 * text + math.sqrt(1 - 0.45**2) * _perpendicular(draw(n), text)
    return image, text, negative


def _perpendicular(vectors: Tensor, axes: Tensor) -> Tensor:
    return normalize(vectors - (vectors * axes).sum(1, keepdim=True) * axes, dim=1)
