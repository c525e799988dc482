"""The plan of a run: data, phases, memory, disk, and what is doubtful about it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ncu_hf.objectives import Objective
from ncu_hf.phases import sample_state
from ncu_hf.planning.data import DataPlan, LoaderTrial, loading_bytes, plan_data, stand_in_partners, try_loader
from ncu_hf.planning.doubts import doubts
from ncu_hf.planning.phases import PhasePlan, plan_phase
from ncu_hf.planning.text import render
from ncu_hf.run import Run


@dataclass(frozen=True)
class DiskPlan:
    """What the run writes, in bytes.

    Args:
        folder (`Path`): The output folder.
        peak (`int`): Most that lies there at any time.
        final (`int`): What lies there in the end.
        free (`int`): Free now on that file system.
    """

    folder: Path
    peak: int
    final: int
    free: int


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one process, in bytes.

    Args:
        device (`str`): Where the model trains.
        step (`int`): Most that a step takes there, over all phases.
        device_total (`int`, *optional*): What the device has; `None` for a CPU, which shares the host's memory.
        standing (`int`): What the process holds now: libraries, data tables, the reference.
        loading (`float`): Encoded records and batches of its readers.
        host (`float`): Most in the host's memory, of all processes on this machine.
        host_free (`int`): What the host has left, and what this process holds already.
    """

    device: str
    step: int
    device_total: int | None
    standing: int
    loading: float
    host: float
    host_free: int


@dataclass(frozen=True)
class Plan:
    """Everything that `--plan` prints.

    Args:
        data (`DataPlan`): What is read, and by whom.
        trial (`LoaderTrial`): How fast the first batches came.
        workers (`int`): Loader workers of a process, as asked for.
        chunk_rows, batch_rows (`int`): Rows that a process encodes at a time, and its part of a batch.
        phases (`tuple[PhasePlan, ...]`): In order.
        memory (`MemoryPlan`): Of a process.
        disk (`DiskPlan`): Of the run.
        save_every (`str`): When checkpoints are written.
        from_scratch (`bool`): Whether the model before training is written too.
        prompt (`bool`): Whether the result holds a negative prompt.
        estimated, measured, noisy (`bool`): Whether the share to forget is estimated, something is measured, and pairs
            are made wrong.
        published (`str`, *optional*): Repository on the Hub.
        warnings (`tuple[str, ...]`): Doubtful choices, each with what to do about it.
    """

    data: DataPlan
    trial: LoaderTrial
    workers: int
    chunk_rows: int
    batch_rows: int
    phases: tuple[PhasePlan, ...]
    memory: MemoryPlan
    disk: DiskPlan
    save_every: str
    from_scratch: bool
    prompt: bool
    estimated: bool
    measured: bool
    noisy: bool
    published: str | None
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """For a terminal of 100 columns."""
        return render(self)


def make_plan(run: Run, objectives: Sequence[Objective]) -> Plan:
    """Find out what a run would do. Nothing is trained, and nothing is written to the output folder.

    A collective: the loader is tried on all processes, which then hold the same plan but for what each of them
    measures of its own memory.

    Args:
        run (`Run`): Settings, data and reference.
        objectives (`Sequence[Objective]`): The phases.

    Raises:
        InputError: what would stop the run at its start.
    """
    training = run.arguments.training
    standing = psutil.Process().memory_info().rss
    data = plan_data(run)
    states = [state for objective in objectives if (state := sample_state(run, objective)) is not None]
    partners = stand_in_partners(run.source, max((state.partner_count for state in states), default=0))
    trial = try_loader(run, data, partners)
    phases = tuple(plan_phase(run, objective, trial.tokens) for objective in objectives)
    found = {
        "data": data,
        "trial": trial,
        "workers": training.dataloader_num_workers,
        "chunk_rows": training.chunk_size or training.per_device_train_batch_size,
        "batch_rows": training.per_device_train_batch_size,
        "phases": phases,
        "memory": _memory(run, phases, standing, loading_bytes(data, trial, training.dataloader_num_workers)),
        "disk": _disk(run, phases),
        "save_every": _save_every(run),
        "from_scratch": run.arguments.model.model is None,
        "prompt": any(objective.needs_prompt for objective in objectives),
        "estimated": training.estimate_forget_ratio,
        "measured": any((run.arguments.data.eval_data, run.arguments.data.eval_sets)),
        "noisy": run.arguments.data.noise_share > 0,
        "published": _repository(run) if training.push_to_hub else None,
    }
    return Plan(**found, warnings=tuple(doubts(Plan(**found), run.arguments)))


def _memory(run: Run, phases: Sequence[PhasePlan], standing: int, loading: float) -> MemoryPlan:
    device = run.arguments.training.device
    step = max(phase.memory.peak for phase in phases)
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    # A phase loads the model anew, in the host's memory first, and the reference stays.
    process = standing + loading + (step if device.type == "cpu" else max(p.memory.weights for p in phases))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = psutil.virtual_memory().available + here * standing
    return MemoryPlan(str(device), step, total, standing, loading, here * process, free)


def _disk(run: Run, phases: Sequence[PhasePlan]) -> DiskPlan:
    """The result lies there beside the outcomes of the phases; a new checkpoint is written before an old one goes."""
    result = phases[-1].outcome_bytes
    initial = result if run.arguments.model.model is None else 0
    kept = [phase.checkpoints_kept * phase.checkpoint_bytes + phase.outcome_bytes for phase in phases]
    final = initial + sum(kept) + result
    # The last phase is the fullest moment but for the result, and its rotation comes before that.
    rotating = max(
        initial + sum(kept[: i + 1]) + (phase.checkpoints > phase.checkpoints_kept) * phase.checkpoint_bytes
        for i, phase in enumerate(phases)
    )
    place = run.workspace.folder.absolute()
    while not place.exists():
        place = place.parent
    return DiskPlan(run.workspace.folder.absolute(), max(final, rotating), final, shutil.disk_usage(place).free)


def _save_every(run: Run) -> str:
    training = run.arguments.training
    if training.save_strategy == "steps":
        if training.save_steps < 1:
            return f"every {training.save_steps:.0%} of a phase and at its end"
        return f"every {int(training.save_steps):,} steps and at the end of a phase"
    return {"epoch": "at the end of every epoch", "no": "never (--save_strategy no)"}[str(training.save_strategy.value)]


def _repository(run: Run) -> str:
    training = run.arguments.training
    name = training.hub_model_id or run.workspace.folder.resolve().name
    kind = "private" if training.hub_private_repo else "public unless it exists"
    branch = f", branch {training.hub_revision}" if training.hub_revision else ""
    return f"{name} ({kind}{branch})"
