"""What the metrics share: where inputs are kept, and what is checked of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy
import torch
from torch import Tensor

from ncu_hf.errors import InputError, nearest

EMBEDDING = datasets.Sequence(datasets.Value("float32"))
LICENSE = "Apache-2.0"


class GatheredMetric(evaluate.Metric):
    """A metric of all that was added, in memory or, with several processes, through files that they share.

    Args:
        config_name (`str`, *optional*): Of no effect; `evaluate.load` passes it.
        cache_dir (`str`, *optional*): Where the processes exchange their inputs; without it they stay in memory.
        experiment_id (`str`, *optional*): Tells apart runs that share `cache_dir`.
        num_process, process_id (`int`, *optional*): How many processes add inputs, and which one this is. The first
            alone gets a result.

    Raises:
        InputError: several processes without a `cache_dir` and `experiment_id`.
    """

    def __init__(
        self,
        config_name: str | None = None,
        *,
        cache_dir: str | None = None,
        experiment_id: str | None = None,
        num_process: int = 1,
        process_id: int = 0,
        **kwargs,
    ):
        if num_process > 1 and (cache_dir is None or experiment_id is None):
            raise InputError(
                f"{type(self).__name__}: several processes need a cache_dir and experiment_id of their own."
            )
        shared = {"experiment_id": experiment_id, "num_process": num_process, "process_id": process_id, **kwargs}
        if cache_dir is None:
            # The base class makes a folder even where nothing will be written.
            with tempfile.TemporaryDirectory(prefix="ncu_hf_metric_") as folder:
                super().__init__(config_name, **shared | {"cache_dir": folder, "keep_in_memory": True})
        else:
            super().__init__(config_name, cache_dir=cache_dir, **shared)
        # MetricInfo refuses this for features that are lists, but a million Python floats are slow and large.
        self.info.format = "numpy"

    def compute(self, **inputs: Any) -> dict[str, Any] | None:
        """See `evaluate.Metric.compute`; in addition rows of several lengths, or missing ones, are told as such."""
        try:
            return super().compute(**inputs)
        except ValueError as error:  # older releases of datasets cannot make an array of objects of them
            if "inhomogeneous" not in str(error):
                raise
            raise InputError(f"{type(self).__name__}: predictions are missing or differ in length.") from error

    def _finalize(self) -> None:
        # The base class would fail at an attribute of None.
        if self.keep_in_memory and self.buf_writer is None:
            raise InputError(f"{type(self).__name__}: nothing was added; give predictions to compute or add_batch.")
        super()._finalize()

    def _matrix(self, predictions: numpy.ndarray) -> Tensor:
        """Predictions as (N, D); rows of several lengths, or missing ones, arrive as an array of objects."""
        if predictions.ndim != 2 or not predictions.size:
            lengths = sorted({0 if row is None else len(row) for row in predictions})[:4]
            found = f"predictions are {len(predictions)} vectors of {' or '.join(map(str, lengths)) or 'no'} values"
            raise InputError(f"{type(self).__name__}: {found}; need at least one, all of the same length above 0.")
        return torch.from_numpy(numpy.ascontiguousarray(predictions))

    def _check_words(self, column: str, values: Iterable[str], known: tuple[str, ...]) -> None:
        for value in sorted(set(values) - set(known)):
            words = " or ".join(map(repr, known))
            raise InputError(
                f"{type(self).__name__}: {column} must be {words}, not {str(value)!r}.{nearest(value, known)}"
            )
