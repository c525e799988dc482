"""Paired tests: is one model better than another on the same items?

Every difference is b - a: positive where the second model is better. Three methods:

- *McNemar's exact test* for a share of correct items: of the items that only one model classifies correctly, half are
  expected on each side. Its interval is Newcombe's method 10 (Newcombe, 1998, Statistics in Medicine 17, 2635-2650):
  Wilson intervals of both shares, combined with their correlation. It holds its level for few discordant items too,
  where a bootstrap of none has no width; so two models that agree on all items get a short interval around 0.
- *Paired bootstrap by group* for recalls: an image is drawn with all its captions, for both models alike.
- *Paired bootstrap within class* for the mean per class: both models see the same draws.

A bootstrap gives the interval. It cannot give a p-value for few items: where b wins on each of three, every resample
says so. The p-value is that of swapping the two models' outcomes on random items (or groups), as is just as likely if
the models are equal: p = (1 + #{|d*| >= |d|}) / (1 + B), two-sided (Phipson and Smyth, 2010, Statistical Applications
in Genetics and Molecular Biology 9, 39). Of shares this is McNemar's test. It is never 0, and 1 where the models agree
on everything.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from ncu_hf.errors import InputError
from ncu_hf.evaluation.intervals import (
    paired_mean_per_class,
    percentile_intervals,
    resampled_totals,
    swapped_totals,
    wilson_interval,
)
from ncu_hf.evaluation.retrieval import CUTOFFS, DIRECTIONS, group_totals, recall_hits

MCNEMAR = "McNemar (exact)"
BY_CLASS = "paired bootstrap within class, p by swapping"
BY_GROUP = "paired bootstrap by group, p by swapping"
BOOTSTRAP = 10_000
RECALLS = [f"{direction} R@{cutoff}" for direction in DIRECTIONS for cutoff in CUTOFFS]


@dataclass(frozen=True, eq=False)
class ZeroShotItems:
    """Outcome of a classification on each item.

    Attributes:
        ranks (`LongTensor` (N,)): Place of the item's class, 1 is best.
        labels (`LongTensor` (N,)): Class of each item.
    """

    ranks: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class RetrievalItems:
    """Outcome of a retrieval on each item.

    Attributes:
        ranks (`tuple[LongTensor, LongTensor]`): Of the images (n_images,) and of the captions (n_captions,).
        groups (`tuple[LongTensor, LongTensor]`): Their groups: an image and a caption of one group match.
    """

    ranks: tuple[Tensor, Tensor]
    groups: tuple[Tensor, Tensor]


def compare_items(
    a: ZeroShotItems | RetrievalItems,
    b: ZeroShotItems | RetrievalItems,
    *,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Paired tests of two models on the same items.

    Args:
        a, b (`ZeroShotItems` or `RetrievalItems`): Of the baseline and of the model.
        bootstrap, seed (`int`, *optional*): Resamples; of the generator.

    Returns:
        `list[dict]`: A row for each of `accuracy`, `top5` and `mean_per_class`, or of the six recalls
        (`"image_to_text R@1"` ...), `mean_recall` and `rsum`: `metric`, `difference` (b - a, in the metric's unit),
        `interval` (95 %), `test`, `p_value`, `n` (independent items: images, or groups of images and captions).

    Raises:
        InputError: the items are not the same.
    """
    if isinstance(a, ZeroShotItems) and isinstance(b, ZeroShotItems):
        return _compare_zero_shot(a, b, bootstrap, seed)
    if isinstance(a, RetrievalItems) and isinstance(b, RetrievalItems):
        _check_same("Retrieval", (*a.groups, *a.ranks), (*b.groups, *b.ranks), ids=2)
        found = paired_recall_difference(a.ranks, b.ranks, a.groups, bootstrap=bootstrap, seed=seed)
        return [{"metric": metric, **values} for metric, values in found.items()]
    raise InputError("A paired test needs two results of one kind: both of a classification or both of retrieval.")


def _compare_zero_shot(a: ZeroShotItems, b: ZeroShotItems, bootstrap: int, seed: int) -> list[dict[str, Any]]:
    _check_same("Classification", (a.labels, a.ranks), (b.labels, b.ranks), ids=1)
    rows = []
    for metric, cutoff in (("accuracy", 1), ("top5", 5)):
        found = mcnemar(a.ranks <= cutoff, b.ranks <= cutoff)
        values = {key: found[key] for key in ("difference", "interval", "p_value", "n")}
        rows.append({"metric": metric, "test": MCNEMAR, **values})
    found = paired_mean_per_class(a.ranks == 1, b.ranks == 1, a.labels, bootstrap, seed)
    values = {"test": BY_CLASS, **_paired_test(*found), "n": len(a.labels)}
    return [*rows, {"metric": "mean_per_class", **values}]


def mcnemar(correct_a: Tensor, correct_b: Tensor) -> dict[str, Any]:
    """McNemar's exact test and Newcombe's interval of the difference of two shares on the same items.

    Args:
        correct_a, correct_b (`BoolTensor` (N,)): Whether each model is right on each item.

    Returns:
        `dict`: `difference` (b - a) in [-1, 1], `interval` (95 %), `p_value` (two-sided), `n`, and how many items
        `only_a` and `only_b` are right on.

    Raises:
        InputError: no item, or not the same number of them.
    """
    correct_a, correct_b = torch.as_tensor(correct_a).bool(), torch.as_tensor(correct_b).bool()
    if correct_a.ndim != 1 or correct_a.shape != correct_b.shape or len(correct_a) == 0:
        shapes = f"{tuple(correct_a.shape)} and {tuple(correct_b.shape)}"
        raise InputError(f"McNemar: outcomes of the same items are needed, one row each, not {shapes}.")
    both, only_a = int((correct_a & correct_b).sum()), int((correct_a & ~correct_b).sum())
    only_b, n = int((correct_b & ~correct_a).sum()), len(correct_a)
    return {
        "difference": (only_b - only_a) / n,
        "interval": newcombe_interval(both, only_a, only_b, n - both - only_a - only_b),
        "p_value": sign_test(only_a, only_b),
        "n": n,
        "only_a": only_a,
        "only_b": only_b,
    }


