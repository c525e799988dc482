"""One phase of a run: what it starts from, how long it trains, and what it leaves behind."""

from __future__ import annotations

import copy
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from transformers import CLIPModel, set_seed

from ncu_hf.adapters import add_adapters
from ncu_hf.cards import write_training_card
from ncu_hf.checkpoint import last_checkpoint, read_json
from ncu_hf.config import NCUTrainingArguments
from ncu_hf.data import DataHealth, PairLoader, StreamSource
from ncu_hf.distributed import broadcast_json, world
from ncu_hf.errors import InputError, one_line
from ncu_hf.loading import load_clip, make_prompt
from ncu_hf.modeling import NCUModel, load_prompt
from ncu_hf.objectives import Objective
from ncu_hf.run import Run
from ncu_hf.samples.base import SampleState
from ncu_hf.samples.dual_weight import DualWeightState
from ncu_hf.samples.encoding import PairEncoder
from ncu_hf.trainer import DATA_STATE, NCUTrainer
from ncu_hf.workspace import resuming

logger = logging.getLogger(__name__)


def phase_steps(objective: Objective, training: NCUTrainingArguments, batches_per_epoch: int | None) -> int:
    """Optimizer steps of a phase.

    Raises:
        InputError: no step, or the data's length is not known and no number of steps is given.
    """
    schedule = objective.schedule(training)
    if schedule.max_steps > 0:
        return schedule.max_steps
    if batches_per_epoch is None:
        raise InputError(
            "The length of streamed data is not known; state it with --train_pairs, or say how long to train with "
            "--max_steps (and, for ncu, --negative_prompt_max_steps)."
        )
    steps = int(schedule.epochs * batches_per_epoch) // training.gradient_accumulation_steps
    if steps < 1:
        raise InputError(
            f"Phase {objective.phase} would have no step: {schedule.epochs} epochs of {batches_per_epoch} batches, "
            f"{training.gradient_accumulation_steps} a step."
        )
    return steps


def check_phase(run: Run, objective: Objective) -> None:
    """Find before anything is trained what would stop a phase.

    Raises:
        InputError: wrong sizes, data that is too short, or a setting that `Trainer`, the optimizer or the schedule of
            the learning rate refuses.
    """
    with tempfile.TemporaryDirectory() as folder:  # `Trainer` makes the output folder that it is told
        try:
            trainer = make_trainer(run, objective, copy.deepcopy(run.reference.clip), None, Path(folder))
            trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
        except InputError:
            raise
        except (ImportError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"The trainer refuses its settings: {one_line(error)}") from error
    if trainer.args.get_warmup_steps(trainer.args.max_steps) >= trainer.args.max_steps:
        logger.warning(
            "Phase %s has %d steps, all of them warm-up; lower --warmup_steps (below 1 it is a share of the phase).",
            objective.phase,
            trainer.args.max_steps,
        )


