"""The one loader of training: endless batches of this process, from any saved position on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.loader.indexed import IndexedBatches
from ncu_hf.data.loader.split import Gather, Split, alone, sealed
from ncu_hf.data.loader.streamed import StreamedBatches
from ncu_hf.data.records import PairSource
from ncu_hf.data.sources.stream_source import StreamSource


class PairLoader:
    """Batches of this process, endlessly, epoch after epoch.

    Every record goes to exactly one process and worker an epoch, all processes make the same number of steps, and the
    records that do not fill a global batch of N = B·W are dropped, other ones in each epoch. [`IndexedBatches`] and
    [`StreamedBatches`] say how. The content of a record in a batch (crop, augmentation) depends on the seed, its epoch
    and its position alone. Unusable records are left out and listed in `batch["skipped"]`; the batch is smaller by
    them.

    Args:
        source (`PairSource` or `StreamSource`): From [`open_pairs`].
        collator (`PairCollator`): Records -> batch.
        batch_size (`int`): Records a batch and process (B).
        rank, world_size (`int`): This process and the number of processes (W).
        seed (`int`): Of order, crops and augmentation, >= 0.
        num_workers (`int`, *optional*, defaults to 0): Worker processes (K); 0 loads in this process.
        state (`dict`, *optional*): Position to go on from, see [`state_dict`].
        epochs (`int`, *optional*): Stop when this many epochs of the data are complete; endless by default.
        gather (`Gather`, *optional*): Exchange between the processes; needed for streams on more than one.
        pin_memory (`bool`, *optional*, defaults to `False`): Batches lie in page-locked memory; needs CUDA.

    Attributes:
        last_wait_seconds (`float`): How long the consumer waited for the last batch.

    Raises:
        InputError: fewer records than one global batch; bad numbers; a position in other data.
    """

    def __init__(
        self,
        source: PairSource | StreamSource,
        collator: PairCollator,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        num_workers: int = 0,
        state: dict[str, Any] | None = None,
        epochs: int | None = None,
        gather: Gather = alone,
        pin_memory: bool = False,
    ):
        split = Split(batch_size, rank, world_size, num_workers, seed, epochs, gather, pin_memory)
        split.check()
        self.last_wait_seconds = 0.0
        kind = StreamedBatches if isinstance(source, StreamSource) else IndexedBatches
        self._batches = kind(source, collator, split, state)

    @property
    def readers(self) -> int:
        """`int`: places of this process that read data: its workers, or itself; not more than it has shards."""
        return self._batches.readers

    @property
    def batches_per_epoch(self) -> int | None:
        """`int`: global batches an epoch; `None` for a stream whose length is not known."""
        return self._batches.batches_per_epoch

    @property
    def tail_dropped(self) -> int | None:
        """`int`: records that are left out in each epoch because they do not fill a global batch."""
        return self._batches.tail_dropped

    def state_dict(self) -> dict[str, Any]:
        """`dict`: position behind the last batch, of all processes; JSON-able. A collective.

        It can be continued by any number of processes and workers. For the same number of processes and workers the
        order stays the same; for indexable sources it always does.
        """
        return sealed(self._batches.state())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = iter(self._batches)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.last_wait_seconds = time.perf_counter() - started
            if batch is None:
                return
            yield batch
