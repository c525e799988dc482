"""Which part of the data a process takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from ncu_hf.data.files import fingerprint_text
from ncu_hf.errors import InputError

# Value of this process -> values of all processes, in order of rank (JSON-able); a collective.
Gather = Callable[[Any], list[Any]]


def alone(value: Any) -> list[Any]:
    """`Gather` of a single process."""
    return [value]


class Split(NamedTuple):
    """Which part of the data a process takes, and how.

    Args:
        batch_size (`int`): Records a batch and process (B).
        rank, world_size (`int`): This process and the number of processes (W).
        workers (`int`): Worker processes (K); 0 loads in this process.
        seed (`int`): Of order, crops and augmentation.
        epochs (`int`, *optional*): Epoch to stop before; endless by default.
        gather (`Gather`): Exchange between processes.
        pin_memory (`bool`): Batches lie in page-locked memory, from where a GPU fetches them by itself.
    """

    batch_size: int
    rank: int
    world_size: int
    workers: int
    seed: int
    epochs: int | None = None
    gather: Gather = alone
    pin_memory: bool = False

    @property
    def global_batch(self) -> int:
        """`int`: N = B·W."""
        return self.batch_size * self.world_size

    def is_over(self, epoch: int) -> bool:
        """Whether no epoch from this one on is wanted."""
        return self.epochs is not None and epoch >= self.epochs

    def check(self) -> None:
        """
        Raises:
            InputError: a number is out of range.
        """
        if self.batch_size < 1 or self.workers < 0 or self.seed < 0 or not 0 <= self.rank < self.world_size:
            raise InputError(
                f"Loader: batch_size {self.batch_size}, num_workers {self.workers}, seed {self.seed}, rank "
                f"{self.rank} of {self.world_size}: batch_size must be at least 1, the others not negative, rank "
                "below the number of processes."
            )

    def too_small(self, name: str, records: int) -> str:
        """Message for data that fills no batch."""
        return (
            f"{name}: {records} record(s), fewer than one global batch of {self.global_batch} ({self.batch_size} x "
            f"{self.world_size} process(es)). Use a smaller batch or more data."
        )


class Named(Protocol):
    """What tells data apart."""

    name: str
    fingerprint: str


def check_same_data(state: Mapping[str, Any], source: Named, seed: int) -> None:
    """A saved position is good for its own data and seed only.

    Raises:
        InputError: it belongs to others.
    """
    if not isinstance(state, Mapping) or state.get("fingerprint") != source.fingerprint:
        raise InputError(f"{source.name}: the saved position belongs to other data, or these have changed since.")
    if state.get("seed") != seed:
        raise InputError(f"{source.name}: the saved position belongs to seed {state.get('seed')}, not {seed}.")
    if state.get("checksum") != _checksum(state):
        raise InputError(f"{source.name}: the saved position is damaged. Take an earlier one, or start again.")


def sealed(state: dict[str, Any]) -> dict[str, Any]:
    """A position (JSON-able) with its checksum, by which one that was cut or edited is told."""
    return {**state, "checksum": _checksum(state)}


def _checksum(state: Mapping[str, Any]) -> str:
    content = {name: value for name, value in state.items() if name != "checksum"}
    return fingerprint_text(json.dumps(content, sort_keys=True))
