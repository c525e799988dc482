import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ncu_hf.errors import InputError
from ncu_hf.evaluation.metrics import RetrievalRecall, ZeroShotAccuracy
from ncu_hf.evaluation.retrieval import evaluate_retrieval
from ncu_hf.evaluation.zero_shot import zero_shot_metrics


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
    with pytest.raises(InputError, match="'video'"):
        RetrievalRecall().compute(predictions=[[1.0], [1.0]], references=[0, 0], modality=["image", "video"])
