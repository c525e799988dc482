import math

import pytest
import torch

from ncu_hf.errors import InputError
from ncu_hf.evaluation.zero_shot import (
    class_texts,
    class_weights,
    evaluate_zero_shot,
    prompt_hash,
    wilson_interval,
    zero_shot_metrics,
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


def test_evaluation_carries_the_hash():
    encoder = LookUp({"x": [1.0, 0.0], "y": [0.0, 1.0]})
    result = evaluate_zero_shot(encoder, torch.eye(2), torch.tensor([0, 1]), ["x", "y"], ["{c}"])
    assert result["accuracy"] == 1.0
    assert result["hash"] == prompt_hash(["x", "y"], ["{c}"])


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [([], ["{c}"], "0 classes"), (["a"], [], "0 templates"), (["a"], ["a photo"], "no field")],
)
def test_unusable_prompts_are_refused(classes, templates, message):
    with pytest.raises(InputError, match=message):
        class_texts(classes, templates)


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, -1, 1], [0, 1], []])
def test_unusable_labels_are_refused(labels):
    with pytest.raises(InputError, match="labels"):
        zero_shot_metrics(torch.eye(3), torch.tensor(labels), torch.eye(3))
