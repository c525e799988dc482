import json
import logging

import numpy
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ncu_hf.errors import InputError
from ncu_hf.evaluation import linear_probe as module
from ncu_hf.evaluation.intervals import mean_per_class, wilson_interval
from ncu_hf.evaluation.linear_probe import fit_probe, linear_probe, split_half
from ncu_hf.evaluation.retrieval import NOT_FOUND


def items(n=90, classes=3, width=6, seed=0, spread=1.0):
    """Overlapping classes; a large common mean and unequal variances, as the features of a CLIP have."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    features = centres[labels] + spread * torch.randn(n, width, generator=generator)
    return (features * torch.logspace(-1.5, 1.0, width) + 7.0), labels


def objective(features, labels, weight, bias, regularisation):
    scores = features.double() @ weight + bias
    return torch.nn.functional.cross_entropy(scores, labels) + regularisation / 2 * (weight**2).sum()


def by_sklearn(features, labels, regularisation):
    """Weights and biases (of the classes that occur) of an independent implementation."""
    two = len(labels.unique()) == 2
    strength = (2 if two else 1) / (regularisation * len(labels))
    # By Newton: its own L-BFGS does not reach the minimum of raw features at weak regularisation.
    model = LogisticRegression(C=strength, solver="newton-cg", tol=1e-8, max_iter=1000)
    model.fit(features.double().numpy(), labels.numpy())
    weight, bias = torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)
    if two:
        weight, bias = torch.cat([-weight, weight], 1) / 2, torch.cat([-bias, bias]) / 2
    return weight, bias - bias.mean()


def quick(train, test, classes=3, **options):
    return linear_probe(*train, *test, classes, **{"bootstrap": 20} | options)


# --- the fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regularisation", [1e-5, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_fit_is_that_of_sklearn(classes, regularisation):
    features, labels = items(120, classes)
    probe = fit_probe(features, labels, classes, regularisation)
    weight, bias = by_sklearn(features, labels, regularisation)
    ours = objective(features, labels, probe.weight, probe.bias, regularisation)
    theirs = objective(features, labels, weight, bias, regularisation)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(probe.weight, weight, atol=2e-3 * float(weight.abs().max()), rtol=0)
    shares = [torch.softmax(features.double() @ w + b, 1) for w, b in ((probe.weight, probe.bias), (weight, bias))]
    torch.testing.assert_close(*shares, atol=1e-3, rtol=0)


def test_the_fit_is_a_minimum_by_autograd():
    features, labels = items()
    probe = fit_probe(features, labels, 3, 1e-3)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    objective(features, labels, weight, bias, 1e-3).backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-5


def test_the_gradient_and_curvature_are_those_of_autograd():
    features, labels = items(25)
    weight = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    bias = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    mean = features.double().mean(0)
    scores = (features.double() - mean) @ weight + bias
    loss = torch.nn.functional.cross_entropy(scores, labels)
    loss.backward()
    found = module._loss(features, labels, mean, weight.detach(), bias.detach())
    shares = scores.softmax(1)
    torch.testing.assert_close(found[:3], (loss.detach(), weight.grad, bias.grad))
    assert found[3] == pytest.approx((shares * (1 - shares)).mean().item())


def test_blocks_do_not_change_the_fit(monkeypatch):
    features, labels = items(50)
    whole = fit_probe(features, labels, 3, 1e-2)
    monkeypatch.setattr(module, "SCORES_AT_A_TIME", 7 * 6)
    parts = fit_probe(features, labels, 3, 1e-2)
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-6, rtol=1e-6)


def test_doubling_every_row_does_not_change_the_fit():
    features, labels = items()
    once = fit_probe(features, labels, 3, 1e-2)
    twice = fit_probe(features.repeat(2, 1), labels.repeat(2), 3, 1e-2)
    torch.testing.assert_close(twice.weight, once.weight, atol=1e-6, rtol=1e-6)


def test_the_bias_is_not_regularised():
    features, labels = items()
    probe = fit_probe(features, labels, 3, 1e6)
    shares = torch.softmax(features.double() @ probe.weight + probe.bias, 1).mean(0)
    torch.testing.assert_close(shares, torch.bincount(labels).double() / len(labels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_fitted_as_they_are(dtype):
    features, labels = items()
    features = features.to(dtype)
    probe, same = (fit_probe(each, labels, 3, 1e-2) for each in (features, features.double()))
    assert probe.weight.dtype == torch.float64
    torch.testing.assert_close(probe.weight, same.weight, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_features_of_any_scale_are_fitted(scale):
    features, labels = items(spread=0.1)
    _, ranks = quick((features * scale, labels), (features * scale, labels))
    assert (ranks >= 1).all() and (ranks <= 3).all()


def test_no_convergence_is_said(monkeypatch, caplog):
    features, labels = items()
    with caplog.at_level(logging.WARNING):
        fit_probe(features, labels, 3, 1e-4)
        assert not caplog.records
        monkeypatch.setattr(module, "MAX_ITERATIONS", 2)
        fit_probe(features, labels, 3, 1e-4)
    assert "no convergence within 2 iterations" in caplog.text


# --- the choice of the regularisation --------------------------------------------------------------------------------


def naive_search(train, validation):
    """The search of CLIP's paper with fits of sklearn: {exponent in eighths of a decade: accuracy}, and the best."""
    curve = {}

    def accuracy(exponent):
        weight, bias = by_sklearn(*train, 10 ** (exponent / 8))
        scores = validation[0].double() @ weight + bias
        return float((scores.argmax(1) == validation[1]).double().mean())

    wanted = list(range(-48, 49, 16))
    for step in (8, 4, 2, 1, 0):
        curve |= {exponent: accuracy(exponent) for exponent in wanted if -48 <= exponent <= 48}
        top = max(curve.values())
        best = max(exponent for exponent, value in curve.items() if value == top)
        wanted = [exponent for exponent in (best - step, best + step) if exponent not in curve]
    return curve, best


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_is_that_of_the_naive_one(seed):
    train, validation, test = (items(n, seed=seed + k, spread=1.5) for k, n in ((0, 40), (10, 60), (20, 50)))
    numbers, ranks = quick(train, test, validation=validation)
    curve, best = naive_search(train, validation)
    found = {point["regularisation"]: point["accuracy"] for point in numbers["validation_curve"]}
    assert found == pytest.approx({10 ** (exponent / 8): value for exponent, value in curve.items()})
    assert numbers["regularisation"] == pytest.approx(10 ** (best / 8))
    # The final fit has training and validation data.
    both = [torch.cat(parts) for parts in zip(train, validation, strict=True)]
    weight, bias = by_sklearn(*both, numbers["regularisation"])
    scores = test[0].double() @ weight + bias
    expected = 1 + (scores > scores.gather(1, test[1][:, None])).sum(1)
    assert ranks.tolist() == expected.tolist()
    assert (numbers["n_train"], numbers["n_validation"], numbers["n"]) == (40, 60, 50)


