"""Sets to evaluate on: the paper's by name, local ones, and those of the Hub."""

from ncu_hf.evaluation.sets.base import CaptionedSet, EvaluationSet, LabelledSet, Origin
from ncu_hf.evaluation.sets.captioned import captioned_set
from ncu_hf.evaluation.sets.open import open_set, open_suite
from ncu_hf.evaluation.sets.registry import BENCHMARK_SETS, SUITES

__all__ = [
    "BENCHMARK_SETS",
    "SUITES",
    "CaptionedSet",
    "EvaluationSet",
    "LabelledSet",
    "Origin",
    "captioned_set",
    "open_set",
    "open_suite",
]
