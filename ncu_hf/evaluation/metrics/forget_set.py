"""Quality of the forget set as a metric; how ties are taken is in `ncu_hf.evaluation.detection`."""

from __future__ import annotations

import datasets
import evaluate
import torch

# By module, not by name: `evaluate.load` takes the first metric that it finds among the names of this file.
from ncu_hf import citations
from ncu_hf.errors import InputError
from ncu_hf.evaluation.detection import forget_set_metrics
from ncu_hf.evaluation.metrics import base

DESCRIPTION = """\
Does the clean confidence of Noisy Correspondence Unlearning find the image-text pairs that are known not to match?
Precision and recall of the forget set, the k = int(P N) pairs of lowest confidence, and AUROC over all thresholds.
"""
INPUTS = """\
Args:
    predictions (list of float): Clean confidence of a pair, high where image and text match; kept as float32.
    references (list of int): 1 if the pair is known not to match, 0 if it is known to match; some of both.
    forget_ratio (float): P in [0, 1), given to `compute`.

Returns:
    precision (float): Share of the forget set that does not match, 0 if it is empty.
    recall (float): Share of the pairs that do not match which is in the forget set.
    auroc (float): 1/2 is chance.
    k, n, n_mismatched (int): Pairs in the forget set, all pairs, pairs that do not match.

Example:
    >>> from ncu_hf.evaluation.metrics import ForgetSet
    >>> metric = ForgetSet()
    >>> metric.add_batch(predictions=[0.1, 0.4, 0.7, 0.9], references=[1, 0, 1, 0])
    >>> metric.compute(forget_ratio=0.5)["precision"]
    0.5
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class ForgetSet(base.GatheredMetric):
    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": datasets.Value("float32"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=citations.NCU_BIBTEX,
            inputs_description=INPUTS,
            features=datasets.Features(columns),
            license=base.LICENSE,
            reference_urls=[citations.NCU_URL],
        )

    def _compute(self, predictions, references, forget_ratio: float) -> dict:
        marks = torch.as_tensor(references)
        wrong = marks[(marks != 0) & (marks != 1)]
        if len(wrong):
            raise InputError(f"ForgetSet: references must be 1 (does not match) or 0 (matches), not {int(wrong[0])}.")
        return forget_set_metrics(torch.as_tensor(predictions), marks == 1, forget_ratio)
