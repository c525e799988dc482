"""Collectives of a step: rows of every process, in the order of the global batch."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_BROADCAST_ROWS = 65_536


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_sizes(rows: int, device: torch.device) -> list[int]:
    """Number of rows that each process holds; they differ where a process had to skip a record."""
    _, processes = world()
    if processes == 1:
        return [rows]
    mine = torch.tensor([rows], device=device)
    sizes = mine.new_empty(processes)
    dist.all_gather(list(sizes.split(1)), mine)
    return sizes.tolist()


@torch.no_grad()
def gather_rows(local: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate the rows of all processes, without gradient.

    The gradient needs no collective: every process computes the loss of the whole batch, takes its gradient with
    respect to its own rows, and the all-reduce of the parameters' gradients adds the processes up.

    Args:
        local (`Tensor`): (sizes[rank], ...).
        sizes (`list[int]`): Rows of each process, from [`gather_sizes`].

    Returns:
        `Tensor`: (sum(sizes), ...).
    """
    _, processes = world()
    if processes == 1:
        return local
    # Equal shapes for the collective: the rows that a process lacks are padding and are cut off again.
    padded = local.new_zeros(max(sizes), *local.shape[1:])
    padded[: local.shape[0]] = local
    blocks = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(blocks, padded)
    return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)])


@dataclass(frozen=True)
class Shard:
    """The rows of a global batch that this process holds, and the collectives that make one batch of them.

    A matrix of N rows is spread over the processes by its rows; what has one entry a column is the same on all. Every
    process calls the same methods in the same order. Gradients are exact under one rule: what [`all_rows`] returns
    meets rows of this process alone (as in `own @ all.T`), and what [`sum`] returns is the same on all processes, a
    part of one loss that all of them hold.

    Args:
        sizes (`tuple[int, ...]`): Rows of each process.
        rank (`int`): Which of them this process is.
    """

    sizes: tuple[int, ...]
    rank: int = 0

    @classmethod
    def of(cls, rows: int, device: torch.device) -> Shard:
        """The shard of a process with this many rows; a collective."""
        return cls(tuple(gather_sizes(rows, device)), world()[0])

    @classmethod
    def whole(cls, rows: int) -> Shard:
        """A batch that this process holds alone: no method talks to another."""
        return cls((rows,))

    @property
    def n(self) -> int:
        """N, rows of the global batch."""
        return sum(self.sizes)

    @property
    def held(self) -> int:
        """Rows of this process."""
        return self.sizes[self.rank]

    @property
    def start(self) -> int:
        """Rows of the global batch before the first of this process."""
        return sum(self.sizes[: self.rank])

    @property
    def rows(self) -> slice:
        """Where this process's rows are in the global batch."""
        return slice(self.start, self.start + self.held)

    def all_rows(self, local: Tensor) -> Tensor:
        """(sizes[rank], ...) -> (N, ...), with gradient."""
        return local if len(self.sizes) == 1 else _AllRows.apply(local, self)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the processes; the gradient is that of this process's part."""
        return value if len(self.sizes) == 1 else _Sum.apply(value)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the global batch of one value a row, (sizes[rank],) -> 0-dim, with gradient."""
        return self.sum(values.sum()) / self.n

    @torch.no_grad()
    def largest(self, value: Tensor) -> Tensor:
        """Maximum over the processes."""
        if len(self.sizes) > 1:
            value = value.clone()
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return gather_rows(local, list(shard.sizes))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        sizes = ctx.shard.sizes
        parts = gradient.new_zeros(len(sizes), max(sizes), *gradient.shape[1:])  # equal shapes for the collective
        for part, own in zip(parts, gradient.split(sizes), strict=True):
            part[: len(own)] = own
        total = torch.empty_like(parts[0])
        dist.reduce_scatter(total, list(parts))
        return total[: ctx.shard.held], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, as `DistributedDataParallel` does with gradients."""
    _, processes = world()
    if processes == 1:
        return
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
        work.wait()
    for tensor in tensors:
        tensor /= processes


def gather_json(value: object, device: torch.device) -> list:
    """The JSON-able value of every process, in order of rank (as JSON: nothing is unpickled)."""
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    sizes = gather_sizes(data.shape[0], device)
    return [json.loads(bytes(part.tolist())) for part in gather_rows(data, sizes).split(sizes)]


def broadcast_json(value: object, device: torch.device) -> object:
    """The first process' JSON-able value, on every process."""
    return gather_json(value if world()[0] == 0 else None, device)[0]


def broadcast_tensor(value: Tensor | None, shape: list[int], device: torch.device) -> Tensor:
    """The first process' float32 tensor of this shape, on every process, in the memory of the CPU.

    `device` is that of the collective. Rows go one block at a time, so that the device need not hold all of them.
    """
    if world()[1] == 1:
        return value
    found = torch.empty(shape) if value is None else value
    for block in found.split(_BROADCAST_ROWS):
        sent = block.to(device)
        dist.broadcast(sent, src=0)
        block.copy_(sent)
    return found


@contextmanager
def local_first() -> Iterator[None]:
    """Let the first process of each machine go ahead: it fills the caches that the others read."""
    ahead = world()[1] == 1 or int(os.environ.get("LOCAL_RANK", world()[0])) == 0
    if not ahead:
        barrier()
    try:
        yield
    finally:
        if ahead:
            barrier()


def barrier() -> None:
    """Wait for all processes."""
    if world()[1] > 1:
        dist.barrier()


def leave() -> None:
    """End the process group. A process that exits with the group's threads alive may abort.

    Wrapped models hold the group, and trainers, which form cycles, hold the models: they are collected first.
    """
    if world()[1] > 1:
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
