"""Does the clean confidence find the pairs known to be wrong? Precision, recall and AUROC of the forget set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncu_hf.errors import InputError
from ncu_hf.selection import clean_confidence


def batched_confidence(
    image_embeds: Tensor,
    text_embeds: Tensor,
    scale: float,
    *,
    batch_size: int,
    seed: int = 0,
    formulation: str = "released",
) -> Tensor:
    """Clean confidence of every pair among the other pairs of a random batch, as training sees it.

    A confidence is a softmax over a batch, so a short last batch would make its pairs look cleaner. It is therefore
    filled up with pairs of the first batch, which keep the confidence that they have from there.

    Args:
        image_embeds, text_embeds (`Tensor` (N, D)): Unit vectors; row i of both is a pair.
        scale (`float`): s = exp(logit_scale).
        batch_size (`int`): Pairs a batch, at least 2; all pairs form one batch if there are fewer.
        seed (`int`, *optional*, defaults to 0): Of the order in which pairs are drawn.
        formulation (`str`, *optional*, defaults to `"released"`): See `ncu_hf.selection.clean_confidence`.

    Returns:
        `Tensor` (N,): float32 in [0, 1], on the CPU.

    Raises:
        InputError: batch below 2, or sizes disagree.
    """
    n = len(image_embeds)
    if image_embeds.shape != text_embeds.shape or n == 0:
        shapes = f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        raise InputError(f"Clean confidence: image and text embeddings must be (N, D) alike, not {shapes}.")
    if batch_size < 2:
        raise InputError(f"Clean confidence: a batch of {batch_size} has nothing to compare with; use at least 2.")
    batch_size = min(batch_size, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = torch.cat([order, order[: -n % batch_size]])
    log_scale = torch.tensor(math.log(scale), device=image_embeds.device)
    confidence = torch.empty(n)
    for rows in reversed(order.split(batch_size)):  # the first batch last, so that its own values stand
        chosen = rows.to(image_embeds.device)
        values = clean_confidence(image_embeds[chosen].float(), text_embeds[chosen].float(), log_scale, formulation)
        confidence[rows] = values.detach().float().cpu()
    return confidence


def forget_set_metrics(confidence: Tensor, mismatched: Tensor, forget_ratio: float) -> dict:
    """Quality of the k = int(P N) pairs of lowest confidence as a detector of the pairs that do not match.

    Pairs of equal confidence at the border are taken in proportion, the value that a random choice among them has on
    average. A confidence that is not a number counts against the detector.

    Args:
        confidence (`Tensor` (N,)): Clean confidence.
        mismatched (`BoolTensor` (N,)): Which pairs are known not to match.
        forget_ratio (`float`): P in [0, 1).

    Returns:
        `dict`: `precision` (0 if k is 0), `recall`, `auroc` (1/2 is chance), `k`, `n`, `n_mismatched`.

    Raises:
        InputError: sizes disagree, or the pairs are all of one kind.
    """
    mismatched = torch.as_tensor(mismatched).bool().cpu()
    if confidence.shape != mismatched.shape:
        raise InputError(f"Forget set: {confidence.numel()} confidences, {mismatched.numel()} marks of what is wrong.")
    wrong, n = int(mismatched.sum()), len(mismatched)
    if wrong in (0, n):
        raise InputError(f"Forget set: {wrong} of {n} pairs are known not to match; need some of both kinds.")
    if not 0 <= forget_ratio < 1:
        raise InputError(f"forget_ratio must lie in [0, 1), not {forget_ratio}.")
    confidence = confidence.detach().double().cpu()
    against = torch.where(mismatched, torch.inf, -torch.inf).double()
    confidence = torch.where(confidence.isnan(), against, confidence)
    k = int(forget_ratio * n)
    found = _found(confidence, mismatched, k)
    return {
        "precision": found / k if k else 0.0,
        "recall": found / wrong,
        "auroc": auroc(-confidence, mismatched),
        "k": k,
        "n": n,
        "n_mismatched": wrong,
    }


def _found(confidence: Tensor, mismatched: Tensor, k: int) -> float:
    """Mismatched pairs among the k of lowest confidence."""
    if k == 0:
        return 0.0
    border = confidence.kthvalue(k).values
    below, tied = confidence < border, confidence == border
    share = (k - int(below.sum())) / int(tied.sum())
    return int((below & mismatched).sum()) + share * int((tied & mismatched).sum())


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Chance that a random positive scores above a random negative, ties counting one half (Mann-Whitney U / (P N)).

    Args:
        scores (`Tensor` (N,)): Higher means positive.
        positive (`BoolTensor` (N,)): At least one of each kind.
    """
    _, level, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    above = counts.cumsum(0).double()
    ranks = (above - (counts - 1) / 2)[level]  # the mean of the places 1..N that a level occupies
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    u = ranks[positive].sum().item() - n_positive * (n_positive + 1) / 2
    return u / (n_positive * n_negative)
