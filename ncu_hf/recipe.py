"""The driver that every recipe calls: reference -> phases -> evaluation -> card -> Hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from ncu_hf.cli import Arguments, parse_arguments, run_main
from ncu_hf.config import NCUTrainingArguments
from ncu_hf.data import usable_captions
from ncu_hf.data.ground_truth import keep_injected_noise
from ncu_hf.distributed import barrier
from ncu_hf.evaluation import CaptionedSet, EvaluationSet, LabelledSet
from ncu_hf.evidence import collect_evidence, summary, write_evidence
from ncu_hf.forget_ratio import check_estimable, resolve_forget_ratio
from ncu_hf.loading import load_clip, load_reference, save_initial
from ncu_hf.modeling import PROMPT_FOLDER, NCUModel, load_prompt
from ncu_hf.objectives import build_objectives
from ncu_hf.opening import open_evaluation_sets, open_training_pairs
from ncu_hf.phases import check_phase, run_phase
from ncu_hf.planning import make_plan
from ncu_hf.publishing import HubSettings, check_login, publish_and_verify
from ncu_hf.reporting.results import HELD_OUT
from ncu_hf.run import Run
from ncu_hf.workspace import Workspace, resuming

logger = logging.getLogger(__name__)

LabelledSets = Callable[[CaptionedSet], list[LabelledSet]]


def main(defaults: Mapping[str, Any] | None = None, description: str | None = None) -> None:
    """Entry point of a recipe: parse the command line, run, and turn wrong input into one line and exit code 2."""

    def parse_and_run() -> None:
        arguments, _ = parse_arguments(defaults=defaults, description=description)
        set_up_logging(arguments.training)
        run(arguments)

    run_main(parse_and_run)


def run(arguments: Arguments, labelled_sets: LabelledSets | None = None) -> dict[str, Any]:
    """Fine-tune (or train) one model and write it with its evidence to `--output_dir`.

    Args:
        arguments (`Arguments`): All settings.
        labelled_sets (`Callable`, *optional*): Called with the evaluation pairs; returns classifications of their
            images to measure as well.

    Returns:
        `dict`: the results, as written to `results.json` (see `ncu_hf.reporting.results`); empty on all processes
        but the first, and with `--plan`, which prints what the run would do and need.

    Raises:
        InputError: before anything long starts, if the input cannot work; later, if more records are unusable than
            `--max_bad_fraction` allows, or the Hub refuses the result.
        TrainingStopped: the loss is not finite.
    """
    device = arguments.training.device  # starts the process group
    objectives = build_objectives(arguments.method)
    workspace = Workspace(arguments.training.output_dir)
    if arguments.training.should_save:
        workspace.check(arguments)
        if arguments.training.push_to_hub:
            check_login(HubSettings.of(arguments.training))
    source = open_training_pairs(arguments.data, device, revision=workspace.data_revision(arguments))
    sets = open_evaluation_sets(arguments.data, plan=arguments.training.plan)
    reference = load_reference(
        arguments.model,
        partial(usable_captions, source),
        arguments.training.seed,
        workspace.initial,
        revision=workspace.model_revision(arguments),
        resume=resuming(arguments.training),
    )
    prepared = Run(arguments, workspace, source, reference)
    check_estimable(prepared)
    for objective in objectives:
        check_phase(prepared, objective)
    if arguments.training.plan:
        plan = make_plan(prepared, objectives)
        if arguments.training.should_save:
            print(plan.text())
        return {}
    if labelled_sets is not None:
        sets += [labelled for one in sets if one.origin.name == HELD_OUT for labelled in labelled_sets(one)]
    if arguments.training.should_save:
        workspace.open(arguments, source.fingerprint, source.revision, reference.revision)
        keep_injected_noise(source, workspace.folder)
        if arguments.model.model is None:
            save_initial(reference)
    barrier()
    workspace.check_shared(device)
    resolve_forget_ratio(prepared)

    outcomes: list[Path] = []
    for objective in objectives:
        outcomes.append(run_phase(prepared, objective, outcomes[-1] if outcomes else None))
    results = _finish(prepared, outcomes, sets, device)
    barrier()
    return results


def set_up_logging(training: NCUTrainingArguments) -> None:
    """Plain lines on the first process; progress bars only where someone looks at them."""
    level = logging.INFO if training.should_log else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("ncu_hf").setLevel(level)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    transformers_logging.disable_progress_bar()
    training.disable_tqdm = training.disable_tqdm or not sys.stderr.isatty()


def _finish(run: Run, outcomes: list[Path], sets: list[EvaluationSet], device: torch.device) -> dict[str, Any]:
    """Write the result; measure it, on all processes; write the evidence, tell what was measured, publish."""
    folder, training = run.workspace.folder, run.arguments.training
    clip = load_clip(outcomes[-1]).eval()
    if training.should_save:
        prompt = load_prompt(outcomes[-1]) if (outcomes[-1] / PROMPT_FOLDER).is_dir() else None
        NCUModel(clip, prompt).save_pretrained(folder)
        run.reference.processor.save_pretrained(folder)
    evidence = collect_evidence(run, clip, outcomes, sets, device)
    if not training.should_save:
        return {}
    results = write_evidence(run, evidence)
    print(summary(results, evidence.health))
    print(f"\nWritten to {folder}: the model, README.md (its card), results.json, data_health.json, plots/.")
    if training.push_to_hub:
        print(f"Published: {publish_and_verify(folder, HubSettings.of(training)).url}")
    return results
