"""One training step in two stages, so that chunks and processes give the gradient of one batch on one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ncu_hf.distributed import Shard, world
from ncu_hf.modeling import Embeddings

Encode = Callable[[dict[str, Tensor]], tuple[Embeddings, Tensor]]
ObjectiveFunction = Callable[[Tensor, Tensor, Tensor | None, Tensor, Shard], dict[str, Tensor]]


def total_loss(losses: dict[str, Tensor]) -> Tensor:
    """Sum of the entries whose key ends in `_loss`."""
    return sum(value for key, value in losses.items() if key.endswith("_loss"))


class Chunks(NamedTuple):
    """A batch in parts that are encoded one after the other.

    Attributes:
        parts (`list[dict[str, Tensor]]`): Tensors (b, ...). Images are in the order of the batch. The first parts hold
            all captions, which need not be those of their images; the last ones may hold images alone.
        captions (`Tensor`, *optional*): (B,) int64, which row of the batch each caption of the parts is of; the order
            of the batch by default.
    """

    parts: list[dict[str, Tensor]]
    captions: Tensor | None = None


def split_rows(batch: dict[str, Tensor], chunk_size: int | None, lengths: Sequence[int] | None = None) -> Chunks:
    """Cut the tensors of a batch (B, ...) into chunks of at most `chunk_size` rows (all of them if `None`).

    Args:
        batch (`dict[str, Tensor]`): Images in `pixel_values`; captions in all others.
        chunk_size (`int`, *optional*): Most rows of a chunk.
        lengths (`Sequence[int]`, *optional*): Of the captions. With them, captions of like length come together, and
            more than `chunk_size` of them where that is no more tokens than as many of the longest: less of a chunk is
            padding, and the text tower is called less often.
    """
    rows = len(next(iter(batch.values())))
    size = chunk_size or rows
    if lengths is None or size >= rows:
        return Chunks([{key: value[i : i + size] for key, value in batch.items()} for i in range(0, rows, size)])
    order = sorted(range(rows), key=lengths.__getitem__, reverse=True)
    parts = [{"pixel_values": images} for images in batch["pixel_values"].split(size)]
    for part, captions in zip(parts, _deal(order, lengths, size * lengths[order[0]]), strict=False):
        part |= {key: value[captions] for key, value in batch.items() if key != "pixel_values"}
    return Chunks(parts, torch.tensor(order))


def _deal(order: list[int], lengths: Sequence[int], most: int) -> list[list[int]]:
    """Cut `order` into pieces whose lengths sum to `most` at most."""
    pieces, tokens = [[]], 0
    for caption in order:
        tokens += lengths[caption]
        if tokens > most:
            pieces.append([])
            tokens = lengths[caption]
        pieces[-1].append(caption)
    return pieces


def two_stage_backward(
    encode: Encode,
    chunks: Chunks,
    objective: ObjectiveFunction,
    *,
    backward: Callable[[Tensor], None],
    check: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    shard: Shard | None = None,
    sharded: bool = False,
) -> dict[str, Tensor]:
    """Accumulate in the parameters the gradient of the loss of the global batch.

    1. Encode the chunks, the last one with graph; compute the objective on the embeddings of all processes, and its
       gradient with respect to this process's rows and to log s.
    2. Drive the last chunk's part of the gradient back through the towers; then encode each other chunk again, with
       graph, and do the same.

    Memory for activations is that of one chunk (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under
    Memory Limited Setup", arXiv:2101.06983). `DistributedDataParallel` averages over processes where the gradient of
    the global batch is the sum, hence the factor W on the rows' part; log s has the same, whole gradient everywhere.

    Args:
        encode (`Encode`): The (wrapped) model's forward: chunk -> (`Embeddings`, `logit_scale`). Deterministic.
        chunks (`Chunks`): This process's rows.
        objective: Embeddings, log s and the [`Shard`] that the embeddings are -> losses and statistics.
        backward: Runs a scalar's backward pass (a gradient scaler may hide behind it).
        check: Called with the loss before any gradient is accumulated; raises to refuse the step.
        no_sync: Context in which a pass does not synchronise; used for all chunks but the one that comes last.
        shard (`Shard`, *optional*): The leading rows of each process that count; 0 let one without a usable record take
            part in the collectives. All rows of a process that is alone by default. It is for the caller to know, who
            can exchange sizes before the towers are at work: a GPU would have to be waited for.
        sharded (`bool`, *optional*, defaults to `False`): `objective` takes this process's rows, and talks to the other
            processes itself; else the embeddings of the global batch are gathered for it.

    Returns:
        `dict[str, Tensor]`: what `objective` returned, detached.
    """

    def synchronised(yes: bool) -> AbstractContextManager:
        return nullcontext() if yes else no_sync()

    *earlier, last = chunks.parts
    with torch.no_grad():
        encoded = [encode(chunk)[0] for chunk in earlier]
    with torch.enable_grad(), synchronised(not earlier):
        embeddings, log_scale = encode(last)
    parts = [*encoded, embeddings]
    starts, local = _starts(parts), _concatenate(parts, chunks.captions, None if shard is None else shard.held)
    shard = Shard.whole(len(local.image)) if shard is None else shard
    outputs, gradients, scale_gradient = _objective_gradients(
        objective, local, log_scale.detach(), check, shard, sharded
    )
    gradients = _with_captions(gradients, chunks.captions)

    surrogate = _surrogate(embeddings, gradients, starts[-1]) + log_scale * scale_gradient
    images_learn = embeddings.image.requires_grad
    if surrogate.requires_grad or embeddings.text is not None:
        with synchronised(not earlier):
            backward(surrogate)
    for position in reversed(range(len(earlier))):
        if encoded[position].text is None and not images_learn:
            continue
        with synchronised(position == 0):
            embeddings, log_scale = encode(earlier[position])
            # Every parameter has a part in the first chunk, as `DistributedDataParallel` expects of a pass that it
            # synchronises.
            backward(_surrogate(embeddings, gradients, starts[position]) + log_scale * 0)
    return outputs


def _starts(parts: Sequence[Embeddings]) -> list[tuple[int, ...]]:
    """Of each part, how many rows of each branch come before it."""
    starts = [(0, 0, 0)]
    for part in parts[:-1]:
        sizes = (0 if embeds is None else len(embeds) for embeds in part)
        starts.append(tuple(start + size for start, size in zip(starts[-1], sizes, strict=True)))
    return starts


def _with_captions(embeddings: Embeddings, order: Tensor | None) -> Embeddings:
    """The same images; texts and negatives in another order."""
    if order is None:
        return embeddings
    order = order.to(embeddings.image.device, non_blocking=True)
    return Embeddings(embeddings.image, *(None if own is None else own[order] for own in embeddings[1:]))


def _surrogate(embeddings: Embeddings, gradients: Embeddings, starts: Sequence[int]) -> Tensor:
    """A scalar whose gradient is W times that of the loss, with respect to rows from each branch's start on."""
    _, processes = world()
    total = 0
    for embeds, gradient, start in zip(embeddings, gradients, starts, strict=True):
        if embeds is not None:
            own = gradient[start : start + len(embeds)]
            total = total + processes * (embeds[: len(own)] * own).sum()
    return total


def pad_empty(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch (B, ...) as it is, or one row of zeros in place of none: a model cannot encode an empty one."""
    if len(next(iter(batch.values()))):
        return batch
    return {key: value.new_zeros(1, *value.shape[1:]) for key, value in batch.items()}


@torch.no_grad()
def encode_rows(encode: Encode, chunks: Chunks, rows: int | None = None) -> Embeddings:
    """Embeddings of this process's rows, without gradient.

    Args:
        encode (`Encode`), chunks: As in [`two_stage_backward`].
        rows (`int`, *optional*): Number of leading rows that count, all by default.
    """
    return _concatenate([encode(chunk)[0] for chunk in chunks.parts], chunks.captions, rows)


def encode_globally(encode: Encode, chunks: Chunks, shard: Shard) -> Embeddings:
    """Embeddings of the global batch, without gradient, by a model that does not train.

    Args:
        encode (`Encode`), chunks, shard: As in [`two_stage_backward`].
    """
    local = encode_rows(encode, chunks, shard.held)
    return Embeddings(*(None if own is None else shard.all_rows(own) for own in local))


def _concatenate(parts: Sequence[Embeddings], captions: Tensor | None, rows: int | None) -> Embeddings:
    """The first `rows` rows of the parts together, in the order of the batch, detached."""
    branches = ([embeds for embeds in branch if embeds is not None] for branch in zip(*parts, strict=True))
    found = Embeddings(*(torch.cat(branch).detach()[:rows] if branch else None for branch in branches))
    return _with_captions(found, None if captions is None else captions.argsort())


def _objective_gradients(
    objective: ObjectiveFunction,
    local: Embeddings,
    log_scale: Tensor,
    check: Callable[[Tensor], None],
    shard: Shard,
    sharded: bool,
) -> tuple[dict[str, Tensor], Embeddings, Tensor]:
    """Objective on the global batch; gradients with respect to this process's rows, and to log s."""
    given = [embeds if embeds is None or sharded else shard.all_rows(embeds) for embeds in local]
    leaves = [None if embeds is None else embeds.requires_grad_() for embeds in given]
    log_scale = log_scale.clone().requires_grad_()
    with torch.enable_grad():
        outputs = objective(*leaves, log_scale, shard if sharded else Shard.whole(shard.n))
        loss = total_loss(outputs)
    check(loss.detach())
    wanted = [leaf for leaf in leaves if leaf is not None] + [log_scale]
    found = iter(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    mine = slice(None) if sharded else shard.rows
    gradients = Embeddings(*(None if leaf is None else next(found)[mine] for leaf in leaves))
    scale_gradient = shard.sum(next(found)) if sharded else next(found)
    return {key: value.detach() for key, value in outputs.items()}, gradients, scale_gradient
