"""Statistics of a comparison: mean and deviation over seeds, and two kinds of paired intervals.

*Over seeds*: the differences of the n seeds are n observations; the interval is Student's, `mean ± t sd / sqrt(n)`. It
tells what another seed (weights, order, noise) would give on these items. Two seeds have a very wide one.

*Over items*: the items are drawn with replacement, the same ones for all models and seeds, and the difference is
averaged over the seeds. It tells what other items would give with these seeds.

Neither contains the other: a difference that both leave 0 out of is safe from either kind of chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy
from torch import Tensor

from ncu_hf.evaluation.intervals import percentile_intervals
from ncu_hf.evaluation.outcomes import Outcome
from ncu_hf.evaluation.pairwise import RetrievalItems
from ncu_hf.evaluation.retrieval import CUTOFFS, group_totals, recall_hits

BOOTSTRAP = 4_000
LEVEL = 0.95


class Spread(NamedTuple):
    """Mean over seeds; `sd` (n - 1) of at least two of them."""

    mean: float
    sd: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def seeds_interval(differences: Sequence[float]) -> list[float] | None:
    """Student's 95 % interval of the mean; `None` of fewer than two values."""
    n = len(differences)
    if n < 2:
        return None
    half = t_quantile(n - 1) * stdev(differences) / math.sqrt(n)
    return [fmean(differences) - half, fmean(differences) + half]


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t that Student's distribution of `freedom` degrees stays within, both ways, with probability `level`."""
    low, high = 0.0, 1.0
    while t_within(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < level else (low, middle)
    return high


def t_within(t: float, freedom: int) -> float:
    """P(|T| <= t) for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * step / (step + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def resampled_counts(n: int, bootstrap: int = BOOTSTRAP, seed: int = 0) -> numpy.ndarray:
    """How often each of n items is drawn in each resample: (bootstrap, n), float32; rows sum to n."""
    drawn = numpy.random.default_rng(seed).integers(0, n, size=(bootstrap, n), dtype=numpy.int32)
    drawn += numpy.arange(bootstrap, dtype=numpy.int32)[:, None] * numpy.int32(n)
    return numpy.bincount(drawn.ravel(), minlength=bootstrap * n).reshape(bootstrap, n).astype(numpy.float32)


class Resampler:
    """Resampled metrics of outcomes, with the same draws for all outcomes on the same images.

    Args:
        bootstrap (`int`, *optional*): Resamples.
    """

    def __init__(self, bootstrap: int = BOOTSTRAP):
        self.bootstrap = bootstrap
        self._counts: dict[tuple[int, str], numpy.ndarray] = {}

    def metric(self, outcome: Outcome) -> numpy.ndarray:
        """Accuracy, or mean of six recalls, in each resample: (bootstrap,), float64.

        Classifications of the same images share their draws, so that the interval of their average is right too.
        """
        if isinstance(outcome.items, RetrievalItems):
            return self._mean_recall(outcome.items)
        correct = (outcome.items.ranks == 1).numpy().astype(numpy.float32)
        return (self._draws(len(correct), outcome.images) @ correct / len(correct)).astype(numpy.float64)

    def _mean_recall(self, items: RetrievalItems) -> numpy.ndarray:
        totals = group_totals(recall_hits(items.ranks), items.groups)  # (G, 8): six hits, images and captions
        sums = (self._draws(len(totals), "groups") @ _float(totals)).astype(numpy.float64)
        return (sums[:, :-2] / numpy.repeat(sums[:, -2:], len(CUTOFFS), axis=1)).mean(axis=1)

    def _draws(self, n: int, of: str) -> numpy.ndarray:
        key = (n, of)
        if key not in self._counts:
            self._counts[key] = resampled_counts(n, self.bootstrap, seed=len(self._counts))
        return self._counts[key]


def items_interval(resampled: Sequence[tuple[numpy.ndarray, numpy.ndarray]]) -> list[float]:
    """95 % interval of the mean over seeds of the difference b - a, from each seed's resampled metrics (a, b)."""
    mean = numpy.mean([b - a for a, b in resampled], axis=0)
    return percentile_intervals(mean[:, None])[0]


def excludes_zero(interval: Sequence[float] | None) -> bool:
    return interval is not None and not interval[0] <= 0 <= interval[1]


def _float(values: Tensor) -> numpy.ndarray:
    return values.numpy().astype(numpy.float32)
