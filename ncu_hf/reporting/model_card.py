"""The model card of a run: valid metadata for the Hub, and a text that says only what the run's numbers support."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ncu_hf.reporting.methods import describe
from ncu_hf.reporting.results import SIDES, publishable
from ncu_hf.reporting.tables import escape_cell, markdown_table, result_rows

KINDS = {
    "positives": "positive pairs",
    "negatives_mean": "mean of an image's negatives",
    "negatives_top": "mean of its top 5 % negatives",
}


def render_model_card(run: dict) -> str:
    """Text of the card (README.md) with its metadata.

    Args:
        run (`dict`): See `ncu_hf.reporting.results`. Access tokens, folders of this machine and empty values are
            removed before anything is written.

    Returns:
        `str`: that `huggingface_hub.ModelCard` parses.
    """
    run = publishable(run)
    body = _environment().get_template("model_card.md").render(_context(run))
    card = ModelCard(f"---\n{_metadata(run).to_yaml()}\n---\n\n{body}")
    return str(card).rstrip() + "\n"


def _environment() -> jinja2.Environment:
    folder = files("ncu_hf.reporting") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        autoescape=False,  # Markdown, which the Hub sanitises
    )
    environment.filters |= {"cell": escape_cell, "value": _value, "code": lambda text: text.replace("```", "")}
    return environment


def _value(number: Any) -> str:
    """A number as it is read, a dash for one that is not known."""
    if isinstance(number, jinja2.Undefined):
        return "-"
    return f"{number:.3g}" if isinstance(number, float) and abs(number) < 100 else f"{number:,.0f}"


def _context(run: dict) -> dict:
    hyperparameters = _hyperparameters(run)
    zero_shot = run.get("zero_shot", {})
    return {
        "run": run,
        "title": run["model_name"],
        "load_from": run.get("hub_model_id", "path/to/this/folder"),
        "outcome": _outcome(run.get("retrieval", {})),
        "data_lines": _data_lines(run["data"]),
        "hyperparameters": hyperparameters,
        "differs": any(row["differs"] for row in hyperparameters),
        "retrieval": markdown_table(run, "Retrieval"),
        "zero_shot": markdown_table(run, "Zero-shot classification"),
        "forget_set": markdown_table(run, "Forget set"),
        "has_before": any("before" in row.values for row in result_rows(run)),
        "sizes": _sizes(run),
        "hashes": {name: sides["after"]["hash"] for name, sides in zero_shot.items() if "hash" in sides["after"]},
        "similarity": _similarity(run.get("similarity", {})),
        **describe(run),
    }


def _sizes(run: dict) -> dict[str, str]:
    sizes = {**run.get("retrieval", {}).get("after", {}), **run.get("forget_set", {}).get("after", {})}
    return {key: f"{size:,}" for key, size in sizes.items() if isinstance(size, int)}


def _outcome(sides: dict) -> str:
    """One sentence on mean recall, whichever way it went."""
    if not all(side in sides for side in SIDES):
        return ""
    before, after = (sides[side] for side in SIDES)
    difference = 100 * (after["mean_recall"] - before["mean_recall"])
    (low, high), (low_after, high_after) = (numbers["interval"]["mean_recall"] for numbers in (before, after))
    apart = high < low_after or high_after < low
    return (
        f"Mean retrieval recall (R@1, R@5 and R@10 both ways) went from {100 * before['mean_recall']:.1f} % to"
        f" {100 * after['mean_recall']:.1f} % ({difference:+.1f} points; the 95 % intervals"
        f" {'do not overlap' if apart else 'overlap'})."
    )


def _data_lines(data: dict) -> list[str]:
    lines = []
    if "n_pairs" in data:
        lines.append(f"Training pairs: {data['n_pairs']:,}")
    if "noise_share" in data and data["noise_share"] > 0:
        lines.append(f"Captions shuffled on purpose among {100 * data['noise_share']:.0f} % of them")
    if "hub_id" in data:
        lines.append(f"Data set: [{data['hub_id']}](https://huggingface.co/datasets/{data['hub_id']})")
    if "revision" in data:
        lines.append(f"Revision: `{data['revision']}`")
    if "subset" in data:
        lines.append(_subset_line(data["subset"]))
    return lines


def _subset_line(subset: dict) -> str:
    asked = f"{subset['count']:,} pairs" if "count" in subset else f"{100 * subset['share']:g} %"
    taken = f"{subset['shards']:,} shards" if "shards" in subset else f"{subset['rows']:,} pairs"
    return f"A random subset was asked for, {asked} with seed {subset['seed']}: {taken}"


def _hyperparameters(run: dict) -> list[dict]:
    paper = run.get("paper_hyperparameters", {})
    return [
        {"name": name, "value": value, "paper": paper.get(name, ""), "differs": name in paper and paper[name] != value}
        for name, value in run.get("hyperparameters", {}).items()
    ]


def _similarity(sides: dict) -> dict:
    """Cells of the table: mean and standard deviation of each kind, by side."""
    present = [side for side in SIDES if side in sides]
    rows = [
        [label, *(f"{sides[side][kind]['mean']:.3f} ± {sides[side][kind]['std']:.3f}" for side in present)]
        for kind, label in KINDS.items()
    ]
    heads = present if len(present) > 1 else ["mean ± standard deviation"]
    return {"sides": heads, "rows": rows} if present else {}


def _metadata(run: dict) -> ModelCardData:
    base, data, results = run["base_model"], run["data"], _eval_results(run)
    optional = {key: run[key] for key in ("license", "language") if key in run}
    if base["kind"] == "hub":
        optional["base_model"] = base["name"]
    if "hub_id" in data:
        optional["datasets"] = [data["hub_id"]]
    if results:
        optional |= {"eval_results": results, "metrics": sorted({result.metric_type for result in results})}
    return ModelCardData(
        model_name=run["model_name"],
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=describe(run)["tags"],
        **optional,
    )


def _eval_results(run: dict) -> list[EvalResult]:
    """`model-index` entries of the model as it is published, that is, after the run."""
    data, results = run["data"], []
    name = data.get("eval_hub_id", "held-out pairs")
    where = {"dataset_name": name, "dataset_type": data.get("eval_hub_id", "held-out-pairs")}
    where |= {"dataset_revision": data["eval_revision"]} if "eval_revision" in data else {}
    if "after" in run.get("retrieval", {}):
        after = run["retrieval"]["after"]
        task = {"task_type": "image-text-retrieval", "task_name": "Image-text retrieval", **where}
        for direction in ("image_to_text", "text_to_image"):
            words = direction.replace("_", " ").capitalize()
            for cutoff in (1, 5, 10):
                value = float(after[direction][f"R@{cutoff}"])
                metric = {"metric_type": f"{direction}_recall_at_{cutoff}", "metric_name": f"{words} R@{cutoff}"}
                results.append(EvalResult(**task, **metric, metric_value=value))
    for set_name, sides in run.get("zero_shot", {}).items():
        task = {"task_type": "zero-shot-image-classification", "task_name": "Zero-shot image classification"}
        task |= {"dataset_name": set_name, "dataset_type": _slug(set_name)}
        for key, words in (("accuracy", "Accuracy"), ("mean_per_class", "Mean per class")):
            metric = {"metric_type": key, "metric_name": words, "metric_value": float(sides["after"][key])}
            results.append(EvalResult(**task, **metric))
    return results


def _slug(name: str) -> str:
    """`name` as the metadata wants an identifier."""
    return "".join(letter if letter.isalnum() or letter in "-_./" else "-" for letter in name.lower()).strip("-")
