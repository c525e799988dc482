"""`evaluate.Metric` subclasses: nothing is downloaded, and several processes can add what each of them encoded.

In one process the inputs stay in memory. With more (`num_process`, `process_id`) they pass through files, so that the
processes must share `cache_dir` and `experiment_id`; both are then required, as the library's defaults collide between
runs.
"""

from __future__ import annotations

import tempfile

import datasets
import evaluate
import torch

from ncu_hf.errors import InputError
from ncu_hf.evaluation.retrieval import evaluate_retrieval
from ncu_hf.evaluation.zero_shot import zero_shot_metrics

EMBEDDING = datasets.Sequence(datasets.Value("float32"))


class EmbeddingMetric(evaluate.Metric):
    """What both metrics share: where inputs are kept.

    Args:
        cache_dir (`str`, *optional*): Where the processes exchange their inputs; without it they stay in memory.
        experiment_id (`str`, *optional*): Tells apart runs that share `cache_dir`.
        num_process, process_id (`int`, *optional*): How many processes add inputs, and which one this is.
    """

    def __init__(
        self,
        config_name: str | None = None,
        *,
        cache_dir: str | None = None,
        experiment_id: str | None = None,
        num_process: int = 1,
        process_id: int = 0,
        **kwargs,
    ):
        if num_process > 1 and (cache_dir is None or experiment_id is None):
            raise InputError(
                f"{type(self).__name__}: several processes need a cache_dir and experiment_id of their own."
            )
        shared = {"experiment_id": experiment_id, "num_process": num_process, "process_id": process_id, **kwargs}
        if cache_dir is None:
            # The base class makes a folder even where nothing will be written.
            with tempfile.TemporaryDirectory(prefix="ncu_hf_metric_") as folder:
                super().__init__(config_name, **shared | {"cache_dir": folder, "keep_in_memory": True})
        else:
            super().__init__(config_name, cache_dir=cache_dir, **shared)
        # MetricInfo refuses this for features that are lists, but a million Python floats are slow and large.
        self.info.format = "numpy"


class RetrievalRecall(EmbeddingMetric):
    """Recall at 1, 5 and 10 both ways, from one row an image and one row a caption, in any order.

    ```python
    metric = RetrievalRecall()
    metric.add_batch(predictions=image_embeds, references=[0, 1], modality=["image", "image"])
    metric.add_batch(predictions=text_embeds, references=[0, 0, 1], modality=["text", "text", "text"])
    metric.compute()["text_to_image"]["R@1"]
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": EMBEDDING,
            "references": datasets.Value("int64"),
            "modality": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description="Image-text retrieval, image to text and text to image. Ties count against the model.",
            citation="",
            inputs_description=(
                "predictions: embedding of an image or caption; references: its group (those of one group belong"
                " together); modality: 'image' or 'text'; optional bootstrap and seed of the intervals."
            ),
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, modality, bootstrap: int = 1000, seed: int = 0) -> dict:
        embeds, groups = torch.as_tensor(predictions), torch.as_tensor(references)
        unknown = set(modality) - {"image", "text"}
        if unknown:
            raise InputError(f"RetrievalRecall: modality must be 'image' or 'text', not {sorted(unknown)[0]!r}.")
        image = torch.tensor([kind == "image" for kind in modality])
        return evaluate_retrieval(
            embeds[image],
            embeds[~image],
            image_groups=groups[image],
            caption_groups=groups[~image],
            bootstrap=bootstrap,
            seed=seed,
        )


class ZeroShotAccuracy(EmbeddingMetric):
    """Accuracy, top 5 and mean per class of image embeddings against class vectors.

    ```python
    ZeroShotAccuracy().compute(predictions=image_embeds, references=labels, class_weights=weights)["accuracy"]
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Zero-shot classification by the nearest class vector. Ties count against the model.",
            citation="",
            inputs_description=(
                "predictions: unit embedding of an image; references: index of its class; class_weights (C, D): unit"
                " vectors of the classes, the same in every process; optional bootstrap and seed of an interval."
            ),
            features=datasets.Features({"predictions": EMBEDDING, "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, class_weights, bootstrap: int = 1000, seed: int = 0) -> dict:
        return zero_shot_metrics(
            torch.as_tensor(predictions),
            torch.as_tensor(references),
            torch.as_tensor(class_weights, dtype=torch.float32),
            bootstrap=bootstrap,
            seed=seed,
        )
