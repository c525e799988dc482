"""Choices that are allowed and probably not meant, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ncu_hf.cli import Arguments
from ncu_hf.config import GLOBAL_BATCH_SIZE
from ncu_hf.objectives import METHODS
from ncu_hf.planning.units import count, size

if TYPE_CHECKING:
    from ncu_hf.planning.plan import Plan

# Below this part of the paper's batch, selection and transport see too few pairs to go by its results.
_SMALL_BATCH = GLOBAL_BATCH_SIZE // 8
# A stated length that is wrong by this factor ends a run too early, or lets its rate fall too slowly.
_WRONG_LENGTH = 1.5
# From here on decoding in the training process is what a step waits for.
_MANY_SAMPLES = 100_000


def doubts(plan: Plan, arguments: Arguments) -> Iterator[str]:
    """Warnings about a plan, the most expensive mistakes first."""
    yield from _space(plan)
    yield from _length(plan)
    yield from _readers(plan)
    yield from _schedule(plan)
    yield from _batch(arguments)


def _space(plan: Plan) -> Iterator[str]:
    disk, memory = plan.disk, plan.memory
    if disk.peak > disk.free:
        yield (
            f"Disk: the run needs {size(disk.peak)} and {size(disk.free)} are free at {disk.folder}; "
            "lower --save_total_limit or give another --output_dir."
        )
    if memory.device_total is not None and memory.step > memory.device_total:
        yield (
            f"Memory: a step needs {size(memory.step)}, {memory.device} has {size(memory.device_total)}; "
            f"--chunk_size {max(plan.chunk_rows // 2, 1)} or less changes the memory and not the gradient."
        )
    if memory.host > memory.host_free:
        remedy = "--chunk_size or --dataloader_num_workers" if memory.device == "cpu" else "--dataloader_num_workers"
        yield (
            f"Memory: this machine's processes need {size(memory.host)}, it has {size(memory.host_free)} for them; "
            f"lower {remedy}."
        )


def _length(plan: Plan) -> Iterator[str]:
    data = plan.data
    if data.by_density and not 1 / _WRONG_LENGTH < data.samples / data.by_density < _WRONG_LENGTH:
        yield (
            f"Length: {count(data.samples)} pairs of an epoch are stated, but by the first shard and the sizes of all "
            f"there are about {count(data.by_density)}; the steps are counted by the former, so check --train_pairs."
        )


def _readers(plan: Plan) -> Iterator[str]:
    data = plan.data
    if data.shards is not None and data.shards < data.processes:
        yield (
            f"Shards: {count(data.shards)} for {data.processes} processes, so a shard is read by several and each "
            "passes over what the others take; write the data in more shards."
        )
    elif data.shards is not None and data.readers < plan.workers:
        yield (
            f"Shards: {count(data.shards)} for {data.processes} processes x {plan.workers} workers, so only "
            f"{data.readers} of a process's workers are used; write the data in more shards, or lower "
            "--dataloader_num_workers."
        )
    if not plan.workers and data.samples >= _MANY_SAMPLES:
        yield (
            f"Workers: {count(data.samples)} pairs would be decoded in the training process; "
            "set --dataloader_num_workers to the cores that a process has."
        )


def _schedule(plan: Plan) -> Iterator[str]:
    for phase in plan.phases:
        if phase.warmup_steps >= phase.steps:
            yield (
                f"Warm-up: all {phase.steps:,} steps of phase {phase.name} are warm-up; lower --warmup_steps "
                "(below 1 it is a share of the phase)."
            )


def _batch(arguments: Arguments) -> Iterator[str]:
    batch, method = arguments.training.global_batch_size, arguments.method
    if batch < _SMALL_BATCH:
        yield (
            f"Batch: {batch:,} pairs against the paper's {GLOBAL_BATCH_SIZE:,}; a pair has few negatives, and what a "
            "batch forgets is judged against few others. Raise --global_batch_size; --chunk_size bounds its memory."
        )
    forgets = any("forget_ratio" in objective.settings for objective in METHODS[method.method])
    if forgets and method.forget_ratio > 0 and int(method.forget_ratio * batch) == 0:
        yield (
            f"Forgetting: {method.forget_ratio} of {batch} pairs is less than one, so nothing is forgotten; raise "
            "--global_batch_size or --forget_ratio."
        )