def test_the_grid_stays_within_its_bounds_and_the_strongest_of_equals_is_chosen():
    features, labels = items(60, spread=0.01)
    numbers, _ = quick((features, labels), (features, labels))
    curve = {point["regularisation"]: point["accuracy"] for point in numbers["validation_curve"]}
    assert min(curve) == pytest.approx(1e-6) and max(curve) == pytest.approx(1e6)
    assert list(curve) == sorted(curve)
    assert sum(value == 1.0 for value in curve.values()) > 3
    assert numbers["regularisation"] == max(value for value in curve if curve[value] == 1.0)


def test_the_test_data_choose_nothing():
    train, test = items(60, spread=2.0), items(40, seed=1, spread=2.0)
    chosen = ("regularisation", "validation_curve", "n_train", "n_validation")
    first, ranks = quick(train, test)
    shuffled, other_ranks = quick(train, (test[0], test[1][torch.randperm(40)]))
    replaced, _ = quick(train, (torch.full_like(test[0], torch.nan), test[1]))
    assert ranks.tolist() != other_ranks.tolist()
    for other in (shuffled, replaced):
        assert [other[key] for key in chosen] == [first[key] for key in chosen]


def test_validation_data_choose():
    # Without this twin the test above would pass for a search that looks at nothing.
    train, test = items(60, spread=2.0), items(40, seed=1, spread=2.0)
    numbers, _ = quick(train, test, validation=items(50, seed=2, spread=2.0))
    swapped, _ = quick(train, test, validation=items(50, seed=3, spread=2.0))
    assert numbers["validation_curve"] != swapped["validation_curve"]


def test_a_fifth_of_every_class_is_held_out():
    labels = torch.tensor([0] * 50 + [1] * 11 + [2] * 2 + [3] + [5] * 4)[torch.randperm(68)]
    mask = module._held_out(labels, 5, seed=0)
    assert torch.bincount(labels[mask], minlength=6).tolist() == [10, 2, 1, 0, 0, 1]
    assert (mask == module._held_out(labels, 5, seed=0)).all()
    assert (mask != module._held_out(labels, 5, seed=1)).any()


