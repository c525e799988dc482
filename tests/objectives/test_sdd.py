"""The equations of Self-Drop and Dual-Weight, written out pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture

from ncu_hf.config import MethodArguments
from ncu_hf.losses import contrastive_loss
from ncu_hf.objectives.base import SampleWeights
from ncu_hf.objectives.sdd import SelfDropObjective, confidence_weights, significance_weights

N, D = 7, 5


@pytest.fixture
def leaves():
    generator = torch.Generator().manual_seed(1)
    image, text = (
        F.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=-1).requires_grad_() for _ in "it"
    )
    return image, text, torch.tensor(1.3, dtype=torch.float64, requires_grad=True)


def weights(confidence, significance) -> SampleWeights:
    return SampleWeights(confidence, significance, torch.tensor(0.5))


def test_the_loss_is_the_weighted_mean_over_the_kept_pairs(leaves):
    v, t, s = leaves
    con, sig = torch.rand(2, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outputs = SelfDropObjective(MethodArguments(method="sdd"))(v, t, None, s, weights(con, sig))
    expected = 0
    for i in range(N):
        row = torch.stack([s.exp() * v[i] @ t[j] for j in range(N)])
        column = torch.stack([s.exp() * v[j] @ t[i] for j in range(N)])
        own = -(row.log_softmax(0)[i] + column.log_softmax(0)[i]) / 2
        expected = expected + con[i] * sig[i] * own / N
    torch.testing.assert_close(outputs["contrastive_loss"], expected, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(x, leaves, retain_graph=True) for x in (outputs["contrastive_loss"], expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert outputs["kept_share"] == 0.5 and outputs["confidence_weight"].item() == pytest.approx(con.mean().item())
    assert [key for key in outputs if key.endswith("_loss")] == ["contrastive_loss"]


def test_with_even_weights_it_is_the_loss_of_clip(leaves):
    v, t, s = leaves
    ones = torch.ones(N)
    outputs = SelfDropObjective(MethodArguments())(v, t, None, s, weights(ones, ones))
    torch.testing.assert_close(outputs["contrastive_loss"], contrastive_loss(v, t, s))
    torch.testing.assert_close(outputs["unweighted"], contrastive_loss(v, t, s).detach())


def test_thresholds_are_exclusive_and_what_is_not_known_is_dropped():
    objective = SelfDropObjective(MethodArguments(sdd_clean_threshold=0.5, sdd_drop_threshold=0.25))
    similarity = torch.tensor([0.2, 0.25, 0.26, 0.5, 0.51, torch.nan])
    assert objective.kept(similarity).tolist() == [False, False, True, True, True, False]
    assert objective.clean(similarity).tolist() == [False, False, False, False, True, False]


def test_confidence_is_the_scaled_posterior_of_the_upper_gaussian():
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat([torch.randn(300, generator=generator) * 2 + 28, torch.randn(140, generator=generator) * 3 + 12])
    mixture = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    posterior = mixture.fit(logits[:, None].double().numpy()).predict_proba(logits[:, None].double().numpy())
    expected = torch.tensor(posterior[:, mixture.means_.argmax()])
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    found = confidence_weights(logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert found.min() == 0 and found.max() == 1 and found[:300].mean() > 0.95 > 0.05 > found[300:].mean()


def test_equal_logits_are_trusted_alike():
    assert confidence_weights(torch.full((5,), 21.0)).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([2.0, 2.0], [1.0, 1.0], 1.0),  # both better
        ([1.0, 1.0], [2.0, 2.0], math.tanh(0.5)),
        ([1.0, 1.0], [2.0, 0.5], 1.0),  # r = (1/2 + 2) / 2
        ([1.0, 3.0], [4.0, 3.0], math.tanh((0.25 + 1) / 2)),
        ([1.0, 1.0], [1.0, 1.0], 1.0),  # r = 1 is not below 1
        ([0.0, 0.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [0.1, 0.0], math.tanh(0.5)),
        ([0.1, 1.0], [0.0, 9.0], 1.0),
    ],
)
def test_significance(before, after, expected):
    found = significance_weights(*(torch.tensor(x, dtype=torch.float64)[:, None] for x in (before, after)))
    assert found.shape == (1,) and found.item() == pytest.approx(expected, abs=1e-15)


def test_significance_of_a_batch_is_that_of_each_pair():
    before, after = torch.rand(2, 2, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    found = significance_weights(before, after)
    single = [significance_weights(before[:, [i]], after[:, [i]]).item() for i in range(N)]
    assert found.tolist() == single and len(set(single)) > 2
