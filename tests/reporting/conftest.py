"""Results of runs as plain values, with everything that a card can tell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

REVISION = "5503434ddd753f426f4b38109466949a1217c2bb"


def recalls_at(value: float, **more) -> dict:
    one = {"R@1": value, "R@5": value, "R@10": value, "median_rank": 3.0}
    one["interval"] = {f"R@{cutoff}": [value - 0.1, value + 0.1] for cutoff in (1, 5, 10)}
    return {
        "n_images": 1000,
        "n_captions": 5000,
        "image_to_text": one,
        "text_to_image": one,
        "mean_recall": value,
        "rsum": 600 * value,
        "interval": {"mean_recall": [value - 0.1, value + 0.1], "rsum": [0.0, 600.0]},
        **more,
    }


def accuracy_of(value: float, **more) -> dict:
    interval = {key: [value - 0.1, value + 0.1] for key in ("accuracy", "top5", "mean_per_class")}
    shares = {"accuracy": value, "top5": 0.9, "mean_per_class": value - 0.01}
    return {
        **shares,
        "interval": interval,
        "n": 10000,
        "n_classes": 10,
        "primary": "accuracy",
        "hash": "0a1b2c3d4e5f6a7b",
        **more,
    }


def probe_of(value: float, **more) -> dict:
    numbers = accuracy_of(value, n_train=45000, n_validation=5000, regularisation=0.316, features="unprojected", **more)
    return {key: number for key, number in numbers.items() if key not in ("top5", "hash")}


@pytest.fixture
def recalls() -> Callable[..., dict]:
    return recalls_at


@pytest.fixture
def accuracy() -> Callable[..., dict]:
    return accuracy_of


@pytest.fixture
def probe() -> Callable[..., dict]:
    return probe_of


@pytest.fixture
def run() -> dict:
    """A run of NCU, published, with every kind of result."""
    cifar = {"hub_id": "clip-benchmark/wds_vtab-cifar10", "revision": REVISION, "split": "test"}
    caltech = {"hub_id": "clip-benchmark/wds_vtab-caltech101", "revision": REVISION, "split": "test"}
    local = {"fingerprint": "f" * 64, "note": "the first five captions of an image"}
    of_caltech = {"data": caltech, "primary": "mean_per_class", "n_classes": 102, "n": 6085}
    spread = {kind: {"mean": 0.2, "std": 0.1} for kind in ("positives", "negatives_mean", "negatives_top")}
    found = {"precision": 0.9, "recall": 0.8, "auroc": 0.95, "k": 1000, "n": 10000, "n_mismatched": 3000}
    return {
        "model_name": "clip-ncu",
        "method": "ncu",
        "formulation": "released",
        "base_model": {"name": "openai/clip-vit-base-patch32", "kind": "hub", "revision": "abc123"},
        "hub_model_id": "me/clip-ncu",
        "license": None,
        "language": "en",
        "data": {
            "description": "Captioned photographs from /home/someone/data/train.csv.",
            "n_pairs": 10000,
            "noise_share": 0.3,
            "hub_id": "pixparse/cc3m-wds",
            "revision": None,
            "augmentation": ["images cropped at random", "not mirrored: captions name sides"],
            "eval_description": "outputs/data/eval.parquet",
        },
        "data_health": {"seen": 10003, "skipped": 3, "reasons": {"truncated": 2, "empty_caption": 1}},
        "hyperparameters": {
            "plan_weight": 0.7,
            "forget_ratio": 0.3,
            "train_data": "/home/someone/data/train.csv",
            "hub_token": "hf_abcdefghijklmnopqrstuv",
            "revision": None,
        },
        "paper_hyperparameters": {"forget_ratio": 0.1, "plan_weight": 0.7},
        "phases": [
            {"name": "negative_prompt", "steps": 78, "epochs": 2, "seconds": 31.53},
            {"name": "unlearning", "steps": 1312, "epochs": 8, "seconds": 3131.5},
        ],
        "zero_shot": {
            "cifar10": {"before": accuracy_of(0.5, data=cifar), "after": accuracy_of(0.4, data=cifar)},
            "caltech101": {"before": accuracy_of(0.7, **of_caltech), "after": accuracy_of(0.75, **of_caltech)},
        },
        "retrieval": {
            "held-out pairs": {"before": recalls_at(0.4), "after": recalls_at(0.7)},
            "mine": {
                "before": recalls_at(0.3, data=local, skipped={"truncated": 2}),
                "after": recalls_at(0.3, data=local, skipped={"truncated": 2}),
            },
        },
        "linear_probe": {"cifar10": {"before": probe_of(0.8, data=cifar), "after": probe_of(0.82, data=cifar)}},
        "similarity": {"before": spread, "after": spread},
        "forget_set": {"before": found, "after": {**found, "precision": 0.92}},
        "plots": {"losses": "plots/losses.png", "similarities": "plots/similarities.png"},
        "prompt": {"folder": "negative_prompt", "length": 8},
        "verification": {
            "commit": REVISION,
            "embedding_digest": "e" * 64,
            "weights_sha256": "d" * 64,
            "max_difference": 0.0,
            "torch": "2.13.0",
            "transformers": "5.23.0",
        },
        "command": "accelerate launch recipes/ncu.py --train_data /home/someone/data/train.csv",
        "environment": {"torch": "2.13.0", "processes": 1},
    }


@pytest.fixture
def scratch() -> dict:
    """A reference model: method clip, no earlier model, few details."""
    return {
        "model_name": "reference",
        "method": "clip",
        "base_model": {"kind": "scratch"},
        "data": {"description": "Scenes."},
        "phases": [{"name": "clip", "steps": 10, "epochs": 1.5, "seconds": 3.0}],
        "hyperparameters": {"learning_rate": 0.001},
        "retrieval": {"held-out pairs": {"after": recalls_at(0.7)}},
    }


@pytest.fixture
def checkpoint(run: dict) -> dict:
    """What is known in the middle of the second phase."""
    known = {key: value for key, value in run.items() if key not in ("verification", "forget_set", "similarity")}
    known["plots"] = {"losses": "plots/losses.png"}
    place = {"phase": "unlearning", "step": 100, "steps": 1312, "phase_number": 2, "phases": 2}
    return {**known, "checkpoint": place}


HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?", re.ASCII)
# Of the identifiers that the Hub knows, those that a test uses.
KNOWN_LICENSES = {"mit", "apache-2.0", "cc-by-nc-4.0", "openrail++", "other"}
METADATA = {
    *("base_model", "base_model_relation", "datasets", "language", "library_name", "license", "license_name"),
    *("metrics", "pipeline_tag", "tags", "model-index"),
}


class UniqueKeys(yaml.SafeLoader):
    """YAML as the Hub reads it: plain values, no key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep=deep)


