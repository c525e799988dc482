import doctest
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import pytest
import torch
from evaluate.loading import get_imports, import_main_class

from ncu_hf.errors import InputError
from ncu_hf.evaluation import metrics
from ncu_hf.evaluation.detection import forget_set_metrics
from ncu_hf.evaluation.linear_probe import linear_probe
from ncu_hf.evaluation.metrics import ForgetSet, LinearProbeAccuracy, RetrievalRecall, ZeroShotAccuracy
from ncu_hf.evaluation.retrieval import evaluate_retrieval
from ncu_hf.evaluation.zero_shot import zero_shot_metrics

METRICS = {
    "retrieval_recall": RetrievalRecall,
    "zero_shot_accuracy": ZeroShotAccuracy,
    "linear_probe_accuracy": LinearProbeAccuracy,
    "forget_set": ForgetSet,
}


def pairs(images=12, per_image=3):
    generator = torch.Generator().manual_seed(0)
    image_embeds = torch.randn(images, 4, generator=generator)
    caption_image = torch.arange(images).repeat_interleave(per_image)
    noise = torch.randn(images * per_image, 4, generator=generator)
    return image_embeds, image_embeds[caption_image] + noise, caption_image


def add(metric, image_embeds, text_embeds, image_groups, caption_groups):
    metric.add_batch(
        predictions=torch.cat([image_embeds, text_embeds]).numpy(),
        references=torch.cat([image_groups, caption_groups]).numpy(),
        modality=["image"] * len(image_embeds) + ["text"] * len(text_embeds),
    )


def probe_items(n=60):
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(n) % 3
    features = torch.randn(n, 4, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 4)
    return features, labels, ["train"] * (n - 20) + ["validation"] * 8 + ["test"] * 12


