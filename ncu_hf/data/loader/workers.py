"""Batches made in worker processes, in a fixed order, with errors as the one line that they are."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Generator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ncu_hf.errors import InputError, TrainingStopped

# (worker, workers) -> what this worker makes
Make = Callable[[int, int], Iterator[Any]]


def in_workers(make: Make, workers: int, pin_memory: bool = False) -> Iterator[Any]:
    """What `make(0, K)`, ..., `make(K - 1, K)` give, one of each in turn; with 0 workers `make(0, 1)` in this process.

    Workers are two items ahead each. With `pin_memory` a thread of this process moves the tensors of an item into
    page-locked memory as it comes.

    Raises:
        InputError, TrainingStopped: as raised in a worker, without its traceback.
        RuntimeError: any other error of a worker, with its traceback.
    """
    loader = DataLoader(
        _Work(make),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        # Workers share the index of the data with this process instead of getting a pickled copy; "fork" is not the
        # default in a spawned process, nor from Python 3.14 on.
        multiprocessing_context="fork" if workers else None,
        generator=Generator(),  # its own: the default one would draw from the global random state
    )
    with _single_threaded_tokenizers():
        items = iter(loader)  # starts the workers
    try:
        for item in items:
            if isinstance(item, _Failure):
                raise item.error()
            yield item
    finally:
        del items  # ends the workers now: the traceback of an error would hold on to them


class _Failure(NamedTuple):
    """An error on its way out of a worker. DataLoader would make a page of traceback of one line."""

    kind: str
    message: str

    def error(self) -> Exception:
        if self.kind == "input":
            return InputError(self.message)
        if self.kind == "stopped":
            return TrainingStopped(self.message)
        return RuntimeError(f"A data worker failed:\n{self.message}")


class _Work(IterableDataset):
    """What a worker runs. DataLoader asks the workers in turn."""

    def __init__(self, make: Make):
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        if info is None:
            yield from self._make(0, 1)
            return
        try:
            yield from self._make(info.id, info.num_workers)
        except InputError as error:
            yield _Failure("input", str(error))
        except TrainingStopped as error:
            yield _Failure("stopped", str(error))
        except Exception:  # raised again in the main process
            yield _Failure("other", traceback.format_exc())


@contextlib.contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Workers inherit the setting: one thread each, and no warning of `tokenizers` about the fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
