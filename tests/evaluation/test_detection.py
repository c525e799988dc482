import itertools
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from ncu_hf.errors import InputError
from ncu_hf.evaluation.detection import auroc, batched_confidence, forget_set_metrics


def units(rows, width, seed):
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_confidence(images, texts, scale, row, batch, formulation):
    """Oracle: softmax with Python numbers over the pairs of one batch."""

    def share(own, others):
        return math.exp(scale * own) / sum(math.exp(scale * other) for other in others)

    own = float(images[row] @ texts[row])
    over_texts = share(own, [float(images[row] @ texts[other]) for other in batch])
    over_images = share(own, [float(images[other] @ texts[row]) for other in batch])
    return over_texts if formulation == "released" else (over_texts + over_images) / 2


@pytest.mark.parametrize("formulation", ["released", "paper"])
def test_confidence_in_one_batch(formulation):
    images, texts = units(6, 4, 0), units(6, 4, 1)
    confidence = batched_confidence(images, texts, 5.0, batch_size=100, formulation=formulation)
    expected = [naive_confidence(images, texts, 5.0, row, range(6), formulation) for row in range(6)]
    torch.testing.assert_close(confidence, torch.tensor(expected))


@pytest.mark.parametrize("formulation", ["released", "paper"])
def test_every_confidence_comes_from_some_batch_of_full_size(formulation):
    images, texts = units(7, 4, 2), units(7, 4, 3)
    confidence = batched_confidence(images, texts, 5.0, batch_size=3, seed=1, formulation=formulation)
    for row in range(7):
        others = [other for other in range(7) if other != row]
        possible = [
            naive_confidence(images, texts, 5.0, row, [row, *pair], formulation)
            for pair in itertools.combinations(others, 2)
        ]
        assert min(abs(float(confidence[row]) - value) for value in possible) < 1e-6


def test_pairs_that_fill_the_last_batch_keep_their_own_confidence():
    images, texts = units(7, 4, 2), units(7, 4, 3)
    confidence = batched_confidence(images, texts, 5.0, batch_size=3, seed=1)
    first = torch.randperm(7, generator=torch.Generator().manual_seed(1))[:3].tolist()
    expected = [naive_confidence(images, texts, 5.0, row, first, "released") for row in first]
    torch.testing.assert_close(confidence[first], torch.tensor(expected))


def test_batches_depend_on_the_seed_alone():
    images, texts = units(20, 4, 2), units(20, 4, 3)
    first, same, other = (batched_confidence(images, texts, 5.0, batch_size=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_hand_computed_forget_set():
    confidence = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.6, 0.5, 0.4, 1.0])
    mismatched = torch.zeros(10, dtype=torch.bool)
    mismatched[[0, 2, 5]] = True
    result = forget_set_metrics(confidence, mismatched, 0.4)
    assert (result["k"], result["n"], result["n_mismatched"]) == (4, 10, 3)
    assert result["precision"] == 2 / 4
    assert result["recall"] == 2 / 3
    # Of 21 (mismatched, clean) comparisons pair 5 loses against 0.3, 0.6, 0.5, 0.4: 17 are in the right order.
    assert result["auroc"] == pytest.approx(17 / 21)


def test_ties_at_the_border_count_in_proportion():
    mismatched = torch.tensor([True, True, False, False, False])
    result = forget_set_metrics(torch.tensor([0.1, 0.5, 0.5, 0.5, 0.5]), mismatched, 0.4)
    assert result["precision"] == pytest.approx((1 + 1 / 4) / 2)
    everything_equal = forget_set_metrics(torch.full((5,), 0.3), mismatched, 0.4)
    assert everything_equal["precision"] == pytest.approx(2 / 5)
    assert everything_equal["auroc"] == 0.5


def test_nan_counts_against_the_detector():
    mismatched = torch.tensor([True, True, False, False])
    assert forget_set_metrics(torch.full((4,), torch.nan), mismatched, 0.5)["auroc"] == 0
    result = forget_set_metrics(torch.tensor([0.1, torch.nan, 0.8, 0.9]), mismatched, 0.5)
    assert (result["precision"], result["recall"]) == (0.5, 0.5)


def test_nothing_forgotten_has_no_precision():
    result = forget_set_metrics(torch.rand(4), torch.tensor([True, False, False, False]), 0.2)
    assert (result["k"], result["precision"], result["recall"]) == (0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_auroc_with_ties_agrees_with_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (60,), generator=generator).double()
    positive = torch.rand(60, generator=generator) < 0.3
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()))


def test_shuffled_captions_are_found():
    images = units(200, 32, 0)
    texts = images.clone()
    texts[:40] = texts[:40].roll(1, dims=0)
    mismatched = torch.arange(200) < 40

    def found(texts):
        return forget_set_metrics(batched_confidence(images, texts, 20.0, batch_size=64), mismatched, 0.2)

    assert found(texts)["precision"] == 1.0
    unrelated = found(units(200, 32, 9))
    assert unrelated["auroc"] == pytest.approx(0.5, abs=0.12)


def test_unusable_input_is_refused():
    with pytest.raises(InputError, match="0 of 3"):
        forget_set_metrics(torch.rand(3), torch.zeros(3), 0.1)
    with pytest.raises(InputError, match="3 of 3"):
        forget_set_metrics(torch.rand(3), torch.ones(3), 0.1)
    with pytest.raises(InputError, match="4 marks"):
        forget_set_metrics(torch.rand(3), torch.ones(4), 0.1)
    with pytest.raises(InputError, match="forget_ratio"):
        forget_set_metrics(torch.rand(2), torch.tensor([True, False]), 1.0)
    with pytest.raises(InputError, match="at least 2"):
        batched_confidence(units(3, 2, 0), units(3, 2, 0), 1.0, batch_size=1)
    with pytest.raises(InputError, match="alike"):
        batched_confidence(units(3, 2, 0), units(4, 2, 0), 1.0, batch_size=2)
