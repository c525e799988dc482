"""Linear probe: how well a linear classifier on frozen image features tells the classes apart.

The problem is that of multinomial logistic regression with a bias that is not regularised. Over weights W (H, C) and
biases b (C,), minimise

    mean over the N training items of cross_entropy(x W + b, label)  +  regularisation / 2 * |W|^2

In scikit-learn's `LogisticRegression` this is C = 1 / (regularisation * N), and C = 2 / (regularisation * N) for two
classes, where it fits one vector in place of two. The mean makes the regularisation mean the same for any N, so the one
that is chosen on a part of the training data fits all of it.

The protocol is that of CLIP (Radford et al. 2021, section A.3): L-BFGS with up to 1000 iterations; the regularisation
between 1e-6 and 1e6, at 8 steps a decade, found on validation data by a search that starts with seven values and halves
its step around the best; then a fit on training and validation data together. The test data are looked at once, at the
end. As there, features are taken as they are: standardised ones would make another problem, as |W|^2 is not the same.

Raw features of a CLIP make L-BFGS slow: they share a large mean, and their variances differ by orders of magnitude.
What L-BFGS sees is therefore a change of variables, which leaves the minimum where it is: the mean goes into the bias,
and W is given along the principal axes of the features, each divided by the root of its curvature.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ncu_hf.errors import InputError, one_of
from ncu_hf.evaluation.intervals import mean_per_class, wilson_interval
from ncu_hf.evaluation.retrieval import NOT_FOUND, retrieval_ranks
from ncu_hf.evaluation.sets.base import PRIMARY_METRICS

logger = logging.getLogger(__name__)

FEATURES = ("unprojected", "projected")
STEPS_PER_DECADE = 8
LARGEST = 6 * STEPS_PER_DECADE  # the grid runs from 10^-6 to 10^6
SEARCH_STEPS = (16, 8, 4, 2, 1)
VALIDATION_PARTS = 5  # one part in five is held out where no validation data are given
MAX_ITERATIONS = 1000
# Of the gradient in L-BFGS's own variables, where the curvature is about 1: the loss is then within about 1e-6.
TOLERANCE = 1e-5
SLACK = 10  # L-BFGS also ends where the loss no longer changes, short of the tolerance
SCORES_AT_A_TIME = 2**21  # float64 values: the block of features and that of scores stay within 16 MiB each


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    n_classes: int,
    *,
    features: str = "unprojected",
    validation: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    bootstrap: int = 1000,
    primary: str = "accuracy",
) -> tuple[dict, Tensor]:
    """Fit on training data, choose the regularisation on validation data, measure on test data.

    A tie between classes counts against the model, as in `ncu_hf.evaluation.zero_shot`, and so do a test item whose
    features are not finite and one whose class has no training item.

    Args:
        train_features (`Tensor` (n_train, H)): One row an image, of any floating type.
        train_labels (`LongTensor` (n_train,)): In 0..n_classes-1.
        test_features, test_labels (`Tensor`): (n, H), (n,).
        n_classes (`int`): Classes of the set, whether or not they occur.
        features (`str`, *optional*): Which ones they are, `"unprojected"` or `"projected"`; stored with the number.
        validation (`tuple[Tensor, Tensor]`, *optional*): Features and labels. By default a fifth of the training data
            is held out, of every class with at least two items at least one.
        seed (`int`, *optional*, defaults to 0): Of what is held out, and of the bootstrap.
        device (`torch.device`, *optional*): Where to fit; by default where `train_features` are.
        bootstrap (`int`, *optional*): Resamples for the interval of the mean per class.
        primary (`str`, *optional*): `"accuracy"` or `"mean_per_class"`. Named in the result; the regularisation is
            chosen by accuracy either way.

    Returns:
        `tuple[dict, LongTensor]`: `accuracy`, `mean_per_class` in [0, 1], `interval` {metric: [low, high]} (95 %), `n`,
        `n_classes`, `primary`, `n_train` and `n_validation` (the final fit has both), `regularisation`, `features`,
        `validation_curve` [{"regularisation", "accuracy"}] of all that were tried. And the rank (n,) of the true class
        of each test item: 1 is correct, `NOT_FOUND` where there is none.

    Raises:
        InputError: sizes disagree, a label without a class, no item, training features that are not finite, or nothing
            to validate on.
    """
    one_of("features", features, FEATURES)
    one_of("primary", primary, PRIMARY_METRICS)
    train = _Items("training", train_features, train_labels, n_classes, device)
    test = _Items("test", test_features, test_labels, n_classes, train.features.device, like=train)
    train.check_finite()
    if validation is None:
        fitted, held_out = _hold_out(train, seed)
    else:
        fitted, held_out = train, _Items("validation", *validation, n_classes, train.features.device, like=train)
        held_out.check_finite()
        train = train.joined(held_out)
    axes = _principal_axes(fitted.features)
    exponent, curve, start = _search(fitted, held_out, axes)
    probe = _fit(train, axes, _value(exponent), start)
    unknown = int((~torch.isin(test.labels, probe.classes)).sum())
    if unknown:
        logger.warning("Linear probe: %d of %d test items are of classes without a training item.", unknown, len(test))
    ranks = _ranks(probe, test)
    numbers = _summary(ranks, test.labels.cpu(), n_classes, bootstrap, seed) | {
        "primary": primary,
        "n_train": len(fitted),
        "n_validation": len(held_out),
        "regularisation": _value(exponent),
        "features": features,
        "validation_curve": [{"regularisation": _value(e), "accuracy": curve[e]} for e in sorted(curve)],
    }
    return numbers, ranks


def fit_probe(features: Tensor, labels: Tensor, n_classes: int, regularisation: float) -> Probe:
    """The minimum of the problem above for one regularisation.

    Raises:
        InputError: as [`linear_probe`], or a regularisation that is not above 0.
    """
    if not regularisation > 0:
        raise InputError(f"Linear probe: regularisation must be above 0, not {regularisation}.")
    items = _Items("training", features, labels, n_classes, None)
    items.check_finite()
    return _fit(items, _principal_axes(items.features), regularisation, _prior(items))


def split_half(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Half of every class for training, half for testing; the odd item is for training.

    Args:
        labels (`LongTensor` (N,)): Class of each item.
        seed (`int`, *optional*, defaults to 0): Of the draw.

    Returns:
        `tuple[LongTensor, LongTensor]`: rows for training and for testing, ascending.
    """
    held_out = _held_out(labels, 2, seed)
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


