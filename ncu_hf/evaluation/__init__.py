"""Evaluation of any stock CLIP: takes an encoder, knows nothing of training.

[`evaluate_pairs`] is the one call that measures a model on image-text pairs.
"""

from ncu_hf.evaluation.encode import ClipEncoder
from ncu_hf.evaluation.suites import PairEvaluation, ZeroShotSet, evaluate_pairs

__all__ = ["ClipEncoder", "PairEvaluation", "ZeroShotSet", "evaluate_pairs"]
