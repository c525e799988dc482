"""Statistics of a comparison of methods: against scipy, and against resamples that are counted out."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from scipy import stats

from ncu_hf.evaluation.outcomes import Outcome
from ncu_hf.evaluation.pairwise import RetrievalItems, ZeroShotItems
from ncu_hf.evaluation.retrieval import summarise_ranks


@pytest.fixture
def statistics():
    return importlib.import_module("compare_statistics")


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 60])
def test_quantiles_of_student_are_those_of_scipy(statistics, freedom):
    for level in (0.5, 0.9, 0.95, 0.99):
        expected = stats.t.ppf((1 + level) / 2, freedom)
        assert statistics.t_quantile(freedom, level) == pytest.approx(expected, rel=1e-9)
    for t in (0.0, 0.3, 2.7, 40.0):
        assert statistics.t_within(t, freedom) == pytest.approx(1 - 2 * stats.t.sf(t, freedom), abs=1e-12)


@pytest.mark.parametrize("values", [[0.1, 0.3], [0.02, -0.01, 0.05], [3.0, 1.0, 4.0, 1.0, 5.0]])
def test_the_interval_over_seeds_is_that_of_a_paired_t_test(statistics, values):
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.seeds_interval(values) == pytest.approx([expected.low, expected.high], rel=1e-9)
    assert statistics.spread(values).sd == pytest.approx(np.std(values, ddof=1))


def test_one_seed_has_no_interval(statistics):
    assert statistics.seeds_interval([0.3]) is None
    assert statistics.spread([0.3]) == (0.3, None, 1)
    assert not statistics.excludes_zero(None)
    assert [statistics.excludes_zero(one) for one in ([-1, 1], [0, 1], [0.1, 1], [-2, -1])] == [
        False,
        False,
        True,
        True,
    ]


def test_resamples_draw_as_many_items_as_there_are(statistics):
    counts = statistics.resampled_counts(7, 20_000, seed=3)
    assert counts.shape == (20_000, 7) and (counts.sum(axis=1) == 7).all()
    assert np.array_equal(counts, statistics.resampled_counts(7, 20_000, seed=3))
    assert not np.array_equal(counts, statistics.resampled_counts(7, 20_000, seed=4))
    # Of a multinomial: mean 1, variance 1 - 1/n, covariance -1/n.
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.03)
    expected = np.eye(7) - 1 / 7
    assert np.cov(counts.T) == pytest.approx(expected, abs=0.04)


def zero_shot(correct, images="stamp"):
    ranks = torch.where(torch.tensor(correct), 1, 2)
    return Outcome(ZeroShotItems(ranks, torch.zeros(len(correct), dtype=torch.long)), images)


def test_resampled_accuracy(statistics):
    correct = np.random.default_rng(0).random(200) < 0.7
    drawn = statistics.Resampler(4000).metric(zero_shot(correct.tolist()))
    share = correct.mean()
    assert drawn.mean() == pytest.approx(share, abs=0.003)
    assert drawn.std() == pytest.approx(np.sqrt(share * (1 - share) / 200), rel=0.05)


def test_sets_of_the_same_images_are_drawn_together_and_others_are_not(statistics):
    correct = (np.random.default_rng(1).random(150) < 0.5).tolist()
    resampler = statistics.Resampler(4000)
    first, same = resampler.metric(zero_shot(correct)), resampler.metric(zero_shot(correct))
    other = resampler.metric(zero_shot(correct, "another"))
    assert np.array_equal(first, same)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.06
    assert ((first + other) / 2).std() == pytest.approx(first.std() / np.sqrt(2), rel=0.06)


def test_resampled_recall_is_the_recall_of_the_resampled_groups(statistics):
    generator = torch.Generator().manual_seed(0)
    groups = (torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 2, 3, 3, 3]))  # images, captions
    ranks = tuple(torch.randint(1, 14, (len(part),), generator=generator) for part in groups)
    resampler = statistics.Resampler(50)
    found = resampler.metric(Outcome(RetrievalItems(ranks, groups), "stamp"))
    counts = resampler._draws(4, "groups")
    for row, value in zip(counts.astype(int), found, strict=True):
        drawn = [torch.tensor(row)[part] for part in groups]  # how often each image, each caption comes up
        recalls = [
            ((rank <= cutoff) * times).sum().item() / times.sum().item()
            for rank, times in zip(ranks, drawn, strict=True)
            for cutoff in (1, 5, 10)
        ]
        assert value == pytest.approx(np.mean(recalls), abs=1e-6)
    whole = summarise_ranks(ranks, groups, bootstrap=10)["mean_recall"]
    assert abs(found.mean() - whole) < 0.1


def test_the_interval_over_items_is_a_paired_bootstrap(statistics):
    rng = np.random.default_rng(5)
    a = rng.random(300) < 0.5
    b = np.where(rng.random(300) < 0.8, a, rng.random(300) < 0.7)  # mostly agrees with a
    resampler = statistics.Resampler(4000)
    pair = (resampler.metric(zero_shot(a.tolist())), resampler.metric(zero_shot(b.tolist())))
    found = statistics.items_interval([pair])
    gains = b.astype(float) - a
    expected = stats.bootstrap((gains,), np.mean, n_resamples=4000, method="percentile", random_state=0)
    assert found == pytest.approx(list(expected.confidence_interval), abs=0.006)
    # Far shorter than that of two models on different items.
    unpaired = 2 * 1.96 * np.sqrt(2 * 0.25 / 300)
    assert found[1] - found[0] < 0.8 * unpaired
    # A second seed with the same outcomes changes nothing; with the opposite ones nothing remains.
    assert statistics.items_interval([pair, pair]) == pytest.approx(found)
    assert statistics.items_interval([pair, pair[::-1]]) == pytest.approx([0, 0])
