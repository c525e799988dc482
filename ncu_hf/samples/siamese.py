"""A siamese copy of the model that goes one step ahead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from ncu_hf.callbacks import MAX_LOG_SCALE
from ncu_hf.distributed import average
from ncu_hf.modeling import Embeddings, NCUModel
from ncu_hf.samples.base import Step
from ncu_hf.step import two_stage_backward


class Siamese:
    """A copy of the parameters that train; it shares the others, and the code, with its model.

    Calling it is calling the model with these parameters.

    Args:
        model (`NCUModel`): The model to copy.
        optimizer (`Optimizer`): Of that model.
        make_optimizer (`Callable`): Groups of parameters -> an optimizer of the same kind.
    """

    def __init__(self, model: NCUModel, optimizer: Optimizer, make_optimizer: Callable[[list[dict]], Optimizer]):
        self._model, self._base_optimizer = model, optimizer
        self._base = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._own = {name: nn.Parameter(p.detach().clone()) for name, p in self._base.items()}
        self._copies = [(p, self._own[name]) for name, p in self._base.items()]
        of = {id(base): own for base, own in self._copies}
        groups = [{**group, "params": [of[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
        self._optimizer = make_optimizer(groups)

    def __call__(self, *inputs: Any) -> tuple[Embeddings, Tensor]:
        return functional_call(self._model, self._own, inputs)

    @property
    def log_scale(self) -> Tensor:
        """0-dim, log of s."""
        return self._own.get("clip.logit_scale", self._model.clip.logit_scale)

    @torch.no_grad()
    def follow(self) -> None:
        """Become a copy of the model as it is, with the state of its optimizer: moments, rates, number of steps."""
        for base, own in self._copies:
            own.copy_(base)
            state = self._base_optimizer.state.get(base, {})
            self._optimizer.state[own] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        for base, own in zip(self._base_optimizer.param_groups, self._optimizer.param_groups, strict=True):
            own.update({key: value for key, value in base.items() if key != "params"})

    def go_ahead(self, step: Step, losses: Callable[..., dict[str, Tensor]]) -> None:
        """One optimizer step on the batch, as the model's own would be with these losses: clipped, s clamped.

        A gradient that is not finite (an overflow of half precision) moves nothing.
        """
        two_stage_backward(
            partial(step.encode, self),
            step.chunks,
            losses,
            backward=lambda loss: (loss * step.loss_scale).backward(),
            check=step.check,
            shard=step.shard,
        )
        parameters = [own for own in self._own.values() if own.grad is not None]
        average([own.grad for own in parameters])
        for own in parameters:
            own.grad /= step.loss_scale
        norm = nn.utils.clip_grad_norm_(parameters, step.max_grad_norm or torch.inf)
        if norm.isfinite():
            self._optimizer.step()
            self._clamp()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def _clamp(self) -> None:
        if "clip.logit_scale" in self._own:
            self._own["clip.logit_scale"].clamp_(0, MAX_LOG_SCALE)
