"""The evidence of a finished run: measured on reference and result, written as JSON, plots and card."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import CLIPModel

from ncu_hf._version import __version__
from ncu_hf.assessment import EvaluationPairs, assess, assess_forget_set
from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.cli import Arguments
from ncu_hf.config import GLOBAL_BATCH_SIZE, MethodArguments, NCUTrainingArguments
from ncu_hf.data import DataHealth, PairSource
from ncu_hf.evaluation import PairEvaluation, ZeroShotSet
from ncu_hf.loading import load_clip
from ncu_hf.modeling import PROMPT_FOLDER
from ncu_hf.phases import Run
from ncu_hf.reporting.model_card import render_model_card
from ncu_hf.reporting.plots import plot_losses, plot_similarities
from ncu_hf.reporting.results import before_after, publishable
from ncu_hf.reporting.tables import before_after_table
from ncu_hf.workspace import LEARNING_SETTINGS, run_settings

# Where the run says the same as the paper (section 5.1, and the released code), the card does not mark a setting.
_OF_THE_PAPER = (
    "forget_ratio",
    "plan_weight",
    "entropy",
    "margin_low",
    "margin_high",
    "relation_weight",
    "global_batch_size",
    "num_train_epochs",
    "learning_rate",
    "negative_prompt_epochs",
    "negative_prompt_learning_rate",
    "prompt_learning_rate",
    "weight_decay",
    "prompt_weight_decay",
    "adam_beta2",
    "warmup_steps",
    "max_grad_norm",
)


class Evidence(NamedTuple):
    """What was measured.

    Attributes:
        evaluations (`dict[str, PairEvaluation]`): By side, `before` (not of a model from scratch) and `after`; empty
            without evaluation data.
        forget_sets (`dict[str, dict]`): The same, where the mismatches of the training pairs are known.
        phases (`list[dict]`): `phase.json` of each phase.
        health (`DataHealth`): Records that could not be used, over all phases.
    """

    evaluations: dict[str, PairEvaluation]
    forget_sets: dict[str, dict]
    phases: list[dict]
    health: DataHealth


def collect_evidence(
    run: Run,
    result: CLIPModel,
    outcomes: list[Path],
    pairs: EvaluationPairs | None,
    zero_shot: Mapping[str, ZeroShotSet] | None,
    device: torch.device,
) -> Evidence:
    """Measure the result beside the reference.

    Args:
        run (`Run`): The run.
        result (`CLIPModel`): What it made.
        outcomes (`list[Path]`): Folder of each phase's outcome.
        pairs (`EvaluationPairs`, *optional*): Clean pairs.
        zero_shot (`Mapping[str, ZeroShotSet]`, *optional*): Classifications of their images.
        device (`torch.device`): Where to compute.
    """
    arguments, processor = run.arguments, run.reference.processor
    models = {"after": result}
    if arguments.model.model is not None:
        models = {"before": load_clip(run.reference.source, run.reference.revision), **models}
    evaluations, forget_sets = {}, {}
    for side, clip in models.items():
        if pairs is not None:
            evaluations[side] = assess(clip, processor, pairs, zero_shot, device=device)
        if isinstance(run.source, PairSource):
            batch_size, seed = arguments.training.global_batch_size, arguments.training.seed
            forget_sets[side] = assess_forget_set(
                clip, processor, run.source, arguments.method, batch_size=batch_size, device=device, seed=seed
            )
    phases = [read_json(outcome / "phase.json") for outcome in outcomes]
    health = DataHealth(arguments.data.max_bad_fraction)
    health.merge(phase["data_health"] for phase in phases)
    known = {side: found for side, found in forget_sets.items() if found is not None}
    return Evidence(evaluations, known, phases, health)


def write_evidence(run: Run, evidence: Evidence) -> dict[str, Any]:
    """Write `results.json`, `data_health.json`, `plots/` and the card; returns the results."""
    folder = run.workspace.folder
    results = _results(run, evidence, _draw(run, evidence))
    write_json(folder / "results.json", publishable(results))
    evidence.health.save(folder / "data_health.json")
    (folder / "README.md").write_text(render_model_card(results), encoding="utf-8")
    return results


def summary(results: dict[str, Any], health: DataHealth) -> str:
    """What a run prints at its end: the table, and the records that could not be used if there were any."""
    parts = [before_after_table(results)]
    if health.skipped or health.problems:
        parts.append(health.summary_table())
    return "\n\n".join(part for part in parts if part)


def _draw(run: Run, evidence: Evidence) -> dict[str, str]:
    """Plots of the run, as paths relative to the card."""
    plots, folder = {}, run.workspace.plots
    histories = {phase["name"]: phase["log_history"] for phase in evidence.phases}
    if any("loss" in line for history in histories.values() for line in history):
        plots["losses"] = plot_losses(histories, folder / "losses.png")
    if "after" in evidence.evaluations:
        sides = {side: evaluation.distributions for side, evaluation in evidence.evaluations.items()}
        plots["similarities"] = plot_similarities(sides.get("before"), sides["after"], folder / "similarities.png")
    return {name: str(path.relative_to(run.workspace.folder)) for name, path in plots.items()}


def _results(run: Run, evidence: Evidence, plots: dict[str, str]) -> dict[str, Any]:
    """All of it as plain values, see `ncu_hf.reporting.results`."""
    arguments, health = run.arguments, evidence.health
    numbers = {side: evaluation.numbers for side, evaluation in evidence.evaluations.items()}
    results = {
        "model_name": run.workspace.folder.resolve().name,
        "method": arguments.method.method,
        "base_model": _base_model(run),
        "hub_model_id": arguments.training.hub_model_id,
        "data": _describe_data(run),
        "data_health": {"seen": health.seen, "skipped": health.skipped, "reasons": health.reasons},
        "hyperparameters": _hyperparameters(arguments),
        "phases": [{key: phase[key] for key in ("name", "steps", "epochs", "seconds")} for phase in evidence.phases],
        **(before_after(numbers.get("before"), numbers["after"]) if numbers else {}),
        "forget_set": evidence.forget_sets,
        "plots": plots,
        "command": _command(),
        "environment": {
            "ncu_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "processes": arguments.training.world_size,
        },
    }
    if arguments.method.method != "clip":
        results["formulation"] = arguments.method.formulation
        results["paper_hyperparameters"] = _paper_hyperparameters()
    prompt = run.workspace.folder / PROMPT_FOLDER
    if prompt.is_dir():
        results["prompt"] = {"folder": PROMPT_FOLDER, "length": read_json(prompt / "config.json")["length"]}
    return results


def _command() -> str:
    """The command line without the access token, if one was given."""
    words = sys.argv[1:]
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before != "--hub_token" and not word.startswith("--hub_token")
    ]
    return shlex.join([Path(sys.argv[0]).name, *kept])


def _base_model(run: Run) -> dict[str, Any]:
    settings = run.arguments.model
    if settings.model is None:
        return {"name": settings.model_config, "kind": "scratch"}
    if Path(settings.model).is_dir():
        return {"name": settings.model, "kind": "local"}
    return {"name": settings.model, "kind": "hub", "revision": settings.revision}


def _describe_data(run: Run) -> dict[str, Any]:
    data, described = run.arguments.data, run.source.description
    return {
        "description": f"{described['name']} ({described['format']})",
        "hub_id": described["name"] if described["revision"] or described["format"] == "hub" else None,
        "revision": described["revision"],
        "n_pairs": described["rows"],
        "subset": described.get("subset"),
        "noise_share": data.noise_share or None,
        "eval_description": data.eval_data,
    }


def _hyperparameters(arguments: Arguments) -> dict[str, Any]:
    """What determines the result, apart from the model that it starts from and the data."""
    settings = run_settings(arguments)
    chosen = {name: settings[name] for name in LEARNING_SETTINGS}
    if arguments.model.adapted_towers:
        chosen |= {name: settings[name] for name in ("lora_rank", "lora_alpha", "lora_towers")}
    if arguments.method.method == "clip":
        return {name: value for name, value in chosen.items() if "prompt" not in name}
    return {**asdict(arguments.method), **chosen}


def _paper_hyperparameters() -> dict[str, Any]:
    """The paper's values, which are the defaults of the settings; N has its default where it is resolved."""
    defaults = {field.name: field.default for cls in (MethodArguments, NCUTrainingArguments) for field in fields(cls)}
    return {name: defaults[name] for name in _OF_THE_PAPER} | {"global_batch_size": GLOBAL_BATCH_SIZE}
