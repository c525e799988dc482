"""Linear probe as a metric; problem and protocol are in `ncu_hf.evaluation.linear_probe`."""

from __future__ import annotations

import datasets
import evaluate
import torch

# By module, not by name: `evaluate.load` takes the first metric that it finds among the names of this file.
from ncu_hf import citations
from ncu_hf.evaluation.linear_probe import linear_probe
from ncu_hf.evaluation.metrics import base

DESCRIPTION = """\
Linear probe: accuracy of an L-BFGS logistic regression on frozen image features. It is fitted on the training items;
its regularisation is chosen on the validation items, or on a fifth of the training items where there are none; the test
items are looked at once, at the end. A tie between classes counts against the model.
"""
INPUTS = """\
Args:
    predictions (list of list of float): The features of an image.
    references (list of int): Index of its class.
    split (list of str): "train", "validation" (optional) or "test", for each prediction. The order of the items decides
        which of them are held out; with several processes it is that of the processes.
    n_classes (int, optional): By default one more than the highest label.
    features (str, optional): "unprojected" (the default) or "projected", stored with the number.
    primary (str, optional): "accuracy" (the default) or "mean_per_class", stored with the number.
    device (str, optional): Where to fit, "cpu" by default.
    bootstrap (int, optional): Resamples for the interval of the mean per class, 1000 by default.
    seed (int, optional): Of what is held out and of the resampling, 0 by default.

Returns:
    accuracy, mean_per_class (float): In [0, 1].
    interval (dict): The interval of 95 % of both.
    n, n_classes, n_train, n_validation (int): n is the number of test items.
    regularisation (float): The one that was chosen.
    validation_curve (list of dict): "regularisation" and "accuracy" of all that were tried.
    features, primary (str).

Example:
    >>> from ncu_hf.evaluation.metrics import LinearProbeAccuracy
    >>> metric = LinearProbeAccuracy()
    >>> features, labels = [[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1]
    >>> metric.add_batch(predictions=features, references=labels, split=["train"] * 4)
    >>> metric.add_batch(predictions=[[-3.0], [3.0]], references=[0, 1], split=["test"] * 2)
    >>> metric.compute()["accuracy"]
    1.0
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class LinearProbeAccuracy(base.GatheredMetric):
    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "predictions": base.EMBEDDING,
            "references": datasets.Value("int64"),
            "split": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=citations.CLIP_BIBTEX,
            inputs_description=INPUTS,
            features=datasets.Features(columns),
            license=base.LICENSE,
            reference_urls=[citations.CLIP_URL],
        )

    def _compute(self, predictions, references, split, n_classes: int | None = None, **options) -> dict:
        self._check_words("split", split, ("train", "validation", "test"))
        vectors, labels = self._matrix(predictions), torch.as_tensor(references)
        chosen = {name: torch.tensor([word == name for word in split]) for name in ("train", "validation", "test")}
        parts = {name: (vectors[rows], labels[rows]) for name, rows in chosen.items()}
        numbers, _ = linear_probe(
            *parts["train"],
            *parts["test"],
            int(labels.max()) + 1 if n_classes is None else n_classes,
            validation=parts["validation"] if len(parts["validation"][1]) else None,
            **options,
        )
        return numbers