@dataclass(frozen=True)
class Probe:
    """A linear classifier.

    Attributes:
        weight (`Tensor` (H, C)), bias (`Tensor` (C,)): float64. Scores are x W + b.
        classes (`LongTensor` (K,)): Those that had training items; the others are never predicted.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor


@dataclass(frozen=True)
class _Axes:
    """Mean (H,), principal axes (H, H) as columns, and variances (H,) along them, of features; float64."""

    mean: Tensor
    axes: Tensor
    variance: Tensor


class _Items:
    """Features (N, H) and labels (N,) that agree, on one device."""

    def __init__(
        self,
        part: str,
        features: Tensor,
        labels: Tensor,
        n_classes: int,
        device: torch.device | str | None,
        like: _Items | None = None,
    ):
        features, labels = torch.as_tensor(features).detach(), torch.as_tensor(labels)
        if features.ndim != 2 or labels.shape != features.shape[:1] or not features.numel():
            shapes = f"{tuple(features.shape)} features and {tuple(labels.shape)} labels"
            raise InputError(f"Linear probe: {shapes} for {part}; need (N, H) and (N,), and at least one item.")
        if like is not None and features.shape[1] != like.features.shape[1]:
            widths = f"{features.shape[1]} features an item for {part}, {like.features.shape[1]} for training"
            raise InputError(f"Linear probe: {widths}; both must come from one model.")
        if not features.is_floating_point() or labels.is_floating_point() or labels.is_complex():
            kinds = f"{features.dtype} features and {labels.dtype} labels"
            raise InputError(f"Linear probe: {kinds} for {part}; need floating point features and whole labels.")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= n_classes:
            raise InputError(f"Linear probe: labels for {part} run from {low} to {high}, not 0 to {n_classes - 1}.")
        self.part, self.n_classes = part, n_classes
        self.features = features.to(device or features.device)
        self.labels = labels.long().to(self.features.device)

    def __len__(self) -> int:
        return len(self.labels)

    def check_finite(self) -> None:
        bad = ~self.features.isfinite().all(dim=1)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise InputError(
                f"Linear probe: {int(bad.sum())} of {len(bad)} feature vectors for {self.part} are not finite "
                f"(first: row {first}); leave those images out, or check the model's weights."
            )

    def rows(self, chosen: Tensor) -> _Items:
        return _Items(self.part, self.features[chosen], self.labels[chosen], self.n_classes, None)

    def joined(self, other: _Items) -> _Items:
        features = torch.cat([self.features, other.features.to(self.features.dtype)])
        return _Items(self.part, features, torch.cat([self.labels, other.labels]), self.n_classes, None)


def _hold_out(train: _Items, seed: int) -> tuple[_Items, _Items]:
    held_out = _held_out(train.labels.cpu(), VALIDATION_PARTS, seed).to(train.features.device)
    if not held_out.any():
        raise InputError(
            f"Linear probe: none of the classes has two training items ({len(train)} items), so nothing is left to "
            "choose the regularisation on; give validation data."
        )
    return train.rows(~held_out), train.rows(held_out)


def _held_out(labels: Tensor, parts: int, seed: int) -> Tensor:
    """Random mask (N,) of one item in `parts` of every class, at least one of a class that has two."""
    labels = torch.as_tensor(labels).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class by class, at random within each
    counts = torch.bincount(labels)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    quota = torch.where(counts > 1, (counts // parts).clamp(min=1), 0)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order] = place < quota[labels[order]]
    return mask


def _value(exponent: int) -> float:
    return 10.0 ** (exponent / STEPS_PER_DECADE)


def _search(fitted: _Items, held_out: _Items, axes: _Axes) -> tuple[int, dict[int, float], Probe]:
    """Best exponent, the accuracy at each one that was tried, and the solution there.

    Of equally accurate ones the strongest is best. Each fit starts from the solution nearest to it.
    """
    curve: dict[int, float] = {}
    solutions: dict[int, Probe] = {}
    best = 0
    for step in SEARCH_STEPS:
        # Strong regularisation first: the fit there is quick, and the solutions move steadily from it.
        points = range(LARGEST, -LARGEST - 1, -step) if not curve else (best + step, best - step)
        for point in points:
            if point in curve or abs(point) > LARGEST:
                continue
            nearest = min(solutions, key=lambda known, point=point: (abs(known - point), -known), default=None)
            start = _prior(fitted) if nearest is None else solutions[nearest]
            solutions[point] = _fit(fitted, axes, _value(point), start)
            curve[point] = int((_ranks(solutions[point], held_out) == 1).sum()) / len(held_out)
        best = max(curve, key=lambda known: (curve[known], known))
    return best, curve, solutions[best]


def _principal_axes(features: Tensor) -> _Axes:
    n, width = features.shape
    blocks = features.split(max(1, SCORES_AT_A_TIME // width))
    mean = sum(block.double().sum(dim=0) for block in blocks) / n
    covariance = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for block in blocks:
        centred = block.double() - mean
        covariance.addmm_(centred.T, centred, alpha=1 / n)
    variance, axes = torch.linalg.eigh(covariance)
    return _Axes(mean, axes, variance.clamp(min=0))


def _prior(items: _Items) -> Probe:
    """The minimum for a regularisation without end: no weights, the frequencies of the classes."""
    counts = torch.bincount(items.labels, minlength=items.n_classes).double()
    weight = counts.new_zeros(items.features.shape[1], items.n_classes)
    return Probe(weight, (counts / counts.sum()).clamp(min=1e-300).log(), counts.nonzero()[:, 0])


def _fit(items: _Items, axes: _Axes, regularisation: float, start: Probe) -> Probe:
    """Minimise by L-BFGS from `start`.

    In the variables v = axes^T W / scale, with scale = (curvature * variance + regularisation)^-1/2, the second
    derivative is about 1 in every direction, where curvature is the mean of p (1 - p) over the predictions at `start`.
    """
    classes = torch.bincount(items.labels, minlength=items.n_classes).nonzero()[:, 0]
    weight, bias = start.weight[:, classes], start.bias[classes] + axes.mean @ start.weight[:, classes]
    labels = torch.searchsorted(classes, items.labels)
    curvature = max(1e-8, _loss(items.features, labels, axes.mean, weight, bias)[3])
    scale = (curvature * axes.variance + regularisation).rsqrt()[:, None]
    bias_scale = curvature**-0.5
    rotated, shifted = axes.axes.T @ weight / scale, bias / bias_scale  # what L-BFGS changes

    def closure() -> Tensor:
        weight = axes.axes @ (scale * rotated)
        loss, weight_gradient, bias_gradient, _ = _loss(items.features, labels, axes.mean, weight, bias_scale * shifted)
        rotated.grad = scale * (axes.axes.T @ weight_gradient + regularisation * (scale * rotated))
        shifted.grad = bias_scale * bias_gradient
        return loss + regularisation / 2 * weight.square().sum()

    optimiser = torch.optim.LBFGS(
        [rotated, shifted],
        max_iter=MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    optimiser.step(closure)
    closure()
    steepest = float(max(rotated.grad.abs().max(), shifted.grad.abs().max()))
    if not steepest < SLACK * TOLERANCE:
        logger.warning(
            "Linear probe: no convergence within %d iterations at regularisation %.1e (gradient %.1e); its accuracy "
            "may be too low.",
            *(MAX_ITERATIONS, regularisation, steepest),
        )
    weight, bias = torch.zeros_like(start.weight), torch.zeros_like(start.bias)
    weight[:, classes] = axes.axes @ (scale * rotated)
    bias[classes] = bias_scale * shifted - axes.mean @ weight[:, classes]
    return Probe(weight, bias, classes)


def _loss(
    features: Tensor, labels: Tensor, mean: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mean cross entropy of (x - mean) W + b, its gradients, and the mean of p (1 - p); in float64.

    Block by block, so that neither a float64 copy of the features nor all scores are held at a time.
    """
    n, n_scores = len(features), max(weight.shape)
    loss, curvature = weight.new_zeros(()), weight.new_zeros(())
    weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
    offset = bias - mean @ weight
    size = max(1, SCORES_AT_A_TIME // n_scores)
    for block, block_labels in zip(features.split(size), labels[:, None].split(size), strict=True):
        block = block.double()
        log_shares = torch.log_softmax(torch.addmm(offset, block, weight), dim=1)
        loss -= log_shares.gather(1, block_labels).sum()
        residuals = log_shares.exp_()
        curvature += (residuals * (1 - residuals)).sum()
        residuals.scatter_(1, block_labels, residuals.gather(1, block_labels) - 1)
        weight_gradient.addmm_(block.T, residuals)
        bias_gradient += residuals.sum(dim=0)
    weight_gradient -= mean[:, None] * bias_gradient
    return loss / n, weight_gradient / n, bias_gradient / n, float(curvature) / (n * len(bias))


def _ranks(probe: Probe, items: _Items) -> Tensor:
    """Rank of the true class of each item (N,), on the CPU; `NOT_FOUND` where it had no training item."""
    # The bias as one more feature: scores are then dot products, and ties those of the retrieval and zero-shot metrics.
    queries = torch.cat([items.features, torch.ones_like(items.features[:, :1])], dim=1)
    candidates = torch.cat([probe.weight, probe.bias[None]]).T[probe.classes]
    known = torch.isin(items.labels, probe.classes)
    ranks = torch.full((len(known),), NOT_FOUND)
    if known.any():
        ranks[known.cpu()] = retrieval_ranks(queries[known], candidates, items.labels[known], probe.classes)
    return ranks


def _summary(ranks: Tensor, labels: Tensor, n_classes: int, bootstrap: int, seed: int) -> dict:
    correct = ranks == 1
    hits, n = int(correct.sum()), len(correct)
    mean, interval = mean_per_class(correct, labels, bootstrap, seed)
    return {
        "accuracy": hits / n,
        "mean_per_class": mean,
        "interval": {"accuracy": wilson_interval(hits, n), "mean_per_class": interval},
        "n": n,
        "n_classes": n_classes,
    }
