import math
from collections import Counter

import numpy
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from ncu_hf.errors import InputError
from ncu_hf.evaluation.intervals import wilson_interval
from ncu_hf.evaluation.retrieval import NOT_FOUND
from ncu_hf.evaluation.zero_shot import (
    NO_CLASS,
    class_table,
    class_texts,
    class_weights,
    confusion_pairs,
    predicted_classes,
    prompt_hash,
    summarise_zero_shot,
    zero_shot_metrics,
    zero_shot_ranks,
)


class LookUp:
    """An encoder that knows a vector for each text."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode_texts(self, texts):
        return torch.nn.functional.normalize(torch.tensor([self.vectors[text] for text in texts]), dim=-1)


def test_every_template_of_every_class():
    assert class_texts(["cat", "{0}"], ["a {c}", "{c}, {c} {d}"]) == ["a cat", "cat, cat {d}", "a {0}", "{0}, {0} {d}"]


def test_weights_are_means_of_unit_vectors():
    encoder = LookUp({"a x": [10.0, 0.0], "the x": [0.0, 0.1], "a y": [0.0, -3.0], "the y": [0.0, -1.0]})
    weights = class_weights(encoder, ["x", "y"], ["a {c}", "the {c}"])
    root = math.sqrt(0.5)
    torch.testing.assert_close(weights, torch.tensor([[root, root], [0.0, -1.0]]))


def test_hand_computed_metrics():
    # Class 0: three images, two right; class 1: one image, right; class 2 does not occur.
    images = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    result = zero_shot_metrics(images, torch.tensor([0, 0, 0, 1]), torch.eye(3))
    assert result["accuracy"] == 0.75
    assert result["mean_per_class"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["top5"] == 1.0
    assert (result["n"], result["n_classes"]) == (4, 3)
    assert result["interval"]["accuracy"] == wilson_interval(3, 4)
    low, high = result["interval"]["mean_per_class"]
    assert low < result["mean_per_class"] < high


def test_classes_that_do_not_occur_are_left_out_of_the_mean():
    images = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    assert zero_shot_metrics(images, torch.tensor([0, 2]), torch.eye(4))["mean_per_class"] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_against_a_naive_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    images, weights = torch.randn(50, 6, generator=generator), torch.randn(9, 6, generator=generator)
    labels = torch.randint(0, 9, (50,), generator=generator)
    top1 = top5 = 0
    per_class = {}
    for image, label in zip(images, labels.tolist(), strict=True):
        order = (weights @ image).argsort(descending=True).tolist()
        top1 += order[0] == label
        top5 += label in order[:5]
        per_class.setdefault(label, []).append(order[0] == label)
    result = zero_shot_metrics(images, labels, weights)
    assert result["accuracy"] == top1 / 50
    assert result["top5"] == top5 / 50
    mean = sum(sum(hits) / len(hits) for hits in per_class.values()) / len(per_class)
    assert result["mean_per_class"] == pytest.approx(mean)


def test_equal_and_nan_embeddings_are_never_right():
    labels = torch.arange(8)
    assert zero_shot_metrics(torch.ones(8, 3), labels, torch.ones(8, 3))["accuracy"] == 0
    assert zero_shot_metrics(torch.ones(8, 3), labels, torch.ones(8, 3))["top5"] == 0
    assert zero_shot_metrics(torch.full((8, 8), torch.nan), labels, torch.eye(8))["top5"] == 0
    assert zero_shot_metrics(torch.eye(8), labels, torch.eye(8))["accuracy"] == 1


@pytest.mark.parametrize(
    # Values from R: prop.test(hits, n, correct=FALSE)$conf.int
    ("hits", "n", "expected"),
    [(0, 10, (0.0, 0.2775328)), (10, 10, (0.7224672, 1.0)), (15, 20, (0.5312987, 0.8881383))],
)
def test_wilson_interval(hits, n, expected):
    assert wilson_interval(hits, n) == pytest.approx(expected, abs=1e-5)


def test_wilson_bounds_solve_its_equation():
    # The bounds are where the score test is exactly at the limit: |p - share| = z sqrt(p (1 - p) / n).
    for hits, n in [(3, 17), (160, 1000), (1, 2)]:
        for bound in wilson_interval(hits, n):
            assert abs(bound - hits / n) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), rel=1e-5)


def test_hash_depends_on_names_templates_and_their_order():
    reference = prompt_hash(["a", "b"], ["{c}"])
    assert reference == prompt_hash(["a", "b"], ["{c}"])
    others = [prompt_hash(["b", "a"], ["{c}"]), prompt_hash(["a", "b"], ["a {c}"]), prompt_hash(["a"], ["b", "{c}"])]
    assert len({reference, *others}) == 4


def integers(rows, width, seed, highest=2):
    return torch.randint(-highest, highest + 1, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def naive_outcome(image, label, weights):
    """Oracle: rank and predicted class of one image, Python numbers, integer vectors (so that scores are exact)."""
    scores = [sum(a * b for a, b in zip(image.tolist(), weight, strict=True)) for weight in weights.tolist()]
    others = [(score, index) for index, score in enumerate(scores) if index != label]
    rank = 1 + sum(score >= scores[label] for score, _ in others)
    best = max(score for score, _ in others)
    return rank, label if rank == 1 else min(index for score, index in others if score == best)


@pytest.mark.parametrize("seed", range(4))
def test_ranks_and_predictions_with_ties(seed):
    images, weights = integers(80, 3, seed), integers(9, 3, seed + 20)
    labels = torch.randint(0, 9, (80,), generator=torch.Generator().manual_seed(seed))
    expected = [naive_outcome(image, label, weights) for image, label in zip(images, labels.tolist(), strict=True)]
    assert zero_shot_ranks(images, labels, weights).tolist() == [rank for rank, _ in expected]
    assert predicted_classes(images, labels, weights).tolist() == [predicted for _, predicted in expected]
    names = [f"class {index}" for index in range(9)]
    counted = Counter((label, other) for label, (_, other) in zip(labels.tolist(), expected, strict=True))
    pairs = sorted((-n, true, other) for (true, other), n in counted.items() if true != other)
    found = confusion_pairs(images, labels, weights, names)
    assert found == [{"true": names[i], "predicted": names[j], "n": -n} for n, i, j in pairs[:20]]
    assert len(pairs) > 20
    assert confusion_pairs(images, labels, weights, names, limit=3) == found[:3]


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    images, weights = torch.randn(300, 16, generator=generator), torch.randn(12, 16, generator=generator)
    labels = torch.cat([torch.arange(12), torch.randint(0, 12, (288,), generator=generator)])
    images = images + weights[labels] / 4
    scores = (images.double() @ weights.double().T).numpy()
    result = zero_shot_metrics(images, labels, weights)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(axis=1)))
    assert result["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))
    assert result["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert predicted_classes(images, labels, weights).tolist() == scores.argmax(axis=1).tolist()


def test_order_of_images_and_of_classes_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(90, 8, generator=generator), torch.randn(7, 8, generator=generator)
    labels = torch.randint(0, 7, (90,), generator=generator)
    expected = zero_shot_metrics(images, labels, weights)
    rows, classes = torch.randperm(90, generator=generator), torch.randperm(7, generator=generator)
    assert zero_shot_metrics(images[rows], labels[rows], weights) == expected
    renamed = zero_shot_metrics(images, classes.argsort()[labels], weights[classes])
    assert {**renamed, "interval": None} == pytest.approx({**expected, "interval": None})


@pytest.mark.parametrize("label_type", [torch.int32, torch.uint8, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision(dtype, label_type):
    images, weights, labels = integers(40, 3, 5), integers(6, 3, 6), torch.arange(40) % 6
    expected = zero_shot_metrics(images, labels, weights)
    assert zero_shot_metrics(images.to(dtype), labels.to(label_type), weights) == expected
    names = list("abcdef")
    assert confusion_pairs(images.to(dtype), labels.to(label_type), weights, names) == confusion_pairs(
        images, labels, weights.to(dtype), names
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_vectors_that_are_not_finite(bad):
    images, weights, labels = torch.eye(4), torch.eye(4), torch.arange(4)
    images[0, 0] = bad
    # Nothing is predicted for the image, so that it is a miss of its class but no confusion.
    assert zero_shot_ranks(images, labels, weights).tolist() == [NOT_FOUND, 1, 1, 1]
    assert predicted_classes(images, labels, weights).tolist() == [NO_CLASS, 1, 2, 3]
    assert confusion_pairs(images, labels, weights, list("abcd")) == []
    # A class of such a vector is best for all images, but never found.
    weights[2, 3] = bad
    assert zero_shot_ranks(images, labels, weights).tolist() == [NOT_FOUND, 2, NOT_FOUND, 2]
    assert predicted_classes(images, labels, weights).tolist() == [NO_CLASS, 2, 0, 2]
    assert confusion_pairs(images, labels, weights, list("abcd")) == [
        {"true": "b", "predicted": "c", "n": 1},
        {"true": "c", "predicted": "a", "n": 1},
        {"true": "d", "predicted": "c", "n": 1},
    ]


@pytest.mark.parametrize("width", [1, 7, 513])
def test_one_point_for_everything_predicts_the_first_other_class(width):
    # Values whose products round: which class is first must not depend on where it lies in a block.
    point = torch.nn.functional.normalize(torch.rand(1, width, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(37) % 11
    predicted = predicted_classes(point.repeat(37, 1), labels, point.repeat(11, 1))
    assert predicted.tolist() == [1 if label == 0 else 0 for label in labels.tolist()]
    assert zero_shot_metrics(point.repeat(37, 1), labels, point.repeat(11, 1))["accuracy"] == 0


def test_zeros_are_never_right():
    labels = torch.arange(6)
    assert zero_shot_metrics(torch.zeros(6, 6), labels, torch.eye(6))["top5"] == 0
    assert zero_shot_metrics(torch.eye(6), labels, torch.zeros(6, 6))["top5"] == 0


def test_one_image_and_one_class():
    single = zero_shot_metrics(torch.eye(3)[:1], torch.tensor([1]), torch.eye(3))
    assert (single["accuracy"], single["mean_per_class"], single["n"]) == (0, 0, 1)
    assert single["interval"]["mean_per_class"] == [0, 0]
    only = zero_shot_metrics(torch.eye(3), torch.zeros(3, dtype=torch.long), torch.eye(3)[:1])
    assert (only["accuracy"], only["n_classes"]) == (1, 1)  # there is no other class to lose against
    lost = torch.full((1, 3), math.nan)
    assert zero_shot_metrics(lost, torch.tensor([0]), torch.eye(3)[:1])["accuracy"] == 0
    assert predicted_classes(lost, torch.tensor([0]), torch.eye(3)[:1]).tolist() == [NO_CLASS]
    assert predicted_classes(torch.eye(3)[:1], torch.tensor([0]), lost).tolist() == [NO_CLASS]


def test_table_of_classes_that_occur():
    ranks, labels = torch.tensor([1, 2, 1, NOT_FOUND]), torch.tensor([3, 3, 0, 1], dtype=torch.int32)
    assert class_table(ranks, labels, ["a", "b", "c", "a"]) == [
        {"class": "a", "n": 1, "accuracy": 1.0},
        {"class": "b", "n": 1, "accuracy": 0.0},
        {"class": "a", "n": 2, "accuracy": 0.5},
    ]


def test_primary_metric_is_named():
    ranks, labels = torch.tensor([1, 2]), torch.tensor([0, 1])
    assert summarise_zero_shot(ranks, labels, 2)["primary"] == "accuracy"
    assert summarise_zero_shot(ranks, labels, 2, primary="mean_per_class")["primary"] == "mean_per_class"
    with pytest.raises(InputError, match="Did you mean 'mean_per_class'"):
        zero_shot_metrics(torch.eye(2), labels, torch.eye(2), primary="mean_class")


def test_interval_of_the_mean_per_class_agrees_with_drawing_one_image_after_another():
    generator = numpy.random.default_rng(0)
    labels = numpy.repeat([0, 1, 2, 4], [10, 40, 25, 5])
    correct = generator.random(80) < 0.6
    ranks = torch.tensor(numpy.where(correct, 1, 2))
    low, high = summarise_zero_shot(ranks, torch.tensor(labels), 5, bootstrap=5000)["interval"]["mean_per_class"]
    draws = [
        numpy.mean(
            [generator.choice(correct[labels == index], (labels == index).sum()).mean() for index in set(labels)]
        )
        for _ in range(3000)
    ]
    assert [low, high] == pytest.approx(numpy.quantile(draws, [0.025, 0.975]).tolist(), abs=0.02)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [([], ["{c}"], "0 classes"), (["a"], [], "0 templates"), (["a"], ["a photo"], "no field")],
)
def test_unusable_prompts_are_refused(classes, templates, message):
    with pytest.raises(InputError, match=message):
        class_texts(classes, templates)


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, -1, 1], [0, 1], [], [[0, 1, 2]], [0.0, 1.0, 2.0]])
def test_unusable_labels_are_refused(labels):
    with pytest.raises(InputError, match="labels"):
        zero_shot_metrics(torch.eye(3), torch.tensor(labels), torch.eye(3))


@pytest.mark.parametrize("weights", [torch.ones(3, 2), torch.ones(0, 3), torch.ones(3)])
def test_unusable_class_vectors_are_refused(weights):
    for call in (zero_shot_metrics, predicted_classes):
        with pytest.raises(InputError, match=r"^Zero-shot: image and class vectors must be"):
            call(torch.eye(3), torch.tensor([0, 0, 0]), weights)
