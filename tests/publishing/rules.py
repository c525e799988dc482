"""What the Hub asks of the metadata of a model: its documentation's rules, as a naive checker."""

from __future__ import annotations

import math
import re
from datetime import date, datetime

import yaml

LICENSES = {
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "openrail", "unlicense", "unknown"),
    "other",
}
REPO_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]{0,95}")
DATASET_TYPE = re.compile(r"(?:[\w-]+/)?[\w.-]+")
LISTS = ("tags", "datasets", "metrics", "language", "license", "base_model")
STRINGS = ("library_name", "pipeline_tag", "license_name", "license_link", "model_name", "thumbnail")


def card_errors(content: str) -> list[str]:
    """Reasons to refuse a README.md, empty if there are none."""
    front = re.match(r"\s*---\s*\r?\n(.*?)\r?\n---\s*(?:\r?\n|$)", content, flags=re.DOTALL)
    if front is None:
        return ["no metadata"]
    try:
        data = yaml.safe_load(front[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata is not a mapping"]
    return [*plain_errors(data), *field_errors(data), *index_errors(data.get("model-index"))]


def plain_errors(value, where: str = "metadata") -> list[str]:
    """Nothing is null, nothing is a number that JSON cannot say."""
    if value is None:
        return [f"{where} is null"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where} is not finite"]
    if isinstance(value, dict):
        return [error for key, item in value.items() for error in plain_errors(item, f"{where}.{key}")]
    if isinstance(value, list):
        return [error for i, item in enumerate(value) for error in plain_errors(item, f"{where}[{i}]")]
    return [] if isinstance(value, str | int | float | bool | date | datetime) else [f"{where}: {type(value)}"]


def field_errors(data: dict) -> list[str]:
    errors = [f"{key} must be a string" for key in STRINGS if key in data and not isinstance(data[key], str)]
    for key in LISTS:
        values = data.get(key, [])
        values = values if isinstance(values, list) else [values]
        errors += [f"{key} must be strings" for value in values if not isinstance(value, str)]
        data[key] = [value for value in values if isinstance(value, str)]
    errors += [f"license {value!r} is unknown" for value in data["license"] if value not in LICENSES]
    errors += ["license_name is needed"] if "other" in data["license"] and "license_name" not in data else []
    errors += [f"language {value!r} is no code" for value in data["language"] if not re.fullmatch("[a-z]{2,3}", value)]
    for key in ("datasets", "base_model"):
        errors += [f"{key} {value!r} is not a repository" for value in data[key] if not REPO_ID.fullmatch(value)]
    return errors


def index_errors(index) -> list[str]:
    """model-index: a list of models, each with results of a task on a data set."""
    if index is None:
        return []
    if not isinstance(index, list) or not index:
        return ["model-index must be a list"]
    errors = []
    for model in index:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            errors.append("model-index: name is required")
            continue
        results = model.get("results")
        if not isinstance(results, list):
            errors.append("model-index: results must be a list")
            continue
        errors += [error for result in results for error in result_errors(result)]
    return errors


def result_errors(result) -> list[str]:
    if not isinstance(result, dict):
        return ["result must be a mapping"]
    task, dataset, metrics = (result.get(key) for key in ("task", "dataset", "metrics"))
    errors = []
    if not isinstance(task, dict) or not isinstance(task.get("type"), str):
        errors.append("task.type is required")
    if not isinstance(dataset, dict) or not all(isinstance(dataset.get(key), str) for key in ("type", "name")):
        errors.append("dataset.type and dataset.name are required")
    elif not DATASET_TYPE.fullmatch(dataset["type"]):
        errors.append(f"dataset.type {dataset['type']!r} is not an identifier")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, "metrics are required"]
    for metric in metrics:
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str) or "value" not in metric:
            errors.append("metric.type and metric.value are required")
        elif "verified" in metric and not metric.get("verifyToken"):
            errors.append("metric.verified is the Hub's to say")
    return errors


def eval_result_errors(content: str) -> list[str]:
    """Reasons to refuse a file of `.eval_results/`."""
    try:
        entries = yaml.safe_load(content)
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(entries, list) or not entries:
        return ["must be a list of results"]
    errors = plain_errors(entries)
    for entry in entries:
        dataset = entry.get("dataset") if isinstance(entry, dict) else None
        if not isinstance(dataset, dict) or not all(isinstance(dataset.get(key), str) for key in ("id", "task_id")):
            errors.append("dataset.id and dataset.task_id are required")
        elif not REPO_ID.fullmatch(dataset["id"]):
            errors.append(f"dataset.id {dataset['id']!r} is not a data set of the Hub")
        if not isinstance(entry, dict) or "value" not in entry:
            errors.append("value is required")
        elif "source" in entry and "url" not in entry["source"]:
            errors.append("source.url is required")
    return errors