def run_phase(run: Run, objective: Objective, previous: Path | None) -> Path:
    """Train one phase, go on with it, or skip it where it is complete.

    Args:
        run (`Run`): Settings, data and reference.
        objective (`Objective`): The phase.
        previous (`Path`, *optional*): Outcome of the phase before; the first phase starts from the reference.

    Returns:
        `Path`: the folder of the outcome, see [`NCUTrainer.save_outcome`].
    """
    arguments, final = run.arguments, run.workspace.final(objective.phase)
    complete, checkpoint = _standing(run, objective)
    if complete:
        logger.info("Phase %s is complete.", objective.phase)
        return final
    set_seed(arguments.training.seed)
    clip = load_clip(run.reference.source, run.reference.revision) if previous is None else load_clip(previous)
    trainer = make_trainer(run, objective, clip, previous, run.workspace.phase(objective.phase))
    logger.info(
        "Phase %s: %d steps%s.", objective.phase, trainer.args.max_steps, f", from {checkpoint}" * bool(checkpoint)
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_outcome(final)
    return final


def _standing(run: Run, objective: Objective) -> tuple[bool, str | None]:
    """Whether a phase is complete, and the checkpoint to go on from; a collective.

    The first process looks: a shared file system may show another one a moment later what is there, and would go on
    showing it nothing once that has looked in vain.
    """
    found = None
    if world()[0] == 0:
        last = last_checkpoint(run.workspace.phase(objective.phase)) if resuming(run.arguments.training) else None
        found = run.workspace.final(objective.phase).is_dir(), None if last is None else str(last)
    complete, checkpoint = broadcast_json(found, run.arguments.training.device)
    return complete, checkpoint


def make_trainer(run: Run, objective: Objective, clip: CLIPModel, previous: Path | None, folder: Path) -> NCUTrainer:
    """The trainer of one phase.

    Args:
        run (`Run`): Settings, data and reference.
        objective (`Objective`): The phase.
        clip (`CLIPModel`): Where the phase starts; changed in place.
        previous (`Path`, *optional*): Outcome of the phase before; the data go on where it stopped.
        folder (`Path`): For checkpoints.
    """
    samples = sample_state(run, objective)
    return NCUTrainer(
        build_model(run, objective, clip, previous),
        phase_arguments(run, objective, folder),
        objective,
        partial(load_pairs, run, objective, samples),
        None if previous is None else read_json(previous / DATA_STATE),
        run.batches_per_epoch(),
        run.reference.processor,
        DataHealth(run.arguments.data.max_bad_fraction, run.source.problems),
        run.arguments.model.adapted_towers,
        samples,
        partial(write_training_card, run, objective.phase),
    )


def sample_state(run: Run, objective: Objective) -> SampleState | None:
    """The numbers on every training pair that a phase needs, not yet made; `None` for most phases.

    Raises:
        InputError: the data are a stream, whose pairs have no number to keep them under.
    """
    if not objective.needs_sample_weights:
        return None
    if isinstance(run.source, StreamSource):
        raise InputError(
            f"{run.source.name}: --method {run.arguments.method.method} keeps numbers on every pair, and pairs of a "
            "stream cannot be looked up; train on local files with --streaming false."
        )
    workers = run.arguments.training.dataloader_num_workers
    return DualWeightState(objective, PairEncoder(run.source, run.reference.processor, workers))


def load_pairs(run: Run, objective: Objective, samples: SampleState | None, state: dict[str, Any] | None) -> PairLoader:
    """The loader of a phase, from a position of the data on, once the partners of the pairs are known."""
    return run.loader(state, objective.negative_prefixes, None if samples is None else samples.partners)


def build_model(run: Run, objective: Objective, clip: CLIPModel, previous: Path | None) -> NCUModel:
    """`clip` with what a phase needs beside it.

    The prompt comes from the phase before, if there was one. The frozen reference is always the model that the run
    starts from: it is in no checkpoint, and a resumed run has the same.
    """
    prompt, reference, settings = None, None, run.arguments.model
    if objective.needs_reference:
        reference = NCUModel(copy.deepcopy(run.reference.clip))
    if objective.needs_prompt:
        rank = run.arguments.method.negative_rank
        prompt = make_prompt(settings, clip, rank) if previous is None else load_prompt(previous)
    if settings.adapted_towers:
        add_adapters(clip, settings.adapted_towers, settings.lora_rank, settings.lora_alpha)
    return NCUModel(clip, prompt, reference)


def phase_arguments(run: Run, objective: Objective, folder: Path) -> NCUTrainingArguments:
    """The trainer's arguments for one phase. The result goes to the Hub when all phases are done."""
    arguments = copy.copy(run.arguments.training)
    arguments.output_dir = str(folder)
    arguments.push_to_hub = False
    arguments.max_steps = phase_steps(objective, arguments, run.batches_per_epoch())
    arguments.learning_rate = objective.schedule(run.arguments.training).learning_rate
    return arguments