def test_what_is_held_out_depends_on_the_seed_alone():
    train, test = items(60, spread=2.0), items(40, seed=1, spread=2.0)
    first, ranks = quick(train, test, seed=4)
    again, same_ranks = quick(train, test, seed=4)
    other, _ = quick(train, test, seed=5)
    assert first == again and (ranks == same_ranks).all()
    assert first["validation_curve"] != other["validation_curve"]


# --- the result ------------------------------------------------------------------------------------------------------


def test_the_numbers_follow_from_the_ranks():
    train, test = items(60, 4), items(45, 4, seed=1)
    numbers, ranks = quick(train, test, 4, seed=2, features="projected", primary="mean_per_class")
    hits = ranks == 1
    by_class = [float(hits[test[1] == label].double().mean()) for label in test[1].unique()]
    assert numbers["accuracy"] == float(hits.double().mean())
    assert numbers["mean_per_class"] == pytest.approx(numpy.mean(by_class))
    expected = {
        "accuracy": wilson_interval(int(hits.sum()), 45),
        "mean_per_class": mean_per_class(hits, test[1], 20, 2)[1],
    }
    assert numbers["interval"] == expected
    assert (numbers["n"], numbers["n_classes"]) == (45, 4)
    assert (numbers["features"], numbers["primary"]) == ("projected", "mean_per_class")
    assert json.loads(json.dumps(numbers)) == numbers
    assert ranks.dtype == torch.int64 and ranks.shape == (45,)


def test_the_primary_metric_changes_no_number():
    train, test = items(), items(seed=1)
    first, second = (quick(train, test, primary=name)[0] for name in ("accuracy", "mean_per_class"))
    assert first | {"primary": None} == second | {"primary": None}


def test_random_features_are_at_chance():
    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(800, 4, generator=generator), torch.arange(800) % 4
    numbers, _ = quick((features[:400], labels[:400]), (features[400:], labels[400:]), 4)
    assert numbers["interval"]["accuracy"][0] < 0.3


def test_the_inputs_are_left_as_they_are():
    train, test = items(), items(seed=1)
    before = [part.clone() for part in (*train, *test)]
    quick(train, test)
    assert all((old == new).all() for old, new in zip(before, (*train, *test), strict=True))


# --- degenerate input ------------------------------------------------------------------------------------------------


def test_constant_features_know_only_the_frequencies():
    features, labels = torch.full((30, 4), 3.1), torch.tensor([0] * 15 + [1] * 10 + [2] * 5)
    numbers, ranks = quick((features, labels), (features, labels))
    assert [ranks[0].item(), ranks[15].item(), ranks[25].item()] == [1, 2, 3]
    assert numbers["accuracy"] == 0.5


def test_a_tie_counts_against_the_model():
    features, labels = torch.zeros(40, 4), torch.arange(40) % 2
    numbers, ranks = quick((features, labels), (features, labels), 2)
    assert numbers["accuracy"] == 0.0 and ranks.unique().tolist() == [2]


def test_a_test_item_that_is_not_finite_counts_against_the_model():
    train, (features, labels) = items(spread=0.01), items(20, seed=1, spread=0.01)
    features[3, 2], features[7, 0] = torch.nan, torch.inf
    numbers, ranks = quick(train, (features, labels))
    assert ranks[[3, 7]].tolist() == [NOT_FOUND, NOT_FOUND]
    assert numbers["accuracy"] == 18 / 20


def test_one_class_alone():
    features, _ = items(20)
    numbers, ranks = quick((features, torch.ones(20).long()), (features[:4], torch.tensor([1, 1, 0, 2])))
    assert ranks.tolist() == [1, 1, NOT_FOUND, NOT_FOUND]
    assert numbers["accuracy"] == 0.5 and numbers["mean_per_class"] == pytest.approx(1 / 3)
    assert numbers["regularisation"] == pytest.approx(1e6)


def test_a_class_without_training_item_is_never_predicted(caplog):
    train, (features, labels) = items(spread=0.01), items(20, seed=1, spread=0.01)
    with caplog.at_level(logging.WARNING):
        _, plain = quick(train, (features, labels), 5)
        assert not caplog.records
        labels[:2] = 4
        numbers, ranks = quick(train, (features, labels), 5)
    assert (plain == 1).all()
    assert ranks[:2].tolist() == [NOT_FOUND, NOT_FOUND] and (ranks[2:] == 1).all()
    assert numbers["n_classes"] == 5
    assert "2 of 20 test items are of classes without a training item" in caplog.text


