"""The model card of a run: valid metadata for the Hub, and a text that says only what the run's numbers support."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from ncu_hf.reporting import sections
from ncu_hf.reporting.hub_results import EVAL_RESULTS, PREFIX, eval_result_files
from ncu_hf.reporting.markdown import code, code_block, code_cell, hub_link, is_hub_id, one_line, plain, table
from ncu_hf.reporting.metadata import card_metadata
from ncu_hf.reporting.methods import NOT_MEASURED, describe, forgets
from ncu_hf.reporting.results import SET_GROUPS, publishable
from ncu_hf.reporting.rows import FORGET_SET, PROBE, RETRIEVAL, ZERO_SHOT, average_row, result_rows
from ncu_hf.reporting.tables import markdown_table

LOCAL_FOLDER = "path/to/this/folder"
REVISION = re.compile(r"[\w./\-]+", re.ASCII)
MEASURED = (*SET_GROUPS, "similarity", "forget_set")
SIZES = ("k", "n", "n_mismatched")  # of the forget set, in its sentence
UNFINISHED = "This is a checkpoint and not the final model of its run: nothing is known about its quality."


def write_card(run: dict, folder: str | Path) -> None:
    """Write `README.md` and the files of `.eval_results/`, in place of those of an earlier call.

    Args:
        run (`dict`): See `ncu_hf.reporting.results`.
        folder (`str` or `Path`): Of the model; what `plots` names is relative to it.
    """
    folder = Path(folder)
    for earlier in (folder / EVAL_RESULTS).glob(f"{PREFIX}*.yaml"):
        earlier.unlink()
    for name, text in eval_result_files(run).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(render_model_card(run), encoding="utf-8")


def render_model_card(run: dict) -> str:
    """Text of the card (README.md) with its metadata.

    Args:
        run (`dict`): See `ncu_hf.reporting.results`. Access tokens, folders of this machine, empty values and numbers
            that are not finite are removed before anything is written.

    Returns:
        `str`: that `huggingface_hub.ModelCard` parses.
    """
    run = _with_safe_names(publishable(run))
    body = _environment().get_template("model_card.md").render(_context(run))
    return f"---\n{card_metadata(run).to_yaml()}\n---\n\n{body.rstrip()}\n"


def _with_safe_names(run: dict) -> dict:
    """Copy whose names fit the sentences of `ncu_hf.reporting.methods`, which hold them in code spans and links.

    What was measured before the end of a run is left out: its numbers would be of another model.
    """
    base = {key: one_line(value).replace("`", "") for key, value in run["base_model"].items()}
    if base["kind"] == "hub" and not is_hub_id(base.get("name")):
        base["kind"] = "local"
    kept = {key: value for key, value in run.items() if "checkpoint" not in run or key not in MEASURED}
    return {
        "model_name": "CLIP",
        **kept,
        "method": one_line(run["method"]).replace("`", ""),
        "base_model": base,
        "data": {"description": "not described.", **run.get("data", {})},
    }


@cache
def _environment() -> jinja2.Environment:
    folder = files("ncu_hf.reporting") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        autoescape=False,  # Markdown: what others wrote goes through the filters below
    )
    environment.filters |= {"plain": plain, "code": code, "block": code_block}
    return environment


def _context(run: dict) -> dict[str, Any]:
    hyperparameters, differs = sections.hyperparameter_table(run)
    return {
        "run": run,
        "load_from": _load_from(run),
        "phases": _phases_table(run.get("phases", [])),
        "data_lines": _data_lines(run["data"]),
        "health": _health(run.get("data_health", {})),
        "reasons": _reasons_table(run.get("data_health", {})),
        "hyperparameters": hyperparameters,
        "differs": differs,
        "verification": _verification_table(run.get("verification", {})),
        **_results_context(run),
        **_description(run),
    }


def _load_from(run: dict) -> str:
    """Arguments that load the published model; a checkpoint is not it, and an id without owner cannot be loaded."""
    hub_id, revision = run.get("hub_model_id", ""), run.get("hub_revision", "")
    if not is_hub_id(hub_id) or "/" not in hub_id or "checkpoint" in run:
        return f'"{LOCAL_FOLDER}"'
    return f'"{hub_id}"' + (f', revision="{revision}"' if REVISION.fullmatch(revision) else "")


def _results_context(run: dict) -> dict[str, Any]:
    rows = result_rows(run)
    summary = run.get("forget_summary", {})
    context = {
        "outcome": sections.outcome_lines(run),
        "zero_shot": markdown_table(run, ZERO_SHOT),
        "retrieval": markdown_table(run, RETRIEVAL),
        "linear_probe": markdown_table(run, PROBE),
        "probes": sections.probe_table(run.get("linear_probe", {})),
        "forget_set": markdown_table(run, FORGET_SET),
        "forget_set_between": sections.forget_set_between(run.get("forget_set", {})),
        "similarity": sections.similarity_table(run.get("similarity", {})),
        "similarity_of": f" of {code(measured[0])}" if (measured := list(run.get("retrieval", {}))) else "",
        "forgets": forgets(run["method"]),
        "sets": sections.sets_table(run),
        "has_before": any("before" in row.values for row in rows),
        "has_intervals": any(row.intervals for row in rows),
        "has_paired": any(row.compares and row.paired_interval for row in rows),
        "has_average": any(average_row(rows, group) for group in (ZERO_SHOT, PROBE)),
        "sizes": {key: f"{size:,}" for key, size in run.get("forget_set", {}).get("after", {}).items() if key in SIZES},
    }
    if summary and not context["forget_set"]:
        context["forget_text"] = sections.forget_summary_text(summary)
        context["forget_table"] = sections.forget_summary_table(summary)
    tables = ("zero_shot", "retrieval", "linear_probe", "forget_set", "similarity")
    return {**context, "has_results": any(context[name] for name in tables)}


def _description(run: dict) -> dict[str, Any]:
    told = describe(run)
    if "checkpoint" in run:
        told["limits"] = [UNFINISHED, *(limit for limit in told["limits"] if limit != NOT_MEASURED)]
    return told


def _phases_table(phases: list[dict]) -> str:
    rows = [
        [plain(phase.get("name", "")), *(_number(phase.get(key)) for key in ("steps", "epochs", "seconds"))]
        for phase in phases
    ]
    return table(("phase", "steps", "epochs", "seconds"), rows)


def _number(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.3g}" if isinstance(number, float) and abs(number) < 100 else f"{number:,.0f}"


def _data_lines(data: dict) -> list[str]:
    lines = []
    if "n_pairs" in data:
        lines.append(f"Training pairs: {data['n_pairs']:,}")
    if data.get("noise_share", 0) > 0:
        lines.append(_noise_line(data))
    if "hub_id" in data:
        lines.append(f"Data set: {hub_link(data['hub_id'], data.get('revision'))}")
    if "revision" in data:
        lines.append(f"Revision: {code(data['revision'])}")
    if "subset" in data:
        lines.append(_subset_line(data["subset"]))
    augmentation = data.get("augmentation", [])
    if augmentation:
        words = [augmentation] if isinstance(augmentation, str) else augmentation
        lines.append(f"Preprocessing in training: {'; '.join(map(plain, words))}")
    return lines


def _noise_line(data: dict) -> str:
    kind, share = data.get("noise_kind", "shuffled"), f"{100 * data['noise_share']:g} % of them"
    replaced = f"In {share} the caption was replaced on purpose by"
    if kind == "hard" and "noise_class_column" in data:
        done = f"{replaced} another one of the same {code(data['noise_class_column'])}"
    elif kind == "hard":
        done = f"{replaced} another one that shares words with it"
    elif kind == "generic":
        done = f"{replaced} a generic web text"
    elif kind == "partial":
        done = f"In {share} a part of the caption was replaced on purpose by words of another one"
    else:
        done = f"Captions shuffled on purpose among {share}"
    if "noise_mismatched" not in data:
        return done
    ends = "do not match, and were left out" if data.get("noise_dropped") else "do not match"
    return f"{done} (noise {code(kind)}, seed {data['noise_seed']}): {data['noise_mismatched']:,} pairs {ends}"


def _subset_line(subset: dict) -> str:
    asked = f"{subset['count']:,} pairs" if "count" in subset else f"{100 * subset['share']:g} %"
    taken = f"{subset['shards']:,} shards" if "shards" in subset else f"{subset['rows']:,} pairs"
    return f"A random subset was asked for, {asked} with seed {subset['seed']}: {taken}"


def _health(health: dict) -> str:
    if "seen" not in health:
        return ""
    seen, skipped = f"{health['seen']:,}", health.get("skipped", 0)
    if not skipped:
        return f"Health: all {seen} records that were read could be used."
    share = 100 * skipped / max(health["seen"], 1)
    return f"Health: of {seen} records that were read, {skipped:,} ({share:.2g} %) could not be used and were left out."


def _reasons_table(health: dict) -> str:
    return table(("reason", "records"), [[plain(reason), f"{n:,}"] for reason, n in health.get("reasons", {}).items()])


def _verification_table(verification: dict) -> str:
    labels = {
        "commit": "commit",
        "embedding_digest": "digest of the embeddings",
        "weights_sha256": "SHA-256 of the weights",
        "torch": "torch",
        "transformers": "transformers",
    }
    rows = [[label, code_cell(verification[key])] for key, label in labels.items() if key in verification]
    return table(("", "value"), rows, left=2)
