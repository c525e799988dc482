"""Zero-shot classification as a metric; the rule of ties is in `ncu_hf.evaluation.zero_shot`."""

from __future__ import annotations

import datasets
import evaluate
import torch

# By module, not by name: `evaluate.load` takes the first metric that it finds among the names of this file.
from ncu_hf import citations
from ncu_hf.evaluation.metrics import base
from ncu_hf.evaluation.zero_shot import zero_shot_metrics

DESCRIPTION = """\
Zero-shot classification: the class whose vector is nearest to the image. Accuracy, top 5 and mean per class.
A tie between classes counts against the model.
"""
INPUTS = """\
Args:
    predictions (list of list of float): The embedding of an image, a unit vector.
    references (list of int): Index of its class.
    class_weights (array (C, D)): One unit vector a class, as from `ncu_hf.evaluation.zero_shot.class_weights`; given to
        `compute`, the same in every process.
    bootstrap (int, optional): Resamples for the interval of the mean per class, 1000 by default.
    seed (int, optional): Of the resampling, 0 by default.

Returns:
    accuracy, top5, mean_per_class (float): In [0, 1]; top5 is 1 for up to five classes, and the mean is of the classes
        that occur.
    interval (dict): The interval of 95 % of each of them.
    n, n_classes (int).

Example:
    >>> from ncu_hf.evaluation.metrics import ZeroShotAccuracy
    >>> metric = ZeroShotAccuracy()
    >>> metric.add_batch(predictions=[[1.0, 0.0], [0.8, 0.6]], references=[0, 1])
    >>> metric.compute(class_weights=[[1.0, 0.0], [0.0, 1.0]])["accuracy"]
    0.5
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class ZeroShotAccuracy(base.GatheredMetric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=citations.CLIP_BIBTEX,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": base.EMBEDDING, "references": datasets.Value("int64")}),
            license=base.LICENSE,
            reference_urls=[citations.CLIP_URL],
        )

    def _compute(self, predictions, references, class_weights, bootstrap: int = 1000, seed: int = 0) -> dict:
        return zero_shot_metrics(
            self._matrix(predictions),
            torch.as_tensor(references),
            torch.as_tensor(class_weights, dtype=torch.float32),
            bootstrap=bootstrap,
            seed=seed,
        )
