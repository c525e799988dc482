"""The numbers of a run in the two forms that the Hub reads: `model-index` in the card, and files in `.eval_results/`.

Both tell the model as it is published, that is, after the run. `model-index` is what the Hub calls legacy and most
tools read; https://huggingface.co/docs/hub/eval-results describes the newer one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ncu_hf.reporting.markdown import is_hub_id, one_line, slug
from ncu_hf.reporting.results import HELD_OUT, finite, publishable
from ncu_hf.reporting.rows import DIRECTIONS, RECALLS

EVAL_RESULTS = ".eval_results"
# Files of this name are ours: they are replaced when a card is written again, others are left alone.
PREFIX = "ncu_hf-"
LONGEST_NAME = 96  # characters; the Hub's own limit for names of repositories
COMMIT = re.compile(r"[0-9a-f]{40}")


class Metric(NamedTuple):
    """One number. `task` is its name in `.eval_results`, empty for a metric that is only in `model-index`."""

    key: str
    name: str
    value: float
    interval: list[float]
    task: str


class MeasuredSet(NamedTuple):
    """What was measured on one set, in the words of the Hub."""

    group: str
    name: str
    task_type: str
    task_name: str
    data: dict[str, Any]
    facts: list[str]
    metrics: list[Metric]


def eval_results(run: dict) -> list[EvalResult]:
    """`model-index` entries: every set, its primary metric first."""
    results, taken = [], set()
    for found in measured_sets(run):
        hub_id = found.data.get("hub_id")
        dataset = {
            "dataset_name": one_line(found.name, LONGEST_NAME),
            "dataset_type": hub_id if is_hub_id(hub_id) else slug(found.name),
            **{f"dataset_{key}": one_line(found.data[key]) for key in ("split", "revision") if key in found.data},
        }
        # The Hub puts all metrics of one task, data set, split and revision under the first one's name.
        same = (found.task_type, *(dataset.get(f"dataset_{key}") for key in ("type", "split", "revision")))
        if same in taken:
            dataset["dataset_config"] = _another(slug(found.name), {key[-1] for key in taken if key[:-1] == same})
        taken |= {same, (*same, dataset.get("dataset_config", ""))}
        for metric in found.metrics:
            named = {"metric_type": metric.key, "metric_name": metric.name, "metric_value": metric.value}
            results.append(EvalResult(task_type=found.task_type, task_name=found.task_name, **dataset, **named))
    return results


def eval_result_files(run: dict) -> dict[str, str]:
    """The files of `.eval_results/`: one for each set that is a data set of the Hub, as the format names it by its id.

    The value of a set is its primary metric (of retrieval R@1 both ways), as a share. The Hub lists an entry on a
    leaderboard if the data set is a benchmark whose `eval.yaml` defines the task; elsewhere it is only stored.

    Args:
        run (`dict`): See `ncu_hf.reporting.results`.

    Returns:
        `dict[str, str]`: YAML by the path of the file, relative to the card.
    """
    files: dict[str, str] = {}
    for found in measured_sets(publishable(run)):
        if not is_hub_id(found.data.get("hub_id")):
            continue
        entries = [_entry(found, metric) for metric in found.metrics if metric.task]
        if entries:
            stem = _another(f"{PREFIX}{found.group}-{slug(found.name)}", {name[:-5] for name in files})
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            files[f"{stem}.yaml"] = text
    return {f"{EVAL_RESULTS}/{name}": text for name, text in files.items()}


def _entry(found: MeasuredSet, metric: Metric) -> EvalResultEntry:
    interval = [f"95 % interval {metric.interval[0]:.4f} to {metric.interval[1]:.4f}"] if metric.interval else []
    revision = str(found.data.get("revision", ""))
    return EvalResultEntry(
        dataset_id=found.data["hub_id"],
        task_id=metric.task,
        value=metric.value,
        dataset_revision=revision if COMMIT.fullmatch(revision) else None,
        notes="; ".join([f"{metric.name}, as a share", *interval, *found.facts]),
    )


def measured_sets(run: dict) -> Iterator[MeasuredSet]:
    """Every set with at least one finite number; none of a checkpoint, whose run goes on."""
    if "checkpoint" in run:
        return
    for reader, group in ((_zero_shot, "zero_shot"), (_retrieval, "retrieval"), (_probe, "linear_probe")):
        for name, sides in run.get(group, {}).items():
            found = reader(name, sides.get("after", {}), set_data(run, name, sides.get("after", {})))
            if found.metrics:
                yield found


def set_data(run: dict, name: str, numbers: dict) -> dict:
    """Where a set comes from; the run's own evaluation pairs are described with its data."""
    if name != HELD_OUT or "data" in numbers:
        return numbers.get("data", {})
    told = {key: run["data"].get(f"eval_{key}") for key in ("hub_id", "revision")}
    return {key: value for key, value in told.items() if value is not None}


def _zero_shot(name: str, numbers: dict, data: dict) -> MeasuredSet:
    task = "zero-shot-image-classification"
    facts = [f"class names and templates {numbers['hash']}"] if "hash" in numbers else []
    metrics = _class_metrics(numbers, task)
    return MeasuredSet(
        "zero_shot", name, task, "Zero-shot image classification", data, _facts(numbers, data, facts), metrics
    )


def _probe(name: str, numbers: dict, data: dict) -> MeasuredSet:
    facts = [f"{numbers['features']} features"] if "features" in numbers else []
    metrics = _class_metrics(numbers, "linear-probe")
    name_of_task = "Image classification (linear probe)"
    return MeasuredSet(
        "linear_probe", name, "image-classification", name_of_task, data, _facts(numbers, data, facts), metrics
    )


def _class_metrics(numbers: dict, task: str) -> list[Metric]:
    primary = numbers.get("primary", "accuracy")
    names = {"accuracy": "Accuracy", "mean_per_class": "Mean per class accuracy"}
    metrics = [_metric(numbers, key, key, name, task if key == primary else "") for key, name in names.items()]
    return sorted((metric for metric in metrics if metric is not None), key=lambda metric: metric.key != primary)


def _retrieval(name: str, numbers: dict, data: dict) -> MeasuredSet:
    metrics = [_metric(numbers, "mean_recall", "mean_recall", "Mean recall", "")]
    for direction, words in DIRECTIONS.items():
        part = numbers.get(direction, {})
        for recall in RECALLS:
            key = f"{direction}_recall_at_{recall.removeprefix('R@')}"
            task = f"{words.replace(' ', '-')}-retrieval" if recall == "R@1" else ""
            metrics.append(_metric(part, recall, key, f"{words.capitalize()} {recall}", task))
    found = [metric for metric in metrics if metric is not None]
    facts = _facts(numbers, data, [])
    return MeasuredSet("retrieval", name, "image-text-retrieval", "Image-text retrieval", data, facts, found)


def _metric(numbers: dict, source: str, key: str, name: str, task: str) -> Metric | None:
    value = finite(numbers.get(source))
    interval = numbers.get("interval", {}).get(source, [])
    return None if value is None else Metric(key, name, value, interval, task)


def _facts(numbers: dict, data: dict, more: list[str]) -> list[str]:
    sizes = {"n": "items", "n_images": "images", "n_captions": "captions"}
    counted = [f"{numbers[key]} {words}" for key, words in sizes.items() if key in numbers]
    skipped = sum(numbers.get("skipped", {}).values())
    counted += [f"{skipped} skipped"] if skipped else []
    return [*counted, *more, *([one_line(data["note"])] if "note" in data else [])]


def _another(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free
