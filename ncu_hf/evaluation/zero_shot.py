"""Zero-shot classification: the class whose text is nearest to the image, from any number of prompt templates.

A tie counts against the model: an image is classified correctly if its class scores strictly above every other one (the
rule of `ncu_hf.evaluation.retrieval`). So two classes of one name are never told apart.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from ncu_hf.errors import InputError
from ncu_hf.evaluation.retrieval import retrieval_ranks

if TYPE_CHECKING:
    from ncu_hf.evaluation.encode import ClipEncoder

FIELD = "{c}"  # the field of `zeroshot_classification_templates.txt` in the clip-benchmark sets
Z_95 = 1.959963984540054


def class_texts(classes: list[str], templates: list[str]) -> list[str]:
    """Every template filled with every class: C * T texts, the templates of the first class first.

    Raises:
        InputError: no class, no template, or a template without the field `{c}`.
    """
    if not classes or not templates:
        raise InputError(
            f"Zero-shot: {len(classes)} classes and {len(templates)} templates; need at least one of each."
        )
    for template in templates:
        if FIELD not in template:
            raise InputError(f"Zero-shot: template {template!r} has no field {FIELD} for the class name.")
    # Not str.format: a class name or template may hold braces, and format would look up attributes.
    return [template.replace(FIELD, name) for name in classes for template in templates]


def class_weights(encoder: ClipEncoder, classes: list[str], templates: list[str]) -> Tensor:
    """One unit vector a class: mean of the unit vectors of its templates, normalised again.

    Returns:
        `Tensor` (C, D): float32.
    """
    embeds = encoder.encode_texts(class_texts(classes, templates))  # (C * T, D)
    means = embeds.unflatten(0, (len(classes), len(templates))).mean(dim=1)
    return torch.nn.functional.normalize(means, dim=-1)


def prompt_hash(classes: list[str], templates: list[str]) -> str:
    """First 16 hex digits of the SHA-256 of class names and templates, in order: what makes two numbers comparable."""
    text = json.dumps({"classes": list(classes), "templates": list(templates)}, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def wilson_interval(hits: int, n: int, z: float = Z_95) -> list[float]:
    """Wilson score interval of a share (Wilson, 1927); it has a width at 0 and 1 too, where the normal one has none."""
    if n < 1:
        raise InputError("An interval needs at least one observation.")
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / n / 4) / (1 + spread)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def zero_shot_metrics(
    image_embeds: Tensor, labels: Tensor, weights: Tensor, *, bootstrap: int = 1000, seed: int = 0
) -> dict:
    """Accuracy of unit image vectors against unit class vectors.

    Args:
        image_embeds (`Tensor` (N, D)): One row an image.
        labels (`LongTensor` (N,)): Class of each image, in 0..C-1.
        weights (`Tensor` (C, D)): See [`class_weights`].
        bootstrap, seed (`int`, *optional*): Of the interval of the mean per class (resampled within each class).

    Returns:
        `dict`: `accuracy`, `top5` (1 by definition for up to 5 classes) and `mean_per_class` (of classes that occur) in
        [0, 1]; `interval` {metric: [low, high]} (95 %: Wilson, for the mean per class bootstrap); `n`, `n_classes`.

    Raises:
        InputError: no image, or a label without a class.
    """
    labels = torch.as_tensor(labels).long()
    if len(labels) == 0 or len(labels) != len(image_embeds):
        raise InputError(f"Zero-shot: {len(image_embeds)} images and {len(labels)} labels; need one each, and some.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(weights):
        raise InputError(f"Zero-shot: labels run from {low} to {high}, the classes from 0 to {len(weights) - 1}.")
    weights = weights.to(image_embeds.device)
    ranks = retrieval_ranks(image_embeds, weights, labels, torch.arange(len(weights)))
    top1, top5 = ranks == 1, ranks <= 5
    n, hits, hits5 = len(ranks), int(top1.sum()), int(top5.sum())
    mean, mean_interval = _mean_per_class(top1, labels.cpu(), bootstrap, seed)
    return {
        "accuracy": hits / n,
        "top5": hits5 / n,
        "mean_per_class": mean,
        "interval": {
            "accuracy": wilson_interval(hits, n),
            "top5": wilson_interval(hits5, n),
            "mean_per_class": mean_interval,
        },
        "n": n,
        "n_classes": len(weights),
    }


def _mean_per_class(correct: Tensor, labels: Tensor, bootstrap: int, seed: int) -> tuple[float, list[float]]:
    counts = torch.bincount(labels).numpy()
    hits = torch.bincount(labels, weights=correct.double(), minlength=len(counts)).numpy()
    hits, counts = hits[counts > 0], counts[counts > 0]
    # Drawing n items of a class with replacement finds Binomial(n, share) correct ones.
    drawn = numpy.random.default_rng(seed).binomial(counts, hits / counts, size=(bootstrap, len(counts)))
    low, high = numpy.quantile((drawn / counts).mean(axis=1), [0.025, 0.975])
    return float((hits / counts).mean()), [float(low), float(high)]


def evaluate_zero_shot(
    encoder: ClipEncoder, image_embeds: Tensor, labels: Tensor, classes: list[str], templates: list[str]
) -> dict:
    """[`zero_shot_metrics`] of images that are already encoded, with the `hash` of class names and templates.

    Args:
        encoder (`ClipEncoder`): Encodes the class names.
        image_embeds (`Tensor` (N, D)): From `encoder.encode_images`.
        labels (`LongTensor` (N,)): Index into `classes` of each image.
        classes, templates (`list[str]`): C names; texts with the field `{c}`.
    """
    weights = class_weights(encoder, classes, templates)
    return zero_shot_metrics(image_embeds, labels, weights) | {"hash": prompt_hash(classes, templates)}
