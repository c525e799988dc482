"""What is measured with one model on one set. With several processes every function here is a collective.

Images are encoded by all processes together, and only once: `ClipEncoder` caches by content. The numbers are computed
by the first process, which alone gets a [`Measurement`]; the others get `None`.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncu_hf.distributed import local_first, world
from ncu_hf.errors import InputError
from ncu_hf.evaluation.encode import ClipEncoder, EncodedImages
from ncu_hf.evaluation.linear_probe import FEATURES, linear_probe, split_half
from ncu_hf.evaluation.pairwise import RetrievalItems, ZeroShotItems, compare_items
from ncu_hf.evaluation.retrieval import ranks_both_ways, summarise_ranks
from ncu_hf.evaluation.sets.base import CaptionedSet, EvaluationSet, LabelledSet
from ncu_hf.evaluation.similarity import similarity_distributions, summarise_similarity
from ncu_hf.evaluation.zero_shot import (
    class_table,
    class_weights,
    confusion_pairs,
    prompt_hash,
    summarise_zero_shot,
    zero_shot_ranks,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """What one model achieved on one set.

    Attributes:
        group (`str`): `zero_shot`, `retrieval` or `linear_probe`.
        name (`str`): Of the set.
        numbers (`dict`): Plain values, ready for JSON.
        items (`ZeroShotItems` or `RetrievalItems`): The outcome on each item, for paired tests between models.
        distributions (`dict[str, Tensor]`, *optional*): Of retrieval: similarities, see `similarity_distributions`.
        images (`str`): Stamp of the set's images: measurements of one stamp are of the same images in the same order.
    """

    group: str
    name: str
    numbers: dict[str, Any]
    items: ZeroShotItems | RetrievalItems
    distributions: dict[str, Tensor] | None = None
    images: str = ""

    @property
    def similarity(self) -> dict[str, dict[str, float]]:
        """Mean and deviation of each distribution."""
        return summarise_similarity(self.distributions or {})


def paired_tests(baseline: Measurement, model: Measurement) -> list[dict[str, Any]]:
    """Differences of a model to a baseline on the same items of one set, see `compare_items`."""
    of_the_set = {"group": model.group, "set": model.name}
    tests = compare_items(baseline.items, model.items)
    # The items of a probe give a top 5 too, which is not told of it.
    told = [test for test in tests if model.group == "retrieval" or test["metric"] in model.numbers]
    return [{**of_the_set, **test} for test in told]


def measure(encoder: ClipEncoder, evaluation_set: EvaluationSet, **options: Any) -> Measurement | None:
    """Zero-shot classification of a labelled set, retrieval of a captioned one; `options` belong to the former."""
    if isinstance(evaluation_set, LabelledSet):
        return measure_zero_shot(encoder, evaluation_set, **options)
    return measure_retrieval(encoder, evaluation_set)


def measure_zero_shot(
    encoder: ClipEncoder, labelled: LabelledSet, *, paper_metrics: bool = False, per_class: bool = False
) -> Measurement | None:
    """Zero-shot classification.

    Args:
        encoder (`ClipEncoder`): The model.
        labelled (`LabelledSet`): The images.
        paper_metrics (`bool`, *optional*): Name plain accuracy as primary metric of every set, as the paper's code
            does.
        per_class (`bool`, *optional*): Add accuracy of each class, and which classes are confused.

    Raises:
        InputError: no image can be decoded.
    """
    encoded = encoder.encode_images(labelled.images, labelled.origin.stamp)
    weights = class_weights(encoder, labelled.classes, labelled.templates)
    rows = _usable(encoded, labelled)
    if world()[0] != 0:
        return None
    embeds, labels = encoded.embeds[rows], labelled.labels[rows]
    ranks = zero_shot_ranks(embeds, labels, weights)
    primary = "accuracy" if paper_metrics else labelled.primary
    numbers = summarise_zero_shot(ranks, labels, len(labelled.classes), primary=primary)
    numbers["hash"] = prompt_hash(labelled.classes, labelled.templates)
    if per_class:
        numbers["per_class"] = class_table(ranks, labels, labelled.classes)
        numbers["confusions"] = confusion_pairs(embeds, labels, weights, labelled.classes)
    return Measurement(
        "zero_shot",
        labelled.origin.name,
        numbers | _described(encoded, labelled),
        ZeroShotItems(ranks, labels),
        images=labelled.origin.stamp,
    )


def measure_retrieval(encoder: ClipEncoder, captioned: CaptionedSet) -> Measurement | None:
    """Image-text retrieval both ways, and how far pairs stand apart from non-pairs.

    Raises:
        InputError: no image can be decoded.
    """
    encoded = encoder.encode_images(captioned.images, captioned.origin.stamp)
    texts = encoder.encode_texts(captioned.captions)
    rows = _usable(encoded, captioned)
    image_groups, caption_groups = captioned.image_groups[rows], captioned.caption_groups
    # A caption whose only images cannot be decoded has nothing to be found.
    kept = torch.isin(caption_groups, image_groups)
    images, texts, caption_groups = encoded.embeds[rows], texts[kept], caption_groups[kept]
    device = encoder.model.device
    images_there, texts_there = images.to(device), texts.to(device)
    groups = (image_groups, caption_groups)
    ranks = ranks_both_ways(images_there, texts_there, groups, shared=True)
    if world()[0] != 0:
        return None
    first = _first_captions(image_groups, caption_groups)
    return Measurement(
        "retrieval",
        captioned.origin.name,
        summarise_ranks(ranks, groups) | _described(encoded, captioned),
        RetrievalItems(ranks, groups),
        similarity_distributions(images_there, texts_there[first], groups=image_groups),
        captioned.origin.stamp,
    )


def measure_linear_probe(
    encoder: ClipEncoder, labelled: LabelledSet, *, features: str = FEATURES[0], paper_metrics: bool = False
) -> Measurement | None:
    """Accuracy of a logistic regression on frozen image features.

    It learns from the set's training split. A set without one is halved, class by class; the note of the number says
    so.

    Args:
        encoder (`ClipEncoder`): The model.
        labelled (`LabelledSet`): The images.
        features (`str`, *optional*): `"unprojected"`: output of the vision tower (as CLIP's paper does), or
            `"projected"`: unit vectors of the shared space.
        paper_metrics (`bool`, *optional*): See [`measure_zero_shot`].

    Raises:
        InputError: no image can be decoded, or nothing can be learned from what there is.
    """
    encoded = encoder.encode_images(labelled.images, labelled.origin.stamp)
    rows, labels = _usable(encoded, labelled), labelled.labels
    note = None
    if labelled.train is None:
        train, test = split_half(labels[rows])
        train_set, train_encoded, train_rows, rows = labelled, encoded, rows[train], rows[test]
        note = "no training split: learned from one half of each class, measured on the other (seed 0)"
    else:
        with local_first():
            train_set = labelled.train()
        train_encoded = encoder.encode_images(train_set.images, train_set.origin.stamp)
        train_rows = _usable(train_encoded, train_set)
    if world()[0] != 0:
        return None
    try:
        numbers, ranks = linear_probe(
            _features(train_encoded, features)[train_rows],
            train_set.labels[train_rows],
            _features(encoded, features)[rows],
            labels[rows],
            len(labelled.classes),
            features=features,
            device=encoder.model.device,
            primary="accuracy" if paper_metrics else labelled.primary,
        )
    except InputError as error:
        raise InputError(f"{labelled.origin.name}: {error}") from error
    numbers |= _described(encoded, labelled, note)
    return Measurement("linear_probe", labelled.origin.name, numbers, ZeroShotItems(ranks, labels[rows]))


def _features(encoded: EncodedImages, features: str) -> Tensor:
    return encoded.embeds if features == "projected" else encoded.pooled


def _usable(encoded: EncodedImages, evaluation_set: EvaluationSet) -> Tensor:
    rows = encoded.usable
    if not len(rows):
        reasons = dict(Counter(encoded.faults.values()))
        raise InputError(
            f"{evaluation_set.origin.name}: none of its {len(evaluation_set.images)} images can be used "
            f"({reasons or 'it is empty'}); check the paths of its images."
        )
    if lost := int((~encoded.embeds[rows].isfinite().all(dim=1)).sum()):
        logger.warning(
            "%s: the vectors of %d of %d images are not finite and count against the model; check its weights.",
            *(evaluation_set.origin.name, lost, len(rows)),
        )
    return rows


def _described(encoded: EncodedImages, evaluation_set: EvaluationSet, note: str | None = None) -> dict[str, Any]:
    """Where the numbers come from, what was left out, and what else a reader must know."""
    skipped = Counter(evaluation_set.skipped) + Counter(encoded.faults.values())
    data = evaluation_set.origin.to_dict()
    notes = "; ".join(filter(None, (data.get("note"), note)))
    return {"data": data | ({"note": notes} if notes else {}), "skipped": dict(skipped)}


def _first_captions(image_groups: Tensor, caption_groups: Tensor) -> list[int]:
    """Row of the first caption of each image's group."""
    first: dict[int, int] = {}
    for row, group in enumerate(caption_groups.tolist()):
        first.setdefault(group, row)
    return [first[group] for group in image_groups.tolist()]
