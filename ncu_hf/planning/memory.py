"""How much memory a step needs: the run's own model and losses, with every tensor that they make counted.

Nothing here is a formula of an architecture. The towers run on fake tensors (shapes without data), so that the size of
the model costs nothing; the losses run on a small batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ncu_hf.data import ImageTransform, normalize
from ncu_hf.modeling import NCUModel
from ncu_hf.objectives import Objective
from ncu_hf.objectives.base import ReferenceEmbeds, SampleWeights
from ncu_hf.step import total_loss
from ncu_hf.trainer import NCUTrainer

# Rows of the batch on which the losses are tried; what they need is quadratic in N from there on.
_TRIAL_ROWS = 256
_FLOAT = 4  # bytes: weights, gradients and embeddings are float32, also under autocast


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is active and still alive.

    Memory that a kernel uses inside, and what an allocator keeps in reserve, is not seen.

    Args:
        known (`Iterable[Tensor]`): Tensors whose memory is counted elsewhere; views of them are free.

    Attributes:
        now, peak (`int`): Bytes alive, and the most so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen: dict[int, Any] = {id(storage): weakref.ref(storage) for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def gone(_reference: Any) -> None:
            del self._seen[key]  # another storage may get this id
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def backward_bytes(trainer: NCUTrainer, rows: int, tokens: int, accumulating: bool) -> int:
    """Most memory at any time of encoding a chunk and of its backward pass: activations and gradients.

    Args:
        trainer (`NCUTrainer`): Of the phase; its model is frozen as the phase wants it.
        rows (`int`): Pairs of the chunk.
        tokens (`int`): Length of every caption, start and end token included: the worst case for a batch's longest.
        accumulating (`bool`): The gradients of an earlier chunk are there already. Else they come as the activations
            go.
    """
    size = ImageTransform(trainer.processing_class.image_processor, train=False).output_size
    # accelerate's, which its own configuration file decides where no flag does
    negative, half = trainer.objective.needs_negative_text, trainer.accelerator.mixed_precision in ("bf16", "fp16")
    return encoding_bytes(trainer.model, (rows, 3, *size), tokens, negative, half, accumulating)


def encoding_bytes(
    model: NCUModel,
    pixels: tuple[int, ...],
    tokens: int,
    negative: bool,
    half: bool,
    accumulating: bool,
    lengths: Sequence[int] | None = None,
) -> int:
    """The same of a model without its trainer.

    Args:
        model (`NCUModel`): Frozen as it trains.
        pixels (`tuple[int, ...]`): (B, 3, H, W) of the chunk.
        tokens (`int`): Length of the captions.
        negative (`bool`): Negatives are encoded too.
        half (`bool`): Under autocast.
        accumulating (`bool`): As in [`backward_bytes`].
        lengths (`Sequence[int]`, *optional*): Of each caption, at most `tokens`; B captions of `tokens` otherwise.
    """
    with FakeTensorMode():
        named = chain(model.named_parameters(), model.named_buffers())
        weights = {name: _like_on_cpu(tensor) for name, tensor in named}
        levels = torch.empty(pixels, dtype=torch.uint8)
        captions = torch.ones(pixels[0] if lengths is None else len(lengths), tokens, dtype=torch.int64)
        # The CPU's autocast stands for that of an accelerator, which takes the same matrix products in half precision.
        with LiveBytes(weights.values()) as live, torch.autocast("cpu", torch.bfloat16, enabled=half):
            for weight in weights.values():
                weight.grad = torch.zeros_like(weight) if accumulating and weight.requires_grad else None
            values = normalize(levels, (0.5,) * 3, (0.5,) * 3)
            inputs = (values, captions, captions if negative else None, lengths, lengths)
            weights = {f"model.{name}": weight for name, weight in weights.items()}
            torch.func.functional_call(_Backward(model.train()), weights, inputs)
    return live.peak


def _like_on_cpu(tensor: Tensor) -> Tensor:
    how = {"dtype": tensor.dtype, "requires_grad": tensor.requires_grad}
    return torch.empty_strided(tensor.shape, tensor.stride(), **how)


class _Backward(nn.Module):
    """Both passes as one: checkpointed blocks read their weights in the backward pass too."""

    def __init__(self, model: NCUModel):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> None:
        embeddings, log_scale = self.model(*inputs)
        loss = log_scale + sum(embeds.sum() for embeds in embeddings if embeds is not None)
        loss.backward()


def matrix_bytes(objective: Objective, rows: int, width: int, processes: int = 1) -> int:
    """Most memory at any time of the losses, their plan and their gradient, beyond the embeddings themselves.

    Args:
        objective (`Objective`): The phase's losses.
        rows (`int`): N, pairs of the global batch.
        width (`int`): D, size of an embedding.
        processes (`int`): W, that share the matrices of a sharded objective.
    """
    if rows <= 2 * _TRIAL_ROWS:
        return _objective_peak(objective, rows, width)
    small, large = (_objective_peak(objective, n, width) for n in (_TRIAL_ROWS, 2 * _TRIAL_ROWS))
    square = (large - 2 * small) / (2 * _TRIAL_ROWS**2)  # peak(n) = square n² + line n
    line = small / _TRIAL_ROWS - square * _TRIAL_ROWS
    return round(square * rows**2 / (processes if objective.sharded else 1) + line * rows)


def _objective_peak(objective: Objective, rows: int, width: int) -> int:
    random = torch.Generator().manual_seed(0)
    text = torch.randn(rows, width, generator=random)
    # Pairs that match somewhat: the transport solver is done sooner than on pure noise.
    image, negative = (text + torch.randn(rows, width, generator=random) for _ in range(2))
    leaves = [nn.functional.normalize(embeds, dim=-1).requires_grad_() for embeds in (image, text, negative)]
    scale = torch.tensor(3.0, requires_grad=True)
    negative_embeds = leaves[2] if objective.needs_negative_text else None
    beside: list[ReferenceEmbeds | SampleWeights] = []
    if objective.needs_reference:
        beside.append(ReferenceEmbeds(leaves[0].detach(), leaves[1].detach()))
    if objective.needs_sample_weights:
        beside.append(SampleWeights(torch.ones(rows), torch.ones(rows), torch.tensor(1.0)))
    with LiveBytes(leaves) as live:
        outputs = objective(leaves[0], leaves[1], negative_embeds, scale, *beside)
        gradients = torch.autograd.grad(total_loss(outputs), [*leaves, scale], allow_unused=True)
        del gradients
    return live.peak


def embedding_bytes(objective: Objective, rows: int, width: int) -> int:
    """The embeddings (N, D) of all processes that every process gathers."""
    branches = 2 + objective.needs_negative_text + 2 * objective.needs_reference
    branches += 4 * objective.needs_sample_weights  # of one of the banks, in float64
    return branches * rows * width * _FLOAT


def optimizer_bytes(trainer: NCUTrainer) -> int | None:
    """State of the optimizer after its first step, found by a step on tensors without data.

    Returns:
        `int`: bytes; `None` where the optimizer refuses such tensors (some need an accelerator, or look at values).
    """
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    if "fused" in options:  # the same state, but its kernels know real devices only
        options = {**options, "fused": False}
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    parameters = [nn.Parameter(torch.empty_like(parameter, device="meta")) for parameter in trained]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    try:
        optimizer = kind(parameters, **options)
        optimizer.step()
    except (RuntimeError, TypeError, ValueError):
        return None
    values = chain.from_iterable(state.values() for state in optimizer.state.values())
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def parameter_bytes(model: nn.Module, *, trainable: bool = False) -> int:
    """Bytes of all weights, or of those that train (which is what their gradients take)."""
    return sum(p.nbytes for p in model.parameters() if p.requires_grad or not trainable)
