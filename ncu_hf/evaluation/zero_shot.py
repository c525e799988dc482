"""Zero-shot classification: the class whose text is nearest to the image, from any number of prompt templates.

A tie counts against the model: an image is classified correctly if its class scores strictly above every other one (the
rule of `ncu_hf.evaluation.retrieval`). So two classes of one name are never told apart.

The class that is predicted is the image's own if it is classified correctly, and otherwise the best-scored of the
others, the first of them at a tie. A class whose vector is not finite counts as best-scored; an image whose vector is
not finite has no predicted class.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncu_hf.errors import InputError, one_of
from ncu_hf.evaluation.intervals import class_counts, mean_per_class, wilson_interval
from ncu_hf.evaluation.retrieval import exact_rows, retrieval_ranks, rounding_error
from ncu_hf.evaluation.sets.base import PRIMARY_METRICS

if TYPE_CHECKING:
    from ncu_hf.evaluation.encode import ClipEncoder

FIELD = "{c}"  # the field of `zeroshot_classification_templates.txt` in the clip-benchmark sets
NO_CLASS = -1
_SCORES = 2**20  # scores that are held at a time


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


def zero_shot_metrics(
    image_embeds: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    primary: str = "accuracy",
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of unit image vectors against unit class vectors: [`zero_shot_ranks`], then [`summarise_zero_shot`]."""
    ranks = zero_shot_ranks(image_embeds, labels, weights)
    return summarise_zero_shot(ranks, labels, len(weights), primary=primary, bootstrap=bootstrap, seed=seed)


def zero_shot_ranks(image_embeds: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Place of each image's class among all classes: 1 is best, ties count against the model.

    Args:
        image_embeds (`Tensor` (N, D)): One row an image.
        labels (`LongTensor` (N,)): Class of each image, in 0..C-1.
        weights (`Tensor` (C, D)): See [`class_weights`].

    Returns:
        `LongTensor` (N,): On the CPU; `NOT_FOUND` where the vector of the image or of its class is not finite.

    Raises:
        InputError: no image, a label without a class, or class vectors of another width.
    """
    _check_widths(image_embeds, weights)
    labels = _checked_labels(labels, len(image_embeds), len(weights))
    return retrieval_ranks(image_embeds, weights, labels, torch.arange(len(weights)))


def summarise_zero_shot(
    ranks: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    primary: str = "accuracy",
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy, top 5 and mean per class with 95 % intervals.

    Args:
        ranks (`LongTensor` (N,)): From [`zero_shot_ranks`].
        labels (`LongTensor` (N,)): Class of each image.
        n_classes (`int`): C.
        primary (`str`, *optional*): Which number stands for the set: `"accuracy"` or `"mean_per_class"`.
        bootstrap, seed (`int`, *optional*): Of the interval of the mean per class (resampled within each class).

    Returns:
        `dict`: `accuracy`, `top5` (of up to 5 classes: every image of finite vectors) and `mean_per_class` (of classes
        that occur) in [0, 1]; `interval` {metric: [low, high]} (Wilson, for the mean per class bootstrap); `n`,
        `n_classes`, `primary`.

    Raises:
        InputError: no image, a label without a class, or an unknown primary metric.
    """
    labels = _checked_labels(labels, len(ranks), n_classes)
    n, hits, hits5 = len(ranks), int((ranks == 1).sum()), int((ranks <= 5).sum())
    mean, mean_interval = mean_per_class(ranks == 1, labels, bootstrap, seed)
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
        "n_classes": n_classes,
        "primary": one_of("Zero-shot: primary metric", primary, PRIMARY_METRICS),
    }


def class_table(ranks: Tensor, labels: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each class that occurs, in order: `class` (its name), `n` images, `accuracy` in [0, 1]."""
    labels = _checked_labels(labels, len(ranks), len(classes))
    hits, counts = class_counts(labels, ranks == 1)
    rows = zip(labels.unique().tolist(), hits.tolist(), counts.tolist(), strict=True)
    return [{"class": classes[index], "n": n, "accuracy": hit / n} for index, hit, n in rows]


def confusion_pairs(
    image_embeds: Tensor, labels: Tensor, weights: Tensor, classes: Sequence[str], limit: int = 20
) -> list[dict[str, Any]]:
    """The most frequent confusions.

    Args:
        image_embeds, labels, weights: See [`zero_shot_ranks`].
        classes (`Sequence[str]`): C names.
        limit (`int`, *optional*, defaults to 20): How many pairs at most.

    Returns:
        `list[dict]`: `true` and `predicted` (names) and `n`; the most frequent first, then in order of the classes.
    """
    labels = _checked_labels(labels, len(image_embeds), len(weights))
    predicted = predicted_classes(image_embeds, labels, weights)
    wrong = (predicted != labels) & (predicted != NO_CLASS)
    pairs = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [{"true": classes[true], "predicted": classes[other], "n": n} for (true, other), n in ordered]


def predicted_classes(image_embeds: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Predicted class (N,) of each image; `NO_CLASS` where there is none. See the rule above."""
    _check_widths(image_embeds, weights)
    labels = _checked_labels(labels, len(image_embeds), len(weights))
    vectors, lengths = exact_rows(weights, torch.arange(len(weights)), image_embeds.device)
    rounding = rounding_error(weights.shape[1], lengths.max())
    parts = []
    for rows in torch.arange(len(labels)).split(max(1, _SCORES // len(weights))):
        images, image_lengths = exact_rows(image_embeds, rows)
        own = labels[rows].to(images.device)
        found = _predicted(images @ vectors.T, own, rounding * image_lengths)
        parts.append(found.masked_fill_(images.isnan().any(dim=1), NO_CLASS).cpu())
    return torch.cat(parts)


def _predicted(scores: Tensor, own: Tensor, rounding: Tensor) -> Tensor:
    """Predicted class (B,) from scores (B, C), which are not numbers where a class has no finite vector."""
    bar = scores.gather(1, own[:, None]) - rounding[:, None]
    others = scores.nan_to_num(torch.inf).scatter(1, own[:, None], -torch.inf)
    best = others.amax(dim=1, keepdim=True)
    # argmax gives the first of equal ones: the first class that is not below the best by more than rounding.
    first = (others >= best - rounding[:, None]).byte().argmax(dim=1)
    first = first.masked_fill(best[:, 0] == -torch.inf, NO_CLASS)
    return torch.where((best < bar)[:, 0], own, first)


def _check_widths(image_embeds: Tensor, weights: Tensor) -> None:
    if image_embeds.ndim != 2 or weights.ndim != 2 or not len(weights) or image_embeds.shape[1] != weights.shape[1]:
        shapes = f"{tuple(image_embeds.shape)} and {tuple(weights.shape)}"
        raise InputError(f"Zero-shot: image and class vectors must be (N, D) and (C, D) with C > 0, not {shapes}.")


def _checked_labels(labels: Tensor, n_images: int, n_classes: int) -> Tensor:
    labels = torch.as_tensor(labels).detach().cpu()
    if labels.shape != (n_images,) or n_images == 0:
        raise InputError(f"Zero-shot: {n_images} images and {labels.numel()} labels; need one each, and some.")
    if labels.is_floating_point():
        raise InputError(f"Zero-shot: labels must be whole numbers, not {labels.dtype}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_classes:
        raise InputError(f"Zero-shot: labels run from {low} to {high}, the classes from 0 to {n_classes - 1}.")
    return labels.long()
