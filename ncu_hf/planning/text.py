"""A plan as aligned text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import datasets

from ncu_hf.planning.units import count, duration, size
from ncu_hf.publishing.upload import LOCAL_FILES, LOCAL_FOLDERS

if TYPE_CHECKING:
    from ncu_hf.planning.data import DataPlan
    from ncu_hf.planning.plan import Plan

_WIDTH = 100
_LABEL, _COLUMN = 26, 26


def render(plan: Plan) -> str:
    """The plan in at most `_WIDTH` columns, where no name of the user's is longer."""
    lines = [
        f"Plan of {plan.disk.folder} (nothing is trained or written)",
        *_section("Data", _data(plan)),
        *_section("Phases", _phases(plan)),
        *_section(f"Memory of a process, estimated, on {plan.memory.device}", _memory(plan)),
        *_section("Disk", _disk(plan)),
        *_section(f"Written to {plan.disk.folder}", _tree(plan)),
    ]
    for warning in plan.warnings:
        lines += textwrap.wrap(f"! {warning}", _WIDTH, subsequent_indent="  ", break_long_words=False)
    return "\n".join(lines)


def _section(title: str, rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield ""
    yield title
    for label, *values in rows:
        cells = "".join(value.ljust(_COLUMN) for value in values[:-1]) + values[-1]
        yield f"  {label.ljust(_LABEL)}{cells}".rstrip()


def _data(plan: Plan) -> Iterator[tuple[str, ...]]:
    data = plan.data
    yield "source", f"{data.name} ({data.format}), fingerprint {data.fingerprint[:12]}"
    if data.revision:
        yield "revision", data.revision
    if data.subset:
        yield "subset", _subset(data.subset)
    yield "pairs of an epoch", f"{'' if data.exact else 'about '}{count(data.samples)}, {data.counted}"
    yield "readers", f"{data.processes * data.readers} ({_times(data)}): {_shards(plan)}"
    yield "dropped of an epoch", _tail(plan)
    ceiling = data.max_bad_fraction * data.samples
    yield "bad records", f"the run stops above {data.max_bad_fraction:.1%} ({count(ceiling)} of an epoch)"
    yield "first batch", f"after {duration(plan.trial.first_seconds)}"
    yield "then", _pace(plan)


def _subset(subset: dict[str, Any]) -> str:
    asked = f"{subset['share']:.3g} of the pairs" if "share" in subset else f"{count(subset['count'])} pairs"
    return f"{asked}, chosen by seed {subset['seed']}"


def _pace(plan: Plan) -> str:
    """How fast batches come, and how long those of all phases take if nothing waits for the model."""
    trial = plan.trial
    pace = f"{count(trial.rate)} pairs/s" if trial.rate >= 10 else f"{trial.rate:.2g} pairs/s"
    whole = duration(sum(phase.samples_seen for phase in plan.phases) / trial.rate)
    least, most = ("", "") if trial.settled else ("at least ", "at most ")
    return f"{least}{pace} on all processes; loading alone takes {most}{whole}"


def _times(data: DataPlan) -> str:
    processes = "1 process" if data.processes == 1 else f"{data.processes} processes"
    return f"{processes} x {data.readers}"


def _shards(plan: Plan) -> str:
    data = plan.data
    if data.shards is None:
        return "indexed data, every record can be read by each"
    total = "" if data.shard_bytes is None else f", {size(data.shard_bytes)}"
    readers = data.processes * data.readers
    shards = "1 shard" if data.shards == 1 else f"{count(data.shards)} shards"
    if data.shards < data.all_shards:
        shards = f"{count(data.shards)} of {count(data.all_shards)} shards"
    if data.shards < readers:
        return f"{shards}{total}, each shared by {_between(readers, data.shards)} readers"
    return f"{shards}{total}, {_between(data.shards, readers)} for each"


def _between(whole: int, parts: int) -> str:
    low, rest = divmod(whole, parts)
    return f"{low:,} or {low + 1:,}" if rest else f"{low:,}"


def _tail(plan: Plan) -> str:
    batch = plan.phases[0].global_batch
    if plan.data.tail is None:
        return f"fewer than {count(batch)} pairs (a global batch), other ones in every epoch"
    return f"{count(plan.data.tail)} pairs, other ones in every epoch" if plan.data.tail else "none"


def _phases(plan: Plan) -> Iterator[tuple[str, ...]]:
    phases = plan.phases
    yield ("", *(phase.name for phase in phases))
    yield ("epochs", *("not known" if phase.epochs is None else f"{phase.epochs:.3g}" for phase in phases))
    yield ("steps, warm-up", *(f"{count(p.steps)}, {count(p.warmup_steps)}" for p in phases))
    yield ("learning rate", *(f"{phase.learning_rate:g}" for phase in phases))
    yield ("batch x accumulated", *(f"{count(p.global_batch)} x {p.accumulation}" for p in phases))
    yield ("negatives of an image", *(phase.negatives for phase in phases))
    yield ("pairs seen", *(count(phase.samples_seen) for phase in phases))
    if any(phase.passes for phase in phases):
        yield ("passes that only rate", *(count(phase.passes or 0) for phase in phases))
    yield ("trainable parameters", *(f"{count(p.trainable)}" for p in phases))
    yield ("of parameters", *(count(phase.parameters) for phase in phases))
    if any(phase.standing for phase in phases):
        yield ("so far", *(phase.standing or "not begun" for phase in phases))


def _memory(plan: Plan) -> Iterator[tuple[str, ...]]:
    steps = [phase.memory for phase in plan.phases]
    yield ("", *(phase.name for phase in plan.phases))
    yield ("weights", *(size(m.weights) for m in steps))
    yield ("optimizer", *("not known" if m.optimizer is None else size(m.optimizer) for m in steps))
    if any(m.copy for m in steps):
        yield ("siamese copy", *(size(m.copy) for m in steps))
    yield (f"{count(plan.chunk_rows)} rows (gradients)", *(f"{size(m.backward)} ({size(m.gradients)})" for m in steps))
    if plan.data.processes > 1:
        yield ("reduction buckets", *(size(m.buckets) for m in steps))
    yield ("embeddings, losses", *(f"{size(m.embeddings)}, {size(m.matrices)}" for m in steps))
    total = "" if plan.memory.device_total is None else f" of {size(plan.memory.device_total)}"
    yield ("together at most", *(f"{size(m.peak)}{total}" for m in steps))
    memory = plan.memory
    yield "host, all processes", f"{size(memory.host)} of {size(memory.host_free)} on this machine"
    yield "host, of one", f"{size(memory.standing)} now, {size(memory.loading)} for loading"


def _disk(plan: Plan) -> Iterator[tuple[str, ...]]:
    yield "checkpoints", plan.save_every
    for phase in plan.phases:
        yield (
            f"  {phase.name}",
            f"{count(phase.checkpoints)} of {size(phase.checkpoint_bytes)}, {count(phase.checkpoints_kept)} kept",
        )
    disk = plan.disk
    yield "data", _kept(plan.data)
    yield "at most", f"{size(disk.peak)}, {size(disk.final)} in the end; {size(disk.free)} free"


def _kept(data: DataPlan) -> str:
    """Where data of the Hub lie; they are not counted."""
    if data.format == "hub" and data.shards is None:
        return f"downloaded to {datasets.config.HF_DATASETS_CACHE}, by the plan too"
    return "read where they are; no copy is kept"


def _tree(plan: Plan) -> Iterator[tuple[str, ...]]:
    yield "./", "model.safetensors, config.json, processor: a plain CLIPModel"
    yield "", "README.md (card), results.json, data_health.json, run.json, plots/"
    if plan.estimated:
        yield "", "forget_ratio.json: the estimated share to forget"
    if plan.measured:
        yield "", "outcomes.safetensors: the outcome on each item measured"
    if plan.noisy:
        yield "", "injected_noise.parquet: the pairs made wrong"
    if plan.prompt:
        yield "negative_prompt/", "the learned prompt"
    if plan.from_scratch:
        yield "initial/", "the model before training"
    for phase in plan.phases:
        yield f"phases/{phase.name}/", "checkpoint-<step>/ and, at its end, final/"
    if plan.published is None:
        yield "published", "nothing (no --push_to_hub)"
    else:
        yield "published", plan.published
        yield "", f"all but {', '.join((*(f'{folder}/' for folder in LOCAL_FOLDERS), *LOCAL_FILES))}"
