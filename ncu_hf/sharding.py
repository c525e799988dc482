"""Weights, gradients and the optimizer's state spread over the processes (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ncu_hf.distributed import world
from ncu_hf.errors import InputError
from ncu_hf.modeling import NCUModel


class ShardedWeights:
    """A model of whose weights, gradients and optimizer state each of W processes holds 1/W between two steps.

    PyTorch's `fully_shard` (FSDP2; Zhao et al. 2023, arXiv:2304.11277). A step gathers the weights once and keeps them
    to its end, as every pass of every chunk needs them. The blocks of the vision tower communicate one by one; all else
    does so together, since how often a step calls the text tower depends on the lengths of a process' captions.
    `logit_scale` is a single number, whose gradient is the same on all processes, and stays whole.

    Args:
        model (`NCUModel`): Frozen as it trains; its parameters are replaced.
        device (`torch.device`): Where it trains.
    """

    def __init__(self, model: NCUModel, device: torch.device):
        self._model = model
        rank, processes = world()
        # Weights are gathered into it where a file is written.
        self._whole = copy.deepcopy(NCUModel(model.clip, model.negative_prompt)).to("cpu") if rank == 0 else None
        options = {"mesh": init_device_mesh(device.type, (processes,)), "reshard_after_forward": False}
        for block in model.clip.vision_model.encoder.layers:
            fully_shard(block, **options)
        reference = [] if model.reference is None else model.reference.parameters()
        fully_shard(model, **options, ignored_params={model.clip.logit_scale, *reference})
        model.set_reshard_after_backward(False)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in it add to gradients that no process has the sum of yet."""
        self._model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._model.set_requires_gradient_sync(True)

    def release(self) -> None:
        """Drop the weights that the step has gathered; the optimizer changes the shards."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def gather(self) -> NCUModel | None:
        """The whole model, in the memory of the first process' host; `None` on the others. A collective."""
        targets = {} if self._whole is None else dict(self._whole.named_parameters())
        for name, parameter in self._model.named_parameters():
            if not name.startswith("reference."):
                weight = full(parameter)
                if targets:
                    targets[name].copy_(weight)
        return self._whole


def full(value: Any) -> Any:
    """A sharded tensor in whole, which is a collective; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Any, parameter: Tensor) -> Any:
    """This process's part of `value` if it is a tensor of the shape of a sharded `parameter`; else as it is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def full_state(optimizer: Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors. A collective where weights are sharded."""
    saved = optimizer.state_dict()
    state = {index: {key: full(value) for key, value in values.items()} for index, values in saved["state"].items()}
    return {**saved, "state": state}


def load_full_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load what [`full_state`] gave, for whichever weights this process holds."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {key: like(value, parameters[index]) for key, value in values.items()}
        for index, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def check_shardable(processes: int, others: dict[str, bool]) -> None:
    """Refuse what does not go together with sharded weights, before anything long starts.

    Args:
        processes (`int`): W.
        others (`dict[str, bool]`): Flag -> whether it is on.

    Raises:
        InputError: one process, or any of the others.
    """
    if processes == 1:
        raise InputError("--shard_weights needs more than one process: accelerate launch --num_processes 2 ...")
    for flag, on in others.items():
        if on:
            raise InputError(f"--shard_weights does not go together with {flag}; leave one of them out.")
