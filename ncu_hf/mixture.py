"""A mixture of two Gaussians on a line, fitted by expectation maximisation (Dempster, Laird and Rubin 1977)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TwoGaussians:
    """p(x) = Σ_k w_k N(x; μ_k, σ_k²), components in the order of their means.

    Attributes:
        means (`Tensor`): (2,) float64, μ_0 <= μ_1.
        variances (`Tensor`): (2,) float64, σ².
        weights (`Tensor`): (2,) float64, w; they sum to 1.
        iterations (`int`): Steps of the expectation maximisation.
        converged (`bool`): Whether the last one gained less than the tolerance.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor
    iterations: int = 0
    converged: bool = False

    def posterior(self, values: Tensor) -> Tensor:
        """P(component | value), (n,) -> (n, 2) float64; rows sum to 1."""
        return self._log_joint(values).softmax(dim=1)

    def log_likelihood(self, values: Tensor) -> float:
        """Mean over the values (n,) of log p(x)."""
        return self._log_joint(values).logsumexp(dim=1).mean().item()

    def _log_joint(self, values: Tensor) -> Tensor:
        """log w_k N(x_i; μ_k, σ_k²), (n, 2)."""
        distance = (values.to(self.means)[:, None] - self.means).square() / self.variances
        return self.weights.log() - (distance + self.variances.log() + math.log(2 * math.pi)) / 2


@torch.no_grad()
def fit_two_gaussians(
    values: Tensor, *, max_iterations: int = 100, tolerance: float = 1e-3, regularisation: float = 1e-6
) -> TwoGaussians:
    """Fit the mixture, from a start that depends on the values alone.

    The start is the best split of the values by two means. From there every step and the stop rule are those of
    `sklearn.mixture.GaussianMixture`, whose defaults are those of the arguments.

    Args:
        values (`Tensor`): (n,) finite numbers, at least one. Where all are equal, so are both components.
        max_iterations (`int`): Steps at most.
        tolerance (`float`): Stop when a step gains less mean log-likelihood.
        regularisation (`float`): Added to each variance; above 0, so that none vanishes.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    values = values.detach().to(torch.float64)
    if values.ndim != 1 or not len(values) or not values.isfinite().all():
        raise ValueError("A mixture is fitted to a vector of at least one value, all of them finite.")
    mixture = _maximise(values, _split(values), regularisation)
    bound, converged, iteration = -math.inf, False, 0
    while iteration < max_iterations and not converged:
        iteration += 1
        found = mixture.log_likelihood(values)
        mixture = _maximise(values, mixture.posterior(values), regularisation)
        bound, converged = found, abs(found - bound) < tolerance
    order = mixture.means.argsort(stable=True)
    return TwoGaussians(mixture.means[order], mixture.variances[order], mixture.weights[order], iteration, converged)


def _maximise(values: Tensor, responsibility: Tensor, regularisation: float) -> TwoGaussians:
    """Weighted moments of the values (n,) under the responsibilities (n, 2)."""
    count = responsibility.sum(dim=0) + 10 * torch.finfo(torch.float64).eps
    means = responsibility.T @ values / count
    variances = (responsibility * (values[:, None] - means).square()).sum(dim=0) / count + regularisation
    return TwoGaussians(means, variances, count / count.sum())


def _split(values: Tensor) -> Tensor:
    """Responsibilities (n, 2), each 0 or 1, of the best two means; halves where all values are equal.

    On a line the least sum of squares has its clusters left and right of a point, and all points can be tried.
    """
    ordered = values.sort().values
    if ordered[0] == ordered[-1]:
        return torch.full((len(values), 2), 0.5, dtype=values.dtype, device=values.device)
    n = len(ordered)
    left = torch.arange(1, n, dtype=values.dtype, device=values.device)  # number of values left of each point
    sums = (ordered - ordered.mean()).cumsum(dim=0)[:-1]  # of those; the others have the negative sum
    gain = sums.square() / left + sums.square() / (n - left)
    point = torch.where(ordered[1:] > ordered[:-1], gain, -1).argmax()
    upper = values > ordered[point]
    return torch.stack([~upper, upper], dim=1).to(values.dtype)
