"""Intervals of 95 %: of a share, of a mean per class, of anything that is computed from totals over groups."""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

from ncu_hf.errors import InputError

Z_95 = 1.959963984540054
BOUNDS = (0.025, 0.975)
_CELLS = 2**18  # draws that are held in memory at a time


def wilson_interval(hits: int, n: int, z: float = Z_95) -> list[float]:
    """Wilson score interval of a share (Wilson, 1927); it has a width at 0 and 1 too, where the normal one has none."""
    if n < 1:
        raise InputError("An interval needs at least one observation.")
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / n / 4) / (1 + spread)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def percentile_intervals(samples: numpy.ndarray) -> list[list[float]]:
    """Percentile interval of each column of (bootstrap, K)."""
    return numpy.quantile(samples, BOUNDS, axis=0).T.tolist()


def resampled_totals(rows: Tensor, bootstrap: int, seed: int) -> numpy.ndarray:
    """Totals of resamples that draw as many rows as there are, with replacement.

    Rows that are equal are drawn together: how often each distinct row comes up is multinomial. So the cost of a
    resample is the number of distinct rows (for recalls of five captions an image a few hundred), not of rows.

    Args:
        rows (`LongTensor` (G, K)): What each group adds to K totals.
        bootstrap, seed (`int`): Resamples; of the generator. The order of the rows does not matter.

    Returns:
        `numpy.ndarray` (bootstrap, K): float64.
    """
    distinct, counts = _distinct_rows(rows)
    n, shares = int(counts.sum()), counts / counts.sum()
    generator = _generator(bootstrap, seed)
    return numpy.stack([generator.multinomial(n, shares) @ distinct for _ in range(bootstrap)])


def swapped_totals(rows: Tensor, draws: int, seed: int) -> numpy.ndarray:
    """Totals where each row keeps or changes its sign by the toss of a coin.

    With what one model gains over another on each group as rows, this is what chance makes of the totals if it does not
    matter which of the two models is which.

    Args:
        rows (`LongTensor` (G, K)): What each group adds to K differences.
        draws, seed (`int`): Of the generator. The order of the rows does not matter.

    Returns:
        `numpy.ndarray` (draws, K): float64.
    """
    distinct, counts = _distinct_rows(rows)
    generator = _generator(draws, seed)
    return numpy.stack([(2 * generator.binomial(counts, 0.5) - counts) @ distinct for _ in range(draws)])


def _distinct_rows(rows: Tensor) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Distinct rows (U, K), float64, in lexical order, and how often each occurs (U,)."""
    # Column by column: numbers are sorted several times faster than rows.
    key = torch.zeros(len(rows), dtype=torch.long)
    for column in rows.unbind(dim=1):
        values, index = torch.unique(column, return_inverse=True)
        key = torch.unique(key * len(values) + index, return_inverse=True)[1]
    counts = torch.bincount(key)
    example = torch.empty_like(counts).scatter_(0, key, torch.arange(len(key)))  # any row of a kind: they are equal
    return rows[example].double().numpy(), counts.numpy()


def mean_per_class(correct: Tensor, labels: Tensor, bootstrap: int, seed: int) -> tuple[float, list[float]]:
    """Mean over the classes that occur of the share that is correct, and its interval.

    Items are resampled within each class, so the interval is that of these classes. A class of one item does not vary.

    Args:
        correct (`BoolTensor` (N,)): Whether each item is classified correctly.
        labels (`LongTensor` (N,)): Class of each item.
        bootstrap, seed (`int`): Resamples; of the generator.
    """
    hits, counts = class_counts(labels, correct)
    # Drawing n items of a class with replacement finds Binomial(n, share) correct ones.
    drawn = _generator(bootstrap, seed).binomial(counts, hits / counts, size=(bootstrap, len(counts)))
    means = (drawn / counts).mean(axis=1, keepdims=True)
    return float((hits / counts).mean()), percentile_intervals(means)[0]


def paired_mean_per_class(
    correct_a: Tensor, correct_b: Tensor, labels: Tensor, bootstrap: int, seed: int
) -> tuple[float, numpy.ndarray, numpy.ndarray]:
    """Difference b - a of two models' mean per class on the same items.

    Args:
        correct_a, correct_b (`BoolTensor` (N,)): Whether each model is right on each item.
        labels (`LongTensor` (N,)): Class of each item.
        bootstrap, seed (`int`): Draws; of the generator.

    Returns:
        `tuple`: The difference. Resamples of it (bootstrap,), within each class, the same draws for both models. Values
        of it (bootstrap,) where on each item it is drawn which model is which, see [`swapped_totals`].
    """
    gains, counts = class_counts(labels, correct_b & ~correct_a)
    losses, _ = class_counts(labels, correct_a & ~correct_b)
    generator, rest = _generator(bootstrap, seed), numpy.maximum(counts - gains, 1)
    samples, swapped = numpy.empty(bootstrap), numpy.empty(bootstrap)
    rows = max(1, _CELLS // len(counts))
    for first in range(0, bootstrap, rows):
        part = slice(first, min(first + rows, bootstrap))
        size = (part.stop - first, len(counts))
        gained = generator.binomial(counts, gains / counts, size=size)
        lost = generator.binomial(counts - gained, losses / rest)
        samples[part] = ((gained - lost) / counts).mean(axis=1)
        tosses = generator.binomial(gains + losses, 0.5, size=size)
        swapped[part] = ((2 * tosses - gains - losses) / counts).mean(axis=1)
    return float(((gains - losses) / counts).mean()), samples, swapped


def class_counts(labels: Tensor, chosen: Tensor) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Of each class that occurs, in order: how many of its items are chosen, and how many there are."""
    counts = torch.bincount(labels)
    hits = torch.bincount(labels[chosen], minlength=len(counts))
    return hits[counts > 0].numpy(), counts[counts > 0].numpy()


def _generator(bootstrap: int, seed: int) -> numpy.random.Generator:
    if bootstrap < 1:
        raise InputError(f"bootstrap: {bootstrap} resamples give no interval; need at least 1 (1000 are usual).")
    return numpy.random.default_rng(seed)