def check_metadata_of(text: str) -> dict:
    """The Hub's rules for the top of a card, written from its documentation; returns the metadata."""
    lines = text.split("\n")
    assert lines[0] == "---"
    end = lines.index("---", 1)
    metadata = yaml.load("\n".join(lines[1:end]), Loader=UniqueKeys)
    assert set(metadata) <= METADATA
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "zero-shot-image-classification"
    assert metadata.get("license", "mit") in KNOWN_LICENSES
    assert (metadata.get("license") == "other") == ("license_name" in metadata)
    assert re.fullmatch(r"[a-z0-9._\-]+", metadata.get("license_name", "x"))
    for code in metadata.get("language", []):
        assert re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual", code)
    for name in [*metadata.get("datasets", []), metadata.get("base_model", "x")]:
        assert HUB_ID.fullmatch(name) and "--" not in name and ".." not in name and len(name) <= 96
    assert metadata.get("base_model_relation", "finetune") == "finetune"
    assert ("base_model" in metadata) == ("base_model_relation" in metadata)
    for tag in [*metadata["tags"], *metadata.get("metrics", [])]:
        assert isinstance(tag, str) and tag
    _check_model_index(metadata.get("model-index"))
    _check_round_trip(text, metadata)
    return metadata


def _check_model_index(index: list | None) -> None:
    if index is None:
        return
    (model,) = index
    assert isinstance(model["name"], str) and model["name"].strip() and model["results"]
    for result in model["results"]:
        assert set(result) == {"task", "dataset", "metrics"} and result["metrics"]
        assert isinstance(result["task"]["type"], str) and result["task"]["type"]
        assert {"name", "type"} <= set(result["dataset"]) <= {"name", "type", "config", "split", "revision"}
        assert all(isinstance(value, str) and value for value in result["dataset"].values())
        assert re.fullmatch(r"[A-Za-z0-9._\-/]+", result["dataset"]["type"])
        for metric in result["metrics"]:
            assert set(metric) == {"type", "name", "value"}  # hence nothing that claims to be verified
            assert type(metric["value"]) is float and math.isfinite(metric["value"])
        kinds = [metric["type"] for metric in result["metrics"]]
        assert len(kinds) == len(set(kinds)), "two numbers of one metric on one data set"


def _check_round_trip(text: str, metadata: dict) -> None:
    card = ModelCard(text)
    assert card.data.to_dict() == metadata
    assert str(card) == text
    if card.data.eval_results:
        model_name, results = model_index_to_eval_results(metadata["model-index"])
        assert (model_name, results) == (card.data.model_name, card.data.eval_results)
        assert eval_results_to_model_index(model_name, results) == metadata["model-index"]


@pytest.fixture
def check_metadata() -> Callable[[str], dict]:
    return check_metadata_of
