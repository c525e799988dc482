"""Two Gaussians on a line, against scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from ncu_hf.mixture import TwoGaussians, fit_two_gaussians

SDD = {"max_iterations": 10, "tolerance": 1e-2, "regularisation": 5e-4}


def two_heaps(n: int = 400, gap: float = 8.0, share: float = 0.3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator, dtype=torch.float64) * 2 + 20
    values[: int(share * n)] = values[: int(share * n)] / 2 + 10 - gap
    return values[torch.randperm(n, generator=generator)]


def two_means(values: torch.Tensor) -> list[torch.Tensor]:
    """The best split of the sorted values in two, by trying all of them."""
    ordered = values.sort().values
    cost = [(ordered[:i].var(correction=0) * i + ordered[i:].var(correction=0) * (len(ordered) - i)).item()
            for i in range(1, len(ordered))]  # fmt: skip
    best = 1 + int(np.argmin(cost))
    return [ordered[:best], ordered[best:]]


def oracle(values: torch.Tensor, max_iterations: int, tolerance: float, regularisation: float) -> GaussianMixture:
    """scikit-learn from the same start."""
    parts = two_means(values)
    mixture = GaussianMixture(
        n_components=2,
        max_iter=max_iterations,
        tol=tolerance,
        reg_covar=regularisation,
        weights_init=[len(part) / len(values) for part in parts],
        means_init=[[part.mean().item()] for part in parts],
        precisions_init=[[[1 / (part.var(correction=0).item() + regularisation)]] for part in parts],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(values[:, None].numpy())


@pytest.mark.parametrize("settings", [SDD, {"max_iterations": 200, "tolerance": 1e-9, "regularisation": 1e-6}])
@pytest.mark.parametrize(
    ("n", "gap", "share"), [(400, 8, 0.3), (401, 3, 0.5), (90, 0, 0.1), (2000, 5, 0.9), (7, 9, 0.4)]
)
def test_every_step_is_that_of_scikit_learn(n, gap, share, settings):
    values = two_heaps(n, gap, share)
    found, expected = fit_two_gaussians(values, **settings), oracle(values, **settings)
    order = expected.means_[:, 0].argsort()
    torch.testing.assert_close(found.means, torch.tensor(expected.means_[order, 0]), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.variances, torch.tensor(expected.covariances_[order, 0, 0]), rtol=1e-8, atol=0)
    torch.testing.assert_close(found.weights, torch.tensor(expected.weights_[order]), rtol=1e-9, atol=1e-15)
    assert (found.iterations, found.converged) == (expected.n_iter_, expected.converged_)
    new = torch.linspace(-30, 60, 37, dtype=torch.float64)
    posterior = torch.tensor(expected.predict_proba(new[:, None].numpy())[:, order])
    torch.testing.assert_close(found.posterior(new), posterior, rtol=1e-7, atol=1e-12)
    assert found.log_likelihood(values) == pytest.approx(expected.score(values[:, None].numpy()), abs=1e-9)


def test_the_defaults_are_those_of_scikit_learn():
    values = two_heaps(gap=14)  # far enough apart for any start by two means
    expected = GaussianMixture(n_components=2, random_state=0).fit(values[:, None].numpy())
    found = fit_two_gaussians(values)
    torch.testing.assert_close(found.means, torch.tensor(np.sort(expected.means_[:, 0])), rtol=1e-9, atol=0)
    assert found.iterations == expected.n_iter_


def test_the_order_of_the_values_does_not_matter_and_their_scale_is_followed():
    values, plain = two_heaps(), fit_two_gaussians(two_heaps(), regularisation=1e-12)
    assert fit_two_gaussians(values, regularisation=1e-12).means.equal(plain.means)
    moved = fit_two_gaussians(values.flip(0) * -3 + 1, regularisation=1e-12)
    torch.testing.assert_close(moved.means, plain.means.flip(0) * -3 + 1)
    torch.testing.assert_close(moved.variances, plain.variances.flip(0) * 9)
    torch.testing.assert_close(moved.weights, plain.weights.flip(0))


def test_components_are_in_the_order_of_their_means():
    for seed in range(5):
        found = fit_two_gaussians(two_heaps(seed=seed, gap=0))
        assert found.means[0] <= found.means[1] and found.weights.sum().item() == pytest.approx(1)


def test_single_precision_is_computed_in_double():
    values = two_heaps().float()
    found = fit_two_gaussians(values)
    assert isinstance(found, TwoGaussians) and found.means.dtype == found.posterior(values).dtype == torch.float64
    assert found.means.equal(fit_two_gaussians(values.double()).means)


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0, 2.0], [1.0, 2.0], [0.0, 0.0, 1e-30], [1e30, -1e30, 0.0]])
def test_degenerate_values_give_finite_numbers(values):
    found = fit_two_gaussians(torch.tensor(values, dtype=torch.float64), **SDD)
    posterior = found.posterior(torch.tensor(values, dtype=torch.float64))
    assert all(x.isfinite().all() for x in (found.means, found.variances, found.weights, posterior))
    torch.testing.assert_close(posterior.sum(dim=1), torch.ones(len(values), dtype=torch.float64))


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [1.0, float("inf")], [[1.0, 2.0]]])
def test_what_is_no_vector_of_numbers_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        fit_two_gaussians(torch.tensor(values))
