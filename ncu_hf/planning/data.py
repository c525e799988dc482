"""What a run would read: how much, by whom, and how fast it comes."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncu_hf.data import PairSource, StreamSource
from ncu_hf.data.loader.reader import BLOCK_BYTES, BLOCK_ROWS
from ncu_hf.distributed import gather_json, world
from ncu_hf.run import Run

# Seconds that the loader is tried for after its first batch, and how many batches each reader makes at most.
_TRIAL_SECONDS, _TRIAL_TURNS = 10, 4
# Batches that `DataLoader` keeps ready for each worker.
_PREFETCHED = 2
# Memory that a forked worker comes to have for itself before it holds any data (measured: 40 MiB).
_WORKER_BYTES = 40 * 2**20


@dataclass(frozen=True)
class DataPlan:
    """The training data and how they are shared.

    Args:
        name, format (`str`): Of the source.
        revision (`str`, *optional*): Commit of a Hub data set.
        fingerprint (`str`): Of the content.
        samples (`float`): Pairs of an epoch.
        exact (`bool`): Whether they were counted.
        counted (`str`): Where that number comes from.
        by_density (`float`, *optional*): Pairs of an epoch of a stream, judged by the first shard and the sizes of
            all; `None` where that tells nothing.
        subset (`dict`, *optional*): How a part of the data was chosen.
        shards (`int`, *optional*): Files of a stream that are read; `None` for indexed data, which any process reads
            anywhere.
        all_shards (`int`, *optional*): Files of the stream as a whole.
        shard_bytes (`int`, *optional*): Their size, where all of them tell it.
        processes, readers (`int`): W, and readers of each of them.
        record_bytes (`float`, *optional*): An encoded record on average, where that is known.
        tail (`int`, *optional*): Pairs that an epoch drops; `None` where that turns out during the run.
        max_bad_fraction (`float`): Share of unusable records above which the run stops.
    """

    name: str
    format: str
    revision: str | None
    fingerprint: str
    samples: float
    exact: bool
    counted: str
    by_density: float | None
    subset: dict[str, Any] | None
    shards: int | None
    all_shards: int | None
    shard_bytes: int | None
    processes: int
    readers: int
    record_bytes: float | None
    tail: int | None
    max_bad_fraction: float

    @property
    def held_by_reader(self) -> float:
        """`float`: bytes of encoded records that a reader of a stream holds: two blocks."""
        if self.shards is None:
            return 0.0
        block = BLOCK_BYTES if self.record_bytes is None else min(BLOCK_ROWS * self.record_bytes, BLOCK_BYTES)
        return 2.0 * min(block, (self.shard_bytes or block))


@dataclass(frozen=True)
class LoaderTrial:
    """What the run's own loader did when it was asked for its first batches.

    Args:
        first_seconds (`float`): Until the first batch was there, on the slowest process, start of workers included.
        rate (`float`): Pairs a second of all processes together.
        settled (`bool`): It was measured after what the workers had ready; if not, it is the least that they make.
        tokens (`int`): Longest caption of the batches that were made.
        batch_bytes (`int`): Pixels (uint8) and token ids of a full batch of one process.
    """

    first_seconds: float
    rate: float
    settled: bool
    tokens: int
    batch_bytes: int


def plan_data(run: Run) -> DataPlan:
    """Read off the source what an epoch consists of, and who reads it."""
    source, loader = run.source, run.loader()
    samples, exact, counted = _samples(source)
    shards, shard_bytes = _shards(source)
    return DataPlan(
        name=source.name,
        format=source.format,
        revision=source.revision,
        fingerprint=source.fingerprint,
        samples=samples,
        exact=exact,
        counted=counted,
        by_density=_by_density(source),
        subset=source.description.get("subset"),
        shards=shards,
        all_shards=len(source.shards) if isinstance(source, StreamSource) else None,
        shard_bytes=shard_bytes,
        processes=world()[1],
        readers=loader.readers,
        record_bytes=_record_bytes(source),
        tail=loader.tail_dropped,
        max_bad_fraction=run.arguments.data.max_bad_fraction,
    )


def _samples(source: PairSource | StreamSource) -> tuple[float, bool, str]:
    """Pairs of an epoch, whether they were counted, and how."""
    if not isinstance(source, StreamSource):
        return len(source), True, "counted when the data were opened"
    if source.rows is not None:
        return source.rows, True, "as the shards tell"
    if source.expected_rows is not None:
        return source.expected_rows, False, "as its card or --train_pairs states; counted while they are read"
    rows = sum((source.estimated_rows(shard) if stop is None else stop) - first for shard, first, stop in source.parts)
    return rows, False, "judged by the first shard; counted while they are read"


def _by_density(source: PairSource | StreamSource) -> float | None:
    """Pairs of an epoch if all shards were as dense as the first; one request where that is far away."""
    if not isinstance(source, StreamSource) or source.rows is not None:
        return None
    sizes = [shard.size for shard in source.shards]
    rows = source.first_rows or source.shards[0].estimate_rows()
    if not rows or not all(sizes):
        return None
    whole = rows / sizes[0] * sum(sizes)
    return whole if source.expected_rows is None else whole * source.expected_rows / source.total_rows


def _shards(source: PairSource | StreamSource) -> tuple[int | None, int | None]:
    """Number and bytes of the files of a stream that an epoch reads."""
    if not isinstance(source, StreamSource):
        return None, None
    used = {shard for shard, _, _ in source.parts}
    sizes = [source.shards[shard].size for shard in used]
    return len(used), None if None in sizes else sum(sizes)


def _record_bytes(source: PairSource | StreamSource) -> float | None:
    if not isinstance(source, StreamSource):
        return None
    sized = [(shard.size, source.estimated_rows(i)) for i, shard in enumerate(source.shards) if shard.size is not None]
    rows = sum(rows for _, rows in sized)
    return sum(size for size, _ in sized) / rows if rows else None


def stand_in_partners(source: PairSource | StreamSource, count: int) -> Tensor | None:
    """Drawn partners (n, count): they are chosen by the model in the run. As many different ones as there can be."""
    if not count:
        return None
    return torch.randint(len(source), (len(source), count), generator=torch.Generator().manual_seed(0))


def try_loader(run: Run, data: DataPlan, partners: Tensor | None = None) -> LoaderTrial:
    """Make the first batches of the run with its own loader. A collective: all processes make the same number."""
    training, readers = run.arguments.training, data.readers
    # Not beyond the end of an epoch, where there is more to do.
    epoch = int(min(data.samples, data.by_density or data.samples)) // training.global_batch_size
    ready = _PREFETCHED * readers if training.dataloader_num_workers else 0
    started = time.perf_counter()
    with closing(iter(run.loader(partners=partners))) as batches:
        seen = [_measured(next(batches))]
        first = _slowest(time.perf_counter() - started, run)
        # Readers work side by side: in about the time of the first batch each of them makes one.
        turns = min(int(_TRIAL_SECONDS / first), _TRIAL_TURNS)
        settled = turns > 0 and ready + turns * readers < epoch
        if settled:
            seen += [_measured(next(batches)) for _ in range(ready)]
            started = time.perf_counter()
        made = turns * readers if settled else min(turns * readers, max(epoch - 1, 0))
        seen += [_measured(next(batches)) for _ in range(made)]
        seconds = _slowest(time.perf_counter() - started, run)
    batches_made = made if settled else max(1 + made, min(readers, epoch))
    tokens = round(_slowest(max(length for _, length in seen), run))
    image = max(image for image, _ in seen)
    return LoaderTrial(
        first_seconds=first,
        rate=training.global_batch_size * batches_made / seconds,
        settled=settled,
        tokens=tokens,
        batch_bytes=training.per_device_train_batch_size * (image + tokens * torch.int64.itemsize),
    )


def _slowest(value: float, run: Run) -> float:
    return max(gather_json(value, run.arguments.training.device))


def _measured(batch: dict[str, Any]) -> tuple[int, int]:
    """Bytes of an image and length of the captions. The batch itself is let go at once."""
    return batch["pixel_values"][:1].nbytes, batch["input_ids"].shape[1]


def loading_bytes(data: DataPlan, trial: LoaderTrial, workers: int) -> float:
    """Host memory of a process for data: what its readers hold, and the batches that are ready or in the making."""
    batches, processes = ((_PREFETCHED + 1) * data.readers, data.readers) if workers else (1, 0)
    return data.readers * data.held_by_reader + processes * _WORKER_BYTES + batches * trial.batch_bytes
