"""What a run measures on its reference and on its result: clean pairs, and the forget set where it is known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from ncu_hf.config import MethodArguments
from ncu_hf.data import BadRecord, PairSource, clean_caption, decode_image
from ncu_hf.data.order import SAMPLE, keyed_generator
from ncu_hf.errors import InputError
from ncu_hf.evaluation import ClipEncoder, PairEvaluation, ZeroShotSet, evaluate_pairs
from ncu_hf.evaluation.detection import evaluate_forget_set

# Training pairs on which the forget set is compared with the known mismatches.
FORGET_SET_PAIRS = 4096


class EvaluationPairs(NamedTuple):
    """Clean pairs, many-to-many: an image and a caption match if they are of the same group.

    Attributes:
        keys (`list[str]`): Key of each image: that of its first record.
        images (`list[bytes | str]`): Encoded images or their paths, each once.
        captions (`list[str]`): One a pair.
        image_groups, caption_groups (`Tensor`): (n_images,), (n_captions,) int64.
        skipped (`dict[str, int]`): Records that could not be used, by reason.
    """

    keys: list[str]
    images: list[bytes | str]
    captions: list[str]
    image_groups: Tensor
    caption_groups: Tensor
    skipped: dict[str, int]


def collect_pairs(source: PairSource, limit: int | None = None) -> EvaluationPairs:
    """Read evaluation pairs. Rows of the same image, or of the same caption, belong together.

    Raises:
        InputError: all readable pairs belong together (or there is none), so that nothing can be told apart.
    """
    images: dict[bytes | str, int] = {}
    captions, image_of, keys, stored, skipped = [], [], [], [], {}
    for index in range(min(len(source), limit or len(source))):
        record = source[index]
        try:
            caption = clean_caption(record.caption)
            identity = _identity(record.image)
            if identity not in images:
                decode_image(record.image)
                images[identity] = len(stored)
                keys.append(record.key)
                stored.append(record.image)
        except BadRecord as error:
            skipped[error.reason] = skipped.get(error.reason, 0) + 1
            continue
        captions.append(caption)
        image_of.append(images[identity])
    groups = _connect(captions, image_of, len(stored))
    if len(groups.unique()) < 2:
        raise InputError(
            f"--eval_data {source.name}: {len(stored)} readable images with {len(set(captions))} different captions; "
            f"retrieval needs at least two images of different captions (skipped: {skipped or 'none'})."
        )
    caption_groups = groups[torch.tensor(image_of, dtype=torch.long)]
    return EvaluationPairs(keys, stored, captions, groups, caption_groups, skipped)


def assess(
    clip: CLIPModel,
    processor: CLIPProcessor,
    pairs: EvaluationPairs,
    zero_shot: Mapping[str, ZeroShotSet] | None = None,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> PairEvaluation:
    """Retrieval, similarity and zero-shot accuracy of one model on clean pairs."""
    return evaluate_pairs(
        ClipEncoder(clip, processor, device=device, batch_size=batch_size),
        _decoded(pairs.images),
        pairs.captions,
        image_groups=pairs.image_groups,
        caption_groups=pairs.caption_groups,
        zero_shot=zero_shot,
    )


def assess_forget_set(
    clip: CLIPModel,
    processor: CLIPProcessor,
    source: PairSource,
    method: MethodArguments,
    *,
    batch_size: int,
    device: torch.device,
    seed: int,
) -> dict | None:
    """Precision, recall and AUROC of the clean confidence against the known mismatches of the training pairs.

    Measured on at most `FORGET_SET_PAIRS` of them, in batches of the training's size; `None` where the mismatches are
    not known, or all pairs are of one kind.
    """
    images, captions, mismatched = [], [], []
    # A stream of its own: were the sample drawn as the noise was, with equal seeds it would hold all mismatches.
    for index in keyed_generator(seed, SAMPLE).permutation(len(source))[:FORGET_SET_PAIRS].tolist():
        record = source[index]
        if record.mismatched is None:
            return None
        try:
            caption = clean_caption(record.caption)
            decode_image(record.image)
        except BadRecord:
            continue
        captions.append(caption)
        images.append(record.image)
        mismatched.append(record.mismatched)
    if all(mismatched) or not any(mismatched):
        return None
    encoder = ClipEncoder(clip, processor, device=device)
    return evaluate_forget_set(
        encoder.encode_images(_decoded(images)),
        encoder.encode_texts(captions),
        torch.tensor(mismatched),
        scale=encoder.scale,
        forget_ratio=method.forget_ratio,
        batch_size=batch_size,
        formulation=method.formulation,
        seed=seed,
    )


def _decoded(images: list[bytes | str]) -> Iterator[Image.Image]:
    return (decode_image(image) for image in images)


def _identity(image: bytes | str | None) -> bytes | str | None:
    return hashlib.sha256(image).digest() if isinstance(image, bytes) else image


def _connect(captions: list[str], image_of: list[int], images: int) -> Tensor:
    """Group of each image: images that share a caption, directly or through others, are one group (union-find)."""
    parent = list(range(images))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[str, int] = {}
    for caption, image in zip(captions, image_of, strict=True):
        parent[root(image)] = root(first.setdefault(caption, image))
    return torch.tensor([root(image) for image in range(images)], dtype=torch.long)
