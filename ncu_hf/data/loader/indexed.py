"""Batches of an indexable source: one permutation of all rows an epoch, cut into batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.loader.split import Split, check_same_data
from ncu_hf.data.loader.workers import in_workers
from ncu_hf.data.order import epoch_order
from ncu_hf.data.records import Located, PairSource
from ncu_hf.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexedPosition:
    """The next batch takes the records from place `position` of the order of `epoch` on."""

    epoch: int = 0
    position: int = 0


class IndexedBatches:
    """Batches of one process over an indexable source.

    Batch b of an epoch is the places [bN, (b + 1)N) of its permutation; rank r takes the r-th of W slices. The order
    depends on neither W nor the number of workers, any place is reached without reading what lies before, and the
    tail that does not fill a global batch is dropped.

    Args:
        source (`PairSource`): The pairs.
        collator (`PairCollator`): Records -> batch.
        split (`Split`): Which part this process takes.
        state (`dict`, *optional*): Where to go on, from [`state`].
    """

    def __init__(self, source: PairSource, collator: PairCollator, split: Split, state: dict[str, Any] | None):
        self._source, self._collator, self._split = source, collator, split
        self.readers = max(split.workers, 1)
        self.batches_per_epoch, self.tail_dropped = divmod(len(source), split.global_batch)
        if not self.batches_per_epoch:
            raise InputError(split.too_small(source.name, len(source)))
        self._start = self._position = IndexedPosition()
        if state is not None:
            check_same_data(state, source, split.seed)
            self._start = self._position = IndexedPosition(state["epoch"], state["position"])

    def state(self) -> dict[str, Any]:
        """Position behind the last batch; the same on all processes."""
        data = {"fingerprint": self._source.fingerprint, "seed": self._split.seed}
        return {**data, "epoch": self._position.epoch, "position": self._position.position}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._split.rank == 0 and self.tail_dropped:
            logger.info(
                "%d pairs of each epoch, other ones in every epoch, do not fill a batch and are dropped.",
                self.tail_dropped,
            )
        self._start = self._position
        for number, batch in enumerate(in_workers(self._make, self._split.workers, self._split.pin_memory)):
            here = self._place(number)
            if self._split.is_over(here.epoch):
                return
            self._position = IndexedPosition(here.epoch, here.position + self._split.global_batch)
            yield batch

    def _place(self, number: int) -> IndexedPosition:
        """Where batch `number` after the start begins."""
        first = (len(self._source) - self._start.position) // self._split.global_batch
        if number < first:
            return IndexedPosition(self._start.epoch, self._start.position + number * self._split.global_batch)
        epochs, batch = divmod(number - first, self.batches_per_epoch)
        return IndexedPosition(self._start.epoch + 1 + epochs, batch * self._split.global_batch)

    def _make(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        order, order_epoch, split = None, -1, self._split
        for number in count(worker, workers):
            place = self._place(number)
            if place.epoch != order_epoch:
                order, order_epoch = epoch_order(len(self._source), split.seed, place.epoch), place.epoch
            first = place.position + split.rank * split.batch_size
            positions = range(first, first + split.batch_size)
            records = [self._located(int(order[position]), place.epoch, position) for position in positions]
            yield self._collator(records, seed=split.seed)

    def _located(self, index: int, epoch: int, position: int) -> Located:
        return Located(self._source[index], self._source.shard_of(index), epoch, (position,), index)