def test_a_class_with_validation_items_only_is_learned_in_the_end():
    (features, labels), test = items(60, spread=0.01), items(30, seed=1, spread=0.01)
    known = labels < 2
    numbers, ranks = quick((features[known], labels[known]), test, validation=(features[~known], labels[~known]))
    assert {point["accuracy"] for point in numbers["validation_curve"]} == {0.0}
    assert ((ranks == 1) | (test[1] < 3)).all() and (ranks <= 3).all()


def test_fewer_items_than_classes():
    features, labels = torch.eye(4)[[0, 0, 1, 2]], torch.tensor([0, 0, 7, 9])
    numbers, ranks = quick((features, labels), (features, labels), 50)
    assert (numbers["n_train"], numbers["n_validation"], numbers["n_classes"]) == (3, 1, 50)
    assert (ranks <= 3).all()


def test_more_features_than_items():
    features, labels = items(12, width=40, spread=0.01)
    assert quick((features, labels), (features, labels))[0]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"train_features": torch.tensor([[1.0, torch.nan]] * 2 + [[1.0, 2.0]] * 8)}, "2 of 10 .* training .*row 0"),
        ({"validation": (torch.full((2, 2), torch.inf), torch.tensor([0, 1]))}, "2 of 2 .* validation"),
        ({"train_labels": torch.arange(10)}, "none of the classes has two"),
        ({"train_labels": torch.arange(9)}, r"\(10, 2\) features and \(9,\) labels for training"),
        ({"train_labels": torch.full((10,), 10)}, "labels for training run from 10 to 10, not 0 to 9"),
        ({"test_labels": torch.tensor([0, -1])}, "labels for test run from -1 to 0"),
        ({"test_labels": torch.tensor([0.0, 1.0])}, "torch.float32 labels for test"),
        ({"train_features": torch.zeros(10, 2).long()}, "torch.int64 features"),
        ({"test_features": torch.zeros(2, 3)}, "3 features an item for test, 2 for training"),
        ({"test_features": torch.zeros(0, 2), "test_labels": torch.zeros(0).long()}, "at least one item"),
        ({"train_features": torch.zeros(10, 0)}, "at least one item"),
        ({"validation": (torch.zeros(0, 2), torch.zeros(0).long())}, "for validation"),
        ({"validation": (torch.zeros(2, 5), torch.tensor([0, 1]))}, "for validation"),
        ({"features": "pooled"}, "features: unknown value 'pooled'"),
        ({"primary": "acuracy"}, "Did you mean 'accuracy'"),
        ({"bootstrap": 0}, "bootstrap"),
    ],
)
def test_wrong_input_is_named(change, match):
    given = {
        "train_features": torch.zeros(10, 2),
        "train_labels": torch.arange(10) % 2,
        "test_features": torch.zeros(2, 2),
        "test_labels": torch.tensor([0, 1]),
    }
    with pytest.raises(InputError, match=match):
        linear_probe(**given | {"n_classes": 10} | change)


@pytest.mark.parametrize("regularisation", [0.0, -1.0, float("nan")])
def test_a_regularisation_must_be_positive(regularisation):
    with pytest.raises(InputError, match="above 0"):
        fit_probe(*items(), 3, regularisation)


# --- halves ----------------------------------------------------------------------------------------------------------


def test_halves_are_disjoint_complete_and_of_every_class():
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] + [4] * 2)[torch.randperm(20)]
    train, test = split_half(labels)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(20))
    assert train.tolist() == sorted(train.tolist()) and test.tolist() == sorted(test.tolist())
    assert torch.bincount(labels[train], minlength=5).tolist() == [5, 4, 1, 0, 1]
    assert torch.bincount(labels[test], minlength=5).tolist() == [5, 3, 0, 0, 1]


def test_halves_depend_on_the_seed_alone():
    labels = torch.arange(60) % 3
    assert all((a == b).all() for a, b in zip(split_half(labels, 1), split_half(labels, 1), strict=True))
    assert split_half(labels, 1)[0].tolist() != split_half(labels, 2)[0].tolist()


def test_halves_of_nothing_are_empty():
    assert [len(rows) for rows in split_half(torch.zeros(0).long())] == [0, 0]