def plain(value):
    """Whether a value holds nothing but Python's own floats, ints and strings."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    return all(map(plain, value)) if type(value) is list else type(value) in (float, int, str)


def test_recall_equals_the_function():
    images, texts, caption_image = pairs()
    metric = RetrievalRecall()
    add(metric, images, texts, torch.arange(12), caption_image)
    result = metric.compute(seed=4, bootstrap=50)
    assert result == evaluate_retrieval(images, texts, caption_image=caption_image, seed=4, bootstrap=50)


def test_recall_does_not_depend_on_the_order_of_batches():
    images, texts, caption_image = pairs()
    metric = RetrievalRecall()
    add(metric, images[6:], texts[:5], torch.arange(6, 12), caption_image[:5])
    add(metric, images[:6], texts[5:], torch.arange(6), caption_image[5:])
    assert metric.compute() == evaluate_retrieval(images, texts, caption_image=caption_image)


def test_a_metric_can_be_used_again():
    images, texts, caption_image = pairs()
    metric = RetrievalRecall()
    for _ in range(2):
        add(metric, images, texts, torch.arange(12), caption_image)
        assert metric.compute()["n_captions"] == 36


def test_accuracy_equals_the_function():
    images, weights = pairs()[0], torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(12) % 3
    result = ZeroShotAccuracy().compute(predictions=images.numpy(), references=labels, class_weights=weights.numpy())
    assert result == zero_shot_metrics(images, labels, weights)


def test_two_processes_give_the_result_of_one(tmp_path):
    images, texts, caption_image = pairs()
    shared = {"num_process": 2, "cache_dir": str(tmp_path), "experiment_id": "run"}
    rows = [(slice(0, 5), slice(0, 20)), (slice(5, 12), slice(20, 36))]

    def process(rank):
        # Threads stand for processes: the two meet at the first batch and again at the end.
        metric = RetrievalRecall(process_id=rank, timeout=30, **shared)
        mine, captions = rows[rank]
        add(metric, images[mine], texts[captions], torch.arange(12)[mine], caption_image[captions])
        return metric.compute()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, range(2))
    assert first == evaluate_retrieval(images, texts, caption_image=caption_image)
    assert second is None


def test_several_processes_need_a_shared_place_of_their_own(tmp_path):
    with pytest.raises(InputError, match="experiment_id"):
        RetrievalRecall(num_process=2, process_id=0, cache_dir=str(tmp_path))
    with pytest.raises(InputError, match="cache_dir"):
        ZeroShotAccuracy(num_process=2, process_id=0, experiment_id="run")


def test_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images, texts, caption_image = pairs()
    metric = RetrievalRecall()
    assert Path(metric.data_dir).is_relative_to(tmp_path)
    add(metric, images, texts, torch.arange(12), caption_image)
    metric.compute()
    assert not os.listdir(tmp_path)


def test_unknown_modality_is_refused():
    with pytest.raises(InputError, match="not 'video'"):
        RetrievalRecall().compute(predictions=[[1.0], [1.0]], references=[0, 0], modality=["image", "video"])


def test_linear_probe_equals_the_function():
    features, labels, split = probe_items()
    metric = LinearProbeAccuracy()
    metric.add_batch(predictions=features.numpy(), references=labels.numpy(), split=split)
    train, validation, test = slice(0, 40), slice(40, 48), slice(48, 60)
    parts = features[train], labels[train], features[test], labels[test]
    expected, _ = linear_probe(*parts, 5, validation=(features[validation], labels[validation]), seed=3, bootstrap=20)
    assert metric.compute(n_classes=5, seed=3, bootstrap=20) == expected


def test_linear_probe_without_validation_items_holds_some_out():
    features, labels, _ = probe_items()
    split = ["train"] * 48 + ["test"] * 12
    result = LinearProbeAccuracy().compute(predictions=features, references=labels, split=split)
    assert result == linear_probe(features[:48], labels[:48], features[48:], labels[48:], 3)[0]
    assert (result["n_train"], result["n_validation"], result["n"], result["n_classes"]) == (39, 9, 12, 3)


def test_forget_set_equals_the_function():
    confidence, wrong = torch.rand(50, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 4 == 0
    metric = ForgetSet()
    for value, mark in zip(confidence.tolist(), wrong.tolist(), strict=True):
        metric.add(prediction=value, reference=mark)
    assert metric.compute(forget_ratio=0.3) == forget_set_metrics(confidence, wrong, 0.3)


def test_items_can_be_added_one_by_one():
    images, texts, caption_image = pairs()
    metric = RetrievalRecall()
    for embed, group in zip(images, range(12), strict=True):
        metric.add(prediction=embed.numpy(), reference=group, modality="image")
    for embed, group in zip(texts.tolist(), caption_image.tolist(), strict=True):
        metric.add(prediction=embed, reference=group, modality="text")
    assert metric.compute() == evaluate_retrieval(images, texts, caption_image=caption_image)


def test_metrics_can_be_combined():
    features, labels, split = probe_items()
    kinds = ["image", "text"] * 30
    together = evaluate.combine([RetrievalRecall(), LinearProbeAccuracy()])
    together.add_batch(predictions=features, references=labels, modality=kinds, split=split)
    result = together.compute(bootstrap=20)
    alone = LinearProbeAccuracy().compute(predictions=features, references=labels, split=split, bootstrap=20)
    assert result["accuracy"] == alone["accuracy"]
    assert result["linear_probe_accuracy_interval"] == alone["interval"]
    expected = evaluate_retrieval(
        features[::2], features[1::2], image_groups=labels[::2], caption_groups=labels[1::2], bootstrap=20
    )
    assert result["text_to_image"] == expected["text_to_image"]


def test_a_metric_with_options_of_its_own_is_combined_with_its_like():
    images, weights = pairs()[0], torch.eye(4)
    together = evaluate.combine({"first": ZeroShotAccuracy(), "second": ZeroShotAccuracy()})
    result = together.compute(predictions=images, references=torch.arange(12) % 4, class_weights=weights)
    expected = zero_shot_metrics(images, torch.arange(12) % 4, weights)
    assert (result["first_accuracy"], result["second_top5"]) == (expected["accuracy"], expected["top5"])


@pytest.mark.parametrize("name", METRICS)
def test_what_a_metric_says_of_itself(name):
    metric = METRICS[name]()
    assert metric.name == name
    assert metric.description.strip() and metric.citation.startswith("@") and metric.citation.endswith("}")
    assert metric.reference_urls and all(url.startswith("https://") for url in metric.reference_urls)
    assert all(f"{column} (" in metric.inputs_description for column in metric.features)
    assert metric.inputs_description in metric.compute.__doc__
    assert metric.description in type(metric).__doc__


@pytest.mark.parametrize("name", METRICS)
def test_the_printed_example_runs_as_printed(name):
    text = METRICS[name]().inputs_description
    examples = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert len(examples.examples) >= 4
    failed, _ = doctest.DocTestRunner(verbose=False).run(examples)
    assert not failed


@pytest.mark.parametrize("name", METRICS)
def test_the_library_finds_the_metric_of_each_file(name):
    # It takes the first subclass among the module's names: a base class imported by its name would win.
    assert import_main_class(f"ncu_hf.evaluation.metrics.{name}") is METRICS[name]


@pytest.mark.parametrize("name", METRICS)
def test_the_library_sees_what_each_file_needs(name):
    # It reads the imports line by line and names to the user those that are not installed; it fetches relative ones.
    needed = get_imports(str(Path(metrics.__file__).with_name(f"{name}.py")))
    assert {kind for kind, *_ in needed} == {"library"}
    assert {package for _, package, *_ in needed} == {"__future__", "datasets", "evaluate", "torch", "ncu_hf"}


def test_values_are_plain():
    images, texts, caption_image = pairs()
    recall = RetrievalRecall()
    add(recall, images, texts, torch.arange(12), caption_image)
    features, labels, split = probe_items()
    results = [
        recall.compute(),
        ZeroShotAccuracy().compute(predictions=images, references=torch.arange(12) % 4, class_weights=torch.eye(4)),
        LinearProbeAccuracy().compute(predictions=features, references=labels, split=split),
        ForgetSet().compute(predictions=[0.1, 0.9], references=[True, False], forget_ratio=0.5),
    ]
    assert all(map(plain, results))
    assert json.loads(json.dumps(results)) == results


@pytest.mark.parametrize(
    ("metric", "inputs", "match"),
    [
        (RetrievalRecall, {"predictions": [[1.0], [1.0, 2.0]], "modality": ["image", "text"]}, "of 1 or 2 values"),
        (RetrievalRecall, {"predictions": [[], []], "modality": ["image", "text"]}, "of 0 values"),
        (RetrievalRecall, {"predictions": [[1.0], [1.0]], "modality": ["image", "txt"]}, "Did you mean 'text'"),
        (RetrievalRecall, {"predictions": [[1.0], [1.0]], "modality": ["image"] * 2}, "0 candidates"),
        (RetrievalRecall, {"predictions": [], "references": [], "modality": []}, "0 vectors of no values"),
        (ZeroShotAccuracy, {"predictions": [[1.0], [1.0]], "class_weights": [[1.0]]}, "labels run from 0 to 1"),
        (
            ZeroShotAccuracy,
            {"predictions": [[1.0], None], "class_weights": [[1.0]]},
            "0 or 1 values|or differ",
        ),
        (LinearProbeAccuracy, {"predictions": [[1.0], [2.0]], "split": ["train", "tset"]}, "Did you mean 'test'"),
        (LinearProbeAccuracy, {"predictions": [[1.0], [2.0]], "split": ["train", "train"]}, "for test"),
        (LinearProbeAccuracy, {"predictions": [[1.0], [2.0]], "split": ["train", "test"], "n_classes": 1}, "for test"),
        (ForgetSet, {"predictions": [0.1, 0.9], "references": [0, 2], "forget_ratio": 0.5}, "not 2"),
        (ForgetSet, {"predictions": [0.1, 0.9], "forget_ratio": 1.5}, "forget_ratio"),
        (ForgetSet, {"predictions": [0.1, 0.9], "references": [1, 1], "forget_ratio": 0.5}, "both kinds"),
    ],
)
def test_wrong_inputs_are_named(metric, inputs, match):
    with pytest.raises(InputError, match=match):
        metric().compute(**{"references": [0, 1]} | inputs)


@pytest.mark.parametrize("metric", METRICS.values())
def test_a_metric_of_nothing_is_refused(metric):
    with pytest.raises(InputError, match="nothing was added"):
        metric().compute()


def test_an_unknown_column_and_option_are_refused():
    with pytest.raises(ValueError, match="colour"):
        RetrievalRecall().add_batch(predictions=[[1.0]], references=[0], modality=["image"], colour=["red"])
    with pytest.raises(TypeError, match="forget_ratoi"):
        ForgetSet().compute(predictions=[0.1, 0.9], references=[1, 0], forget_ratoi=0.5)


def test_a_metric_can_be_used_after_wrong_options():
    metric = ForgetSet()
    metric.add_batch(predictions=[0.1, 0.9], references=[1, 0])
    with pytest.raises(InputError):
        metric.compute(forget_ratio=2)
    assert metric.compute(predictions=[0.9, 0.1], references=[1, 0], forget_ratio=0.5)["n"] == 2
