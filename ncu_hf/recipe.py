"""The driver that every recipe calls: reference -> phases -> evaluation -> card -> Hub."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from ncu_hf._version import __version__
from ncu_hf.assessment import EvaluationPairs, assess, assess_forget_set, collect_pairs
from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.cli import Arguments, parse_arguments, run_main
from ncu_hf.config import MethodArguments, NCUTrainingArguments
from ncu_hf.data import DataHealth, PairSource, check_readable, open_pairs
from ncu_hf.distributed import barrier
from ncu_hf.errors import InputError
from ncu_hf.evaluation import PairEvaluation, ZeroShotSet
from ncu_hf.hub import publish
from ncu_hf.loading import load_clip, load_reference, save_initial
from ncu_hf.modeling import PROMPT_FOLDER, NCUModel, load_prompt
from ncu_hf.objectives import build_objectives
from ncu_hf.phases import Run, check_phase, run_phase
from ncu_hf.reporting.model_card import render_model_card
from ncu_hf.reporting.plots import plot_losses, plot_similarities
from ncu_hf.reporting.results import before_after
from ncu_hf.reporting.tables import before_after_table
from ncu_hf.workspace import Workspace

logger = logging.getLogger(__name__)

ZeroShotSets = Callable[[EvaluationPairs], Mapping[str, ZeroShotSet]]


def main(defaults: Mapping[str, Any] | None = None, description: str | None = None) -> None:
    """Entry point of a recipe: parse the command line, run, and turn wrong input into one line and exit code 2."""

    def parse_and_run() -> None:
        arguments, _ = parse_arguments(defaults=defaults, description=description)
        set_up_logging(arguments.training)
        run(arguments)

    run_main(parse_and_run)


def run(arguments: Arguments, zero_shot_sets: ZeroShotSets | None = None) -> dict[str, Any]:
    """Fine-tune (or train) one model and write it with its evidence to `--output_dir`.

    Args:
        arguments (`Arguments`): All settings.
        zero_shot_sets (*optional*): Called with the evaluation pairs; returns classifications of their images to
            measure as well, by name.

    Returns:
        `dict`: the results, as written to `results.json` (see `ncu_hf.reporting.results`); empty on all processes
        but the first.

    Raises:
        InputError: before anything long starts, if the input cannot work.
        TrainingStopped: the loss is not finite.
    """
    device = arguments.training.device  # starts the process group
    objectives = build_objectives(arguments.method)
    workspace = Workspace(arguments.training.output_dir)
    source, eval_source = _open_data(arguments)
    reference = load_reference(arguments.model, source.captions, arguments.training.seed, workspace.initial)
    prepared = Run(arguments, workspace, source, reference)
    for objective in objectives:
        check_phase(prepared, objective)
    pairs = None if eval_source is None else collect_pairs(eval_source, arguments.data.eval_limit)
    if arguments.training.should_save:
        workspace.open(arguments)
        if arguments.model.model is None:
            save_initial(reference)
    barrier()

    outcomes: list[Path] = []
    for objective in objectives:
        outcomes.append(run_phase(prepared, objective, outcomes[-1] if outcomes else None))
    results = {}
    if arguments.training.should_save:
        sets = zero_shot_sets(pairs) if zero_shot_sets and pairs else None
        results = _finish(prepared, outcomes, pairs, sets, device)
    barrier()
    return results


def set_up_logging(training: NCUTrainingArguments) -> None:
    """Plain lines on the first process; progress bars only where someone looks at them."""
    level = logging.INFO if training.should_log else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("ncu_hf").setLevel(level)
    transformers_logging.disable_progress_bar()
    training.disable_tqdm = training.disable_tqdm or not sys.stderr.isatty()


def _open_data(arguments: Arguments) -> tuple[PairSource, PairSource | None]:
    data = arguments.data
    if data.train_data is None:
        raise InputError("Give the pairs to train on: --train_data.")
    shared = {
        "image_column": data.image_column,
        "caption_column": data.caption_column,
        "delimiter": data.delimiter,
        "image_root": data.image_root,
        "revision": data.data_revision,
        "data_format": data.data_format,
    }
    noise = {"noise_share": data.noise_share, "noise_seed": data.noise_seed}
    with arguments.training.main_process_first(desc="opening the data"):
        source = open_pairs(
            data.train_data,
            split=data.split,
            limit=data.train_limit,
            streaming=data.streaming,
            caption_tokenizer=data.caption_tokenizer,
            **noise,
            **shared,
        )
        eval_source = None
        if data.eval_data is not None:
            eval_source = open_pairs(data.eval_data, split=data.eval_split, limit=data.eval_limit, **shared)
    for opened in (source, eval_source):
        if opened is not None:
            check_readable(opened)
    return source, eval_source


def _finish(
    run: Run,
    outcomes: list[Path],
    pairs: EvaluationPairs | None,
    zero_shot: Mapping[str, ZeroShotSet] | None,
    device: torch.device,
) -> dict[str, Any]:
    """Write the result, measure it beside the reference, and tell: table, JSON, plots, card, Hub."""
    folder = run.workspace.folder
    clip = _write_result(run, outcomes[-1])
    from_scratch = run.arguments.model.model is None
    before = None if from_scratch else load_clip(run.reference.source, run.reference.revision)
    evaluations, forget_sets = {}, {}
    for side, model in (("before", before), ("after", clip)):
        if model is None:
            continue
        evaluations[side], forget_sets[side] = _measure(run, model, pairs, zero_shot, device)
    phases = [read_json(outcome / "phase.json") for outcome in outcomes]
    health = _total_health(run, phases)
    plots = _draw(run, phases, evaluations)
    results = _results(run, phases, health, evaluations, forget_sets, plots)
    write_json(folder / "results.json", results)
    health.save(folder / "data_health.json")
    (folder / "README.md").write_text(render_model_card(results), encoding="utf-8")
    print(_summary(results, health, folder))
    if run.arguments.training.push_to_hub:
        print(f"Published: {publish(folder, run.arguments.training)}")
    return results


def _write_result(run: Run, outcome: Path) -> Any:
    clip = load_clip(outcome)
    prompt = load_prompt(outcome) if (outcome / PROMPT_FOLDER).is_dir() else None
    NCUModel(clip, prompt).save_pretrained(run.workspace.folder)
    run.reference.processor.save_pretrained(run.workspace.folder)
    return clip.eval()


def _measure(
    run: Run,
    clip: Any,
    pairs: EvaluationPairs | None,
    zero_shot: Mapping[str, ZeroShotSet] | None,
    device: torch.device,
) -> tuple[PairEvaluation | None, dict | None]:
    arguments, processor = run.arguments, run.reference.processor
    evaluation = None if pairs is None else assess(clip, processor, pairs, zero_shot, device=device)
    forget_set = None
    if isinstance(run.source, PairSource):
        forget_set = assess_forget_set(
            clip,
            processor,
            run.source,
            arguments.method,
            batch_size=arguments.training.global_batch_size,
            device=device,
            seed=arguments.training.seed,
        )
    return evaluation, forget_set


def _total_health(run: Run, phases: list[dict]) -> DataHealth:
    health = DataHealth(run.arguments.data.max_bad_fraction)
    health.merge(phase["data_health"] for phase in phases)
    return health


def _draw(run: Run, phases: list[dict], evaluations: Mapping[str, PairEvaluation | None]) -> dict[str, str]:
    """Plots of the run, as paths relative to the card."""
    plots = {}
    histories = {phase["name"]: phase["log_history"] for phase in phases}
    if any("loss" in line for history in histories.values() for line in history):
        plots["losses"] = plot_losses(histories, run.workspace.plots / "losses.png")
    after = evaluations.get("after")
    if after is not None:
        before = evaluations.get("before")
        plots["similarities"] = plot_similarities(
            None if before is None else before.distributions,
            after.distributions,
            run.workspace.plots / "similarities.png",
        )
    return {name: str(path.relative_to(run.workspace.folder)) for name, path in plots.items()}


def _results(
    run: Run,
    phases: list[dict],
    health: DataHealth,
    evaluations: Mapping[str, PairEvaluation | None],
    forget_sets: Mapping[str, dict | None],
    plots: dict[str, str],
) -> dict[str, Any]:
    arguments = run.arguments
    numbers = {side: evaluation.numbers for side, evaluation in evaluations.items() if evaluation is not None}
    results = {
        "model_name": Path(run.workspace.folder).resolve().name,
        "method": arguments.method.method,
        "formulation": arguments.method.formulation if arguments.method.method != "clip" else None,
        "base_model": _base_model(run),
        "hub_model_id": arguments.training.hub_model_id,
        "data": _describe_data(run),
        "data_health": {"seen": health.seen, "skipped": health.skipped, "reasons": health.reasons},
        "hyperparameters": _hyperparameters(arguments),
        "paper_hyperparameters": _paper_hyperparameters(arguments),
        "phases": [{key: phase[key] for key in ("name", "steps", "epochs", "seconds")} for phase in phases],
        **(before_after(numbers.get("before"), numbers["after"]) if "after" in numbers else {}),
        "forget_set": {side: found for side, found in forget_sets.items() if found is not None},
        "plots": plots,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "environment": {
            "ncu_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "processes": arguments.training.world_size,
        },
    }
    if (run.workspace.folder / PROMPT_FOLDER).is_dir():
        results["prompt"] = {"folder": PROMPT_FOLDER, "length": arguments.model.prompt_length}
    return results


def _base_model(run: Run) -> dict[str, Any]:
    settings = run.arguments.model
    if settings.model is None:
        return {"name": settings.model_config, "kind": "scratch"}
    if Path(settings.model).is_dir():
        return {"name": settings.model, "kind": "local"}
    return {"name": settings.model, "kind": "hub", "revision": settings.revision}


def _describe_data(run: Run) -> dict[str, Any]:
    data, described = run.arguments.data, run.source.description
    hub = described["format"] == "hub"
    return {
        "description": f"{described['name']} ({described['format']})",
        "hub_id": data.train_data if hub else None,
        "revision": described["revision"],
        "n_pairs": described["rows"],
        "noise_share": data.noise_share or None,
        "eval_description": data.eval_data,
    }


def _hyperparameters(arguments: Arguments) -> dict[str, Any]:
    """Settings that a reader of the card wants to know: all of the method's, and the training's own."""
    training = arguments.training
    names = [field.name for field in fields(NCUTrainingArguments) if field.name in NCUTrainingArguments.__annotations__]
    dropped = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "per_device_train_batch_size"}
    chosen = {name: getattr(training, name) for name in names if name not in dropped}
    chosen["lr_scheduler_type"] = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type))
    return {**asdict(arguments.method), **chosen, "seed": training.seed}


def _paper_hyperparameters(arguments: Arguments) -> dict[str, Any] | None:
    """The method's own values, which are the defaults of the settings."""
    if arguments.method.method == "clip":
        return None
    chosen = _hyperparameters(arguments)
    defaults = {field.name: field.default for cls in (MethodArguments, NCUTrainingArguments) for field in fields(cls)}
    compared = [name for name in chosen if name in _COMPARED_WITH_PAPER]
    return {name: 2048 if name == "global_batch_size" else defaults[name] for name in compared}


_COMPARED_WITH_PAPER = frozenset(
    [
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
    ]
)


def _summary(results: dict[str, Any], health: DataHealth, folder: Path) -> str:
    parts = [before_after_table(results)]
    if health.skipped or health.problems:
        parts.append(health.summary_table())
    parts.append(f"Written to {folder}: the model, README.md (its card), results.json, data_health.json, plots/.")
    return "\n\n".join(part for part in parts if part)
