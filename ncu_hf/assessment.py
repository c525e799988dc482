"""What a run measures on its reference and on its result: sets, and the forget set where it is known."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ncu_hf.config import MethodArguments
from ncu_hf.data import BadRecord, PairSource, clean_caption
from ncu_hf.data.files import fingerprint_text
from ncu_hf.data.order import SAMPLE, keyed_generator
from ncu_hf.distributed import world
from ncu_hf.evaluation import ClipEncoder, EvaluationSet, Measurement, measure
from ncu_hf.evaluation.detection import batched_confidence
from ncu_hf.evaluation.metrics import ForgetSet
from ncu_hf.evaluation.sets.images import stamp_files

# Training pairs that stand for all of them.
SAMPLE_PAIRS = 4096


class Assessment(NamedTuple):
    """What was measured on one model.

    Attributes:
        numbers (`dict`): Plain values: `zero_shot` {set: ...}, `retrieval` {set: ...}, and `similarity` of the first
            captioned set.
        distributions (`dict[str, Tensor]`, *optional*): What the similarity plot shows, of that set.
        measured (`list[Measurement]`): All of it with the outcome on each item, for paired tests.
    """

    numbers: dict[str, Any]
    distributions: dict[str, Tensor] | None
    measured: list[Measurement]


def assess(encoder: ClipEncoder, sets: list[EvaluationSet]) -> Assessment | None:
    """Measure one model on all sets; a collective. `None` without sets, and on all processes but the first."""
    measured = [found for one in sets if (found := measure(encoder, one)) is not None]
    if not measured:
        return None
    numbers: dict[str, Any] = {}
    for found in measured:
        numbers.setdefault(found.group, {})[found.name] = found.numbers
    pairs = next((found for found in measured if found.distributions is not None), None)
    if pairs is None:
        return Assessment(numbers, None, measured)
    return Assessment(numbers | {"similarity": pairs.similarity}, pairs.distributions, measured)


def assess_forget_set(
    encoder: ClipEncoder, source: PairSource, method: MethodArguments, *, batch_size: int, seed: int
) -> dict[str, float] | None:
    """Precision, recall and AUROC of the clean confidence against the known mismatches of the training pairs.

    Measured on at most `SAMPLE_PAIRS` of them, in batches of the training's size. A collective; `None` where the
    mismatches are not known, or all pairs are of one kind, and on all processes but the first.
    """
    if source[0].mismatched is None:
        return None
    image, text, mismatched = encode_sample(encoder, source, seed)
    if world()[0] != 0 or None in mismatched or all(mismatched) or not any(mismatched):
        return None
    confidence = batched_confidence(
        image, text, encoder.scale, batch_size=batch_size, seed=seed, formulation=method.formulation
    )
    return ForgetSet().compute(
        predictions=confidence.numpy(), references=np.array(mismatched), forget_ratio=method.forget_ratio
    )


def encode_sample(encoder: ClipEncoder, source: PairSource, seed: int) -> tuple[Tensor, Tensor, list[bool | None]]:
    """Unit vectors of image and caption of at most `SAMPLE_PAIRS` random training pairs, (n, D) each, and whether the
    pairs are known to be mismatched. A collective; records that cannot be used are left out."""
    images, captions, mismatched = [], [], []
    # A stream of its own: were the sample drawn as the noise was, with equal seeds it would hold all mismatches.
    for index in keyed_generator(seed, SAMPLE).permutation(len(source))[:SAMPLE_PAIRS].tolist():
        record = source[index]
        try:
            captions.append(clean_caption(record.caption))
        except BadRecord:
            continue
        images.append(record.image)
        mismatched.append(record.mismatched)
    encoded, texts = encoder.encode_images(images, _stamp(images)), encoder.encode_texts(captions)
    rows = encoded.usable
    return encoded.embeds[rows], texts[rows], [mismatched[row] for row in rows.tolist()]


def _stamp(images: list[Any]) -> str | None:
    """Identifies the content of images: of their bytes, or of their files as they are here; `None` of other ones."""
    if all(isinstance(image, str) for image in images):
        return stamp_files(images)
    if all(isinstance(image, bytes) for image in images):
        return fingerprint_text(*(hashlib.sha256(image).hexdigest() for image in images))
    return None
