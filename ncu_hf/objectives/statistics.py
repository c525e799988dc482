"""Statistics that objectives log beside their losses. All are detached 0-dim tensors; none waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ncu_hf.distributed import Shard
from ncu_hf.partitions import row_blocks
from ncu_hf.transport import TransportPlan


@torch.no_grad()
def selection_statistics(confidence: Tensor, forget: Tensor, retain: Tensor) -> dict[str, Tensor]:
    """Quantiles of the clean confidence (N,), and its mean over the forget and the retained set (where not empty)."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=confidence.dtype).to(confidence.device, non_blocking=True)
    quantiles = confidence.quantile(levels)
    statistics = {f"clean_confidence_{name}": q for name, q in zip(("q10", "q50", "q90"), quantiles, strict=True)}
    for name, members in (("forget", forget), ("retain", retain)):
        if members.numel():
            statistics[f"clean_confidence_{name}"] = confidence[members].mean()
    return statistics


@torch.no_grad()
def margin_statistics(
    text_embeds: Tensor, negative_embeds: Tensor, margin_low: float, margin_high: float, shard: Shard
) -> dict[str, Tensor]:
    """Mean of ⟨t_i, n_i⟩ and the share of pairs inside the separation band, of the pairs (B, D) of all processes."""
    similarity = (text_embeds * negative_embeds).sum(dim=-1)
    inside = (similarity >= margin_low) & (similarity <= margin_high)
    return {
        "text_negative_similarity": shard.mean(similarity),
        "margin_hits": shard.mean(inside.to(similarity)),
    }


@torch.no_grad()
def plan_statistics(transport: TransportPlan, shard: Shard) -> dict[str, Tensor]:
    """Entropy of the plan in nats, the larger of its two marginal errors, and the iterations that it took."""
    smallest = torch.finfo(transport.plan.dtype).tiny
    entropy = torch.zeros_like(transport.row_error)
    for rows in row_blocks(transport.plan):
        block = transport.plan[rows]
        entropy -= (block.clamp(min=smallest).log_() * block).sum()
    return {
        "plan_entropy": shard.sum(entropy),
        "plan_marginal_error": torch.maximum(transport.row_error, transport.column_error),
        "plan_iterations": torch.tensor(float(transport.iterations)),
    }
