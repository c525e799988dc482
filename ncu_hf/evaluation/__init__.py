"""Evaluation of any stock CLIP: takes an encoder, knows nothing of training.

`sets` says what is evaluated on, [`measure`] what one model achieves there.
"""

from ncu_hf.evaluation.cache import EmbeddingCache
from ncu_hf.evaluation.encode import ClipEncoder
from ncu_hf.evaluation.sets.base import CaptionedSet, EvaluationSet, LabelledSet, Origin
from ncu_hf.evaluation.suites import Measurement, measure

__all__ = [
    "CaptionedSet",
    "ClipEncoder",
    "EmbeddingCache",
    "EvaluationSet",
    "LabelledSet",
    "Measurement",
    "Origin",
    "measure",
]
