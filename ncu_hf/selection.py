"""Which pairs of a batch to forget: clean confidence and the forget/retain split (paper, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ncu_hf.distributed import Shard
from ncu_hf.partitions import column_log_partition, row_log_partition


@torch.no_grad()
def clean_confidence(image_embeds: Tensor, text_embeds: Tensor, log_scale: Tensor, formulation: str) -> Tensor:
    """Match confidence ω of each pair, judged against the other pairs of the batch.

    Args:
        image_embeds (`Tensor`): (N, D) unit vectors v.
        text_embeds (`Tensor`): (N, D) unit vectors t.
        log_scale (`Tensor`): 0-dim, log of s = 1/τ.
        formulation (`str`): As in [`similarity_confidence`].

    Returns:
        `Tensor`: (N,) in [0, 1], at least float32, without gradient.
    """
    similarity = promote(image_embeds) @ promote(text_embeds).T
    return similarity_confidence(similarity, log_scale, formulation, Shard.whole(len(similarity)))


@torch.no_grad()
def similarity_confidence(
    similarity: Tensor, log_scale: Tensor, formulation: str, shard: Shard, column_partition: Tensor | None = None
) -> Tensor:
    """Match confidence ω of all pairs of a global batch, on every process.

    Args:
        similarity (`Tensor`): (B, N), ⟨v_i, t_j⟩ of this process's images.
        log_scale (`Tensor`): 0-dim, log of s = 1/τ.
        formulation (`str`): `"paper"`: eq. 2, the mean of the softmax over the texts of row i and the softmax over the
            images of column i, both at (i, i). `"released"`: the first of the two alone, as in the authors' code.
        shard (`Shard`): Whose rows these are.
        column_partition (`Tensor`, *optional*): (N,), [`column_log_partition`] of it, where it is known.

    Returns:
        `Tensor`: (N,) in [0, 1], without gradient.
    """
    scale = log_scale.exp()
    own = scale * similarity[:, shard.rows].diagonal()
    confidence = (own - row_log_partition(similarity, scale)).exp()
    if formulation == "paper":
        if column_partition is None:
            column_partition = column_log_partition(similarity, scale, shard)
        confidence = (confidence + (own - column_partition[shard.rows]).exp()) / 2
    return shard.all_rows(confidence)


def split_batch(confidence: Tensor, forget_ratio: float) -> tuple[Tensor, Tensor]:
    """Forget the k = int(P·N) pairs of lowest confidence, retain the rest.

    Equal confidences are taken in the order of the batch, so that the split is the same on every process.

    Args:
        confidence (`Tensor`): (N,) clean confidence.
        forget_ratio (`float`): P, in [0, 1].

    Returns:
        `tuple[Tensor, Tensor]`: `forget` (k,) and `retain` (N - k,), int64 indices in ascending order.
    """
    k = int(forget_ratio * confidence.shape[0])
    order = confidence.argsort(stable=True)
    return order[:k].sort().values, order[k:].sort().values


def split_by_recent(confidence: Tensor, recent: Tensor, forget_ratio: float) -> tuple[Tensor, Tensor]:
    """Forget the pairs of a batch that are among the lowest share P of the batch and recent ones together.

    The noise of a small batch varies: of 128 pairs at 40 % noise, 51 ± 6 are wrong, and a fixed k forgets sound pairs
    in one batch and keeps wrong ones in the next. Here k follows the batch. At least one pair is retained.

    Args:
        confidence (`Tensor`): (N,) clean confidence of the batch.
        recent (`Tensor`): (M,) that of the pairs of recent batches; M = 0 gives [`split_batch`].
        forget_ratio (`float`): P, in [0, 1].

    Returns:
        `tuple[Tensor, Tensor]`: `forget` and `retain`, int64 indices in ascending order. Of equal confidences, those
        of recent batches count as the lower ones, then those that stand first in the batch.
    """
    n, m = confidence.shape[0], recent.shape[0]
    lowest = torch.cat([recent, confidence]).argsort(stable=True)[: int(forget_ratio * (n + m))] - m
    lowest = lowest[lowest >= 0][: max(n - 1, 0)]
    kept = torch.ones(n, dtype=torch.bool, device=confidence.device).index_fill_(0, lowest, False)
    return lowest.sort().values, kept.nonzero().flatten()


def promote(embeds: Tensor) -> Tensor:
    """`embeds` in float32, or unchanged where it is already at least that precise."""
    return embeds.to(torch.promote_types(embeds.dtype, torch.float32))
