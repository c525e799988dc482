"""What is measured together: everything that one set of image-text pairs can tell about a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import PIL.Image
import torch
from torch import Tensor

from ncu_hf.errors import InputError
from ncu_hf.evaluation.encode import ClipEncoder
from ncu_hf.evaluation.metrics import RetrievalRecall
from ncu_hf.evaluation.retrieval import group_ids
from ncu_hf.evaluation.similarity import similarity_distributions, summarise_similarity
from ncu_hf.evaluation.zero_shot import evaluate_zero_shot


@dataclass(frozen=True)
class ZeroShotSet:
    """A classification of the evaluated images.

    Attributes:
        labels (`LongTensor` (n_images,)): Index into `classes` of each image.
        classes (`list[str]`): Class names.
        templates (`list[str]`): Texts with the field `{c}` for the class name.
    """

    labels: Tensor
    classes: list[str]
    templates: list[str]


@dataclass(frozen=True)
class PairEvaluation:
    """Result of [`evaluate_pairs`].

    Attributes:
        numbers (`dict`): Plain values, ready for JSON: `retrieval` (see `evaluate_retrieval`), `similarity` (see
            `summarise_similarity`), `zero_shot` {name: see `evaluate_zero_shot`}.
        distributions (`dict[str, Tensor]`): What the similarity plot shows, see `similarity_distributions`.
    """

    numbers: dict
    distributions: dict[str, Tensor]


def evaluate_pairs(
    encoder: ClipEncoder,
    images: Iterable[PIL.Image.Image],
    captions: list[str],
    *,
    caption_image: Tensor | None = None,
    image_groups: Tensor | None = None,
    caption_groups: Tensor | None = None,
    zero_shot: Mapping[str, ZeroShotSet] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> PairEvaluation:
    """Encode images and captions once; measure retrieval, similarity and any number of zero-shot tasks.

    Args:
        encoder (`ClipEncoder`): The model to measure.
        images (iterable of `PIL.Image.Image`): n_images images, or a generator of them.
        captions (`list[str]`): n_captions texts.
        caption_image (`LongTensor` (n_captions,), *optional*): Index of each caption's image; by default caption i
            belongs to image i.
        image_groups, caption_groups (`LongTensor`, *optional*): In place of `caption_image`, for many-to-many: an image
            and a caption of the same group match.
        zero_shot (`Mapping[str, ZeroShotSet]`, *optional*): Classifications of the same images, by name.
        bootstrap, seed (`int`, *optional*): Of the intervals.

    Returns:
        [`PairEvaluation`].

    Raises:
        InputError: an image or caption without counterpart, or sizes that disagree.
    """
    image_embeds, text_embeds = encoder.encode_images(images), encoder.encode_texts(captions)
    groups = group_ids(
        len(image_embeds),
        len(text_embeds),
        caption_image=caption_image,
        image_groups=image_groups,
        caption_groups=caption_groups,
    )
    distributions = similarity_distributions(*_one_caption_each(image_embeds, text_embeds, *groups), groups=groups[0])
    numbers = {
        "retrieval": RetrievalRecall().compute(
            predictions=torch.cat([image_embeds, text_embeds]).numpy(),
            references=torch.cat(groups).numpy(),
            modality=["image"] * len(image_embeds) + ["text"] * len(text_embeds),
            bootstrap=bootstrap,
            seed=seed,
        ),
        "similarity": summarise_similarity(distributions),
        "zero_shot": {
            name: evaluate_zero_shot(encoder, image_embeds, task.labels, task.classes, task.templates)
            for name, task in (zero_shot or {}).items()
        },
    }
    return PairEvaluation(numbers, distributions)


def _one_caption_each(
    image_embeds: Tensor, text_embeds: Tensor, image_groups: Tensor, caption_groups: Tensor
) -> tuple[Tensor, Tensor]:
    """Images (n_images, D) and the first caption (n_images, D) of each one's group."""
    first: dict[int, int] = {}
    for row, group in enumerate(caption_groups.tolist()):
        first.setdefault(group, row)
    missing = [row for row, group in enumerate(image_groups.tolist()) if group not in first]
    if missing:
        raise InputError(f"Evaluation: {len(missing)} images have no caption (first: image {missing[0]}).")
    return image_embeds, text_embeds[[first[group] for group in image_groups.tolist()]]