def sign_test(first: int, second: int) -> float:
    """Two-sided exact p-value of a split first : second where each side is equally likely; 1 for no observation."""
    n, fewer = first + second, min(first, second)
    counts = torch.arange(fewer + 1, dtype=torch.float64)
    log_ways = math.lgamma(n + 1) - torch.lgamma(counts + 1) - torch.lgamma(n - counts + 1)
    tail = torch.logsumexp(log_ways - n * math.log(2), dim=0).exp().item()
    # Smaller than the smallest number of this precision is not impossible.
    return min(1.0, max(2 * tail, sys.float_info.min))


def newcombe_interval(both: int, only_a: int, only_b: int, neither: int) -> list[float]:
    """95 % interval of the difference b - a of two shares on the same items: method 10 of Newcombe (1998)."""
    n = both + only_a + only_b + neither
    hits_a, hits_b = both + only_a, both + only_b
    (low_a, high_a), (low_b, high_b) = wilson_interval(hits_a, n), wilson_interval(hits_b, n)
    share_a, share_b, difference = hits_a / n, hits_b / n, (only_b - only_a) / n
    margins = hits_a * (n - hits_a) * hits_b * (n - hits_b)
    product = both * neither - only_a * only_b
    if product > 0:
        product = max(product - n / 2, 0)  # correction for continuity
    phi = product / math.sqrt(margins) if margins else 0.0

    def width(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))

    low = difference - width(share_b - low_b, high_a - share_a)
    return [max(-1.0, low), min(1.0, difference + width(high_b - share_b, share_a - low_a))]


def paired_recall_difference(
    ranks_a: tuple[Tensor, Tensor],
    ranks_b: tuple[Tensor, Tensor],
    groups: tuple[Tensor, Tensor],
    *,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Differences of recalls by paired bootstrap: whole groups are drawn, the same for both models.

    Args:
        ranks_a, ranks_b (`tuple[LongTensor, LongTensor]`): Of the images and of the captions, for each model.
        groups (`tuple[LongTensor, LongTensor]`): Their groups.
        bootstrap, seed (`int`, *optional*): Resamples; of the generator.

    Returns:
        `dict`: For each of the six recalls, `mean_recall` (in [-1, 1]) and `rsum` (in percent): `test`, `difference`
        (b - a), `interval` (95 %), `p_value`, `n` (groups).
    """
    gains = tuple(hit_b - hit_a for hit_a, hit_b in zip(recall_hits(ranks_a), recall_hits(ranks_b), strict=True))
    totals = group_totals(gains, groups)  # (G, 8): six gains, images and captions
    everything = totals.sum(dim=0, keepdim=True).double().numpy()
    resampled = resampled_totals(totals, bootstrap, seed)
    swapped = swapped_totals(totals[:, :-2], bootstrap, seed)
    names = [*RECALLS, "mean_recall", "rsum"]
    columns = zip(
        _differences(everything[:, :-2], everything[:, -2:])[0].tolist(),
        _differences(resampled[:, :-2], resampled[:, -2:]).T,
        _differences(swapped, everything[:, -2:]).T,
        strict=True,
    )
    return {
        name: {"test": BY_GROUP, **_paired_test(*column), "n": len(totals)}
        for name, column in zip(names, columns, strict=True)
    }


def _differences(gains: numpy.ndarray, items: numpy.ndarray) -> numpy.ndarray:
    """Gains (B, 6) and items (B or 1, 2) of both sides -> (B, 8): recalls, their mean, their sum in percent."""
    recalls = gains / numpy.repeat(items, len(CUTOFFS), axis=1)
    mean = recalls.mean(axis=1, keepdims=True)
    return numpy.concatenate([recalls, mean, 100 * len(RECALLS) * mean], axis=1)


def _paired_test(difference: float, resampled: numpy.ndarray, swapped: numpy.ndarray) -> dict[str, Any]:
    # What is equal but for rounding counts as equal, so that the p-value does not depend on it.
    extreme = numpy.abs(swapped) >= abs(difference) * (1 - 1e-9) - 1e-12
    return {
        "difference": difference,
        "interval": percentile_intervals(resampled[:, None])[0],
        "p_value": (1 + int(extreme.sum())) / (1 + len(swapped)),
    }


def _check_same(what: str, a: tuple[Tensor, ...], b: tuple[Tensor, ...], ids: int) -> None:
    """The first `ids` tensors say what the items are; the others hold an outcome for each."""
    sizes_a, sizes_b = [len(part) for part in a], [len(part) for part in b]
    if sizes_a != sizes_b or sizes_a[:ids] != sizes_a[ids:]:
        raise InputError(f"{what}: a paired test needs the same items, not {sizes_a} and {sizes_b} of them.")
    if not all(torch.equal(one.long().cpu(), other.long().cpu()) for one, other in zip(a[:ids], b[:ids], strict=True)):
        raise InputError(
            f"{what}: a paired test needs the same items in the same order; their labels or groups differ."
        )
