"""Can anything be measured on a set? Found out before the work, with as few images read as it takes."""

from __future__ import annotations

from collections import Counter

from ncu_hf.data import BadRecord, decode_image
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.base import CaptionedSet, EvaluationSet


def check_usable(evaluation_set: EvaluationSet) -> None:
    """Classification needs one image that can be decoded, retrieval two that do not belong together.

    The first two images answer that, unless they are broken.

    Raises:
        InputError: there are no such images; says what is wrong with them.
    """
    captioned = isinstance(evaluation_set, CaptionedSet)
    groups = evaluation_set.image_groups.tolist() if captioned else range(len(evaluation_set.images))
    needed, found, faults = 1 + captioned, set(), Counter()
    for row, group in enumerate(groups):
        if group in found:
            continue
        try:
            decode_image(evaluation_set.images[row])
        except BadRecord as error:
            faults[error.reason] += 1
            continue
        found.add(group)
        if len(found) == needed:
            return
    wanted = "two images of different captions" if captioned else "an image"
    raise InputError(
        f"{evaluation_set.origin.name}: {wanted} that can be decoded {'are' if captioned else 'is'} needed, and there "
        f"{'is' if len(found) == 1 else 'are'} {len(found)} of {len(evaluation_set.images)} "
        f"({dict(faults) or 'the others belong to the same captions'}). Check its images and their paths."
    )
