"""Cross-modal retrieval: ranks, recall at 1, 5 and 10 both ways, median rank, bootstrap intervals.

The rule, which every function here follows: a query's rank is 1 + the number of *wrong* candidates whose score is at
least that of its best-scored true candidate. So ties count against the model, several true candidates (the captions of
one image) do not compete with each other, and a model that maps everything to one point finds nothing.
A score that is not finite counts against the model too: a true candidate with such a score is never found, a wrong one
stands before all others.

Scores are dot products of the embeddings as they are given (unit vectors: cosines), taken in float64. Two scores closer
than the rounding error of such a product are a tie; without this, equal vectors would be ordered by where in a block
of the matrix product they happen to lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncu_hf.errors import InputError

CUTOFFS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
NOT_FOUND = torch.iinfo(torch.int64).max
QUANTILES = torch.tensor([0.025, 0.975], dtype=torch.float64)


def retrieval_ranks(
    query_embeds: Tensor,
    candidate_embeds: Tensor,
    query_groups: Tensor,
    candidate_groups: Tensor,
    *,
    query_chunk: int = 1024,
    candidate_chunk: int = 1024,
) -> Tensor:
    """Rank of the best true candidate of each query (see the rule above).

    Chunks that hold no true candidate of each other take one pass instead of two: keep counterparts near each other.

    Args:
        query_embeds (`Tensor` (Q, D)): One row a query.
        candidate_embeds (`Tensor` (C, D)): One row a candidate.
        query_groups, candidate_groups (`LongTensor` (Q,), (C,)): A candidate is true for a query of the same group.
        query_chunk, candidate_chunk (`int`, *optional*): Size of the block of scores that is held at a time.

    Returns:
        `LongTensor` (Q,): 1 is best; `NOT_FOUND` where no true candidate has a finite score.

    Raises:
        InputError: sizes disagree, or a query has no true candidate at all.
    """
    _check_sizes(query_embeds, candidate_embeds, query_groups, candidate_groups)
    orphans = ~torch.isin(query_groups, candidate_groups)
    if orphans.any():
        raise InputError(
            f"Retrieval: {int(orphans.sum())} of {len(orphans)} queries have no true candidate"
            f" (first: row {int(orphans.nonzero()[0])}); remove them or add their counterparts."
        )
    device = query_embeds.device
    parts = [
        (part, groups.to(device))
        for part, groups in zip(
            _finite_rows(candidate_embeds.to(device)).split(candidate_chunk),
            candidate_groups.split(candidate_chunk),
            strict=True,
        )
    ]
    # 4 D eps |q| |c| bounds the rounding error of a float64 dot product of D terms, whatever the order of summation.
    longest = max(_lengths(part).max() for part, _ in parts)
    rounding = 4 * query_embeds.shape[1] * torch.finfo(torch.float64).eps * longest
    ranks = [
        _chunk_ranks(_finite_rows(queries), groups.to(device), rounding, parts)
        for queries, groups in zip(query_embeds.split(query_chunk), query_groups.split(query_chunk), strict=True)
    ]
    return torch.cat(ranks).cpu()


def _chunk_ranks(queries: Tensor, groups: Tensor, rounding: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Ranks of one chunk of queries in two passes: find the best true score, count the wrong ones that reach it."""
    best = queries.new_full((len(queries),), -torch.inf)
    with_true = [bool(torch.isin(groups, candidate_groups).any()) for _, candidate_groups in parts]
    for (candidates, candidate_groups), has_true in zip(parts, with_true, strict=True):
        if has_true:
            scores = (queries @ candidates.T).nan_to_num_(-torch.inf)
            true = groups[:, None] == candidate_groups[None, :]
            best = torch.maximum(best, scores.masked_fill_(~true, -torch.inf).amax(dim=1))
    bar = (best - rounding * _lengths(queries))[:, None]
    ranks = torch.ones_like(groups)
    for (candidates, candidate_groups), has_true in zip(parts, with_true, strict=True):
        below = queries @ candidates.T < bar  # never true of a score that is not a number
        ranks += len(candidates) - below.count_nonzero(dim=1)
        if has_true:
            ranks -= (~below & (groups[:, None] == candidate_groups[None, :])).count_nonzero(dim=1)
    return ranks.masked_fill(best == -torch.inf, NOT_FOUND)


def _lengths(embeds: Tensor) -> Tensor:
    return embeds.norm(dim=1).nan_to_num(0.0)


def _finite_rows(embeds: Tensor) -> Tensor:
    """float64 copy in which a row with any value that is not finite is NaN throughout."""
    embeds = embeds.detach().double()
    return embeds.masked_fill(~embeds.isfinite().all(dim=1, keepdim=True), torch.nan)


def _check_sizes(
    query_embeds: Tensor, candidate_embeds: Tensor, query_groups: Tensor, candidate_groups: Tensor
) -> None:
    if query_embeds.ndim != 2 or candidate_embeds.ndim != 2 or query_embeds.shape[1] != candidate_embeds.shape[1]:
        shapes = f"{tuple(query_embeds.shape)} and {tuple(candidate_embeds.shape)}"
        raise InputError(f"Retrieval: embeddings must be (rows, D) with one D, not {shapes}.")
    for name, embeds, groups in (
        ("queries", query_embeds, query_groups),
        ("candidates", candidate_embeds, candidate_groups),
    ):
        if len(embeds) == 0 or groups.shape != (len(embeds),):
            raise InputError(
                f"Retrieval: {len(embeds)} {name} with {groups.numel()} group ids; need one each, and some."
            )


def group_ids(
    n_images: int,
    n_captions: int,
    *,
    caption_image: Tensor | None = None,
    image_groups: Tensor | None = None,
    caption_groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Groups of images and captions from one of three descriptions of what belongs together.

    Args:
        n_images, n_captions (`int`): How many there are.
        caption_image (`LongTensor` (n_captions,), *optional*): Index of each caption's image.
        image_groups, caption_groups (`LongTensor`, *optional*): Many-to-many: an image and a caption of one group
            match. With none of the three, caption i belongs to image i.

    Returns:
        `tuple[LongTensor, LongTensor]`: (n_images,) and (n_captions,).

    Raises:
        InputError: the descriptions contradict each other or the sizes.
    """
    if (image_groups is None) != (caption_groups is None) or (caption_image is not None and image_groups is not None):
        raise InputError(
            "Retrieval: give caption_image, or image_groups together with caption_groups, or none of them."
        )
    if image_groups is not None:
        return torch.as_tensor(image_groups).long(), torch.as_tensor(caption_groups).long()
    images = torch.arange(n_images)
    if caption_image is None:
        if n_images != n_captions:
            raise InputError(f"Retrieval: {n_images} images and {n_captions} captions need caption_image.")
        return images, images
    caption_image = torch.as_tensor(caption_image).long()
    if len(caption_image) and not 0 <= int(caption_image.min()) <= int(caption_image.max()) < n_images:
        raise InputError(f"Retrieval: caption_image must lie in 0..{n_images - 1}.")
    return images, caption_image


def evaluate_retrieval(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    caption_image: Tensor | None = None,
    image_groups: Tensor | None = None,
    caption_groups: Tensor | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """Recall both ways with 95 % intervals; any number of captions per image.

    Args:
        image_embeds (`Tensor` (n_images, D)): One row an image.
        text_embeds (`Tensor` (n_captions, D)): One row a caption.
        caption_image, image_groups, caption_groups: What belongs together, see [`group_ids`].
        bootstrap (`int`, *optional*, defaults to 1000): Resamples for the intervals. Whole groups are drawn (an image
            with all its captions), because captions of one image are not independent.
        seed (`int`, *optional*, defaults to 0): Of the resampling.

    Returns:
        `dict`: `n_images`, `n_captions`, `image_to_text` and `text_to_image` (each `R@1`, `R@5`, `R@10` in [0, 1],
        `median_rank`, 1 is best, and `interval` {metric: [low, high]}), `mean_recall` in [0, 1] (mean of the six),
        `rsum` (their sum in percent, 0 to 600) and `interval` of these two.
    """
    image_groups, caption_groups = group_ids(
        len(image_embeds),
        len(text_embeds),
        caption_image=caption_image,
        image_groups=image_groups,
        caption_groups=caption_groups,
    )
    ranks = (
        retrieval_ranks(image_embeds, text_embeds, image_groups, caption_groups),
        retrieval_ranks(text_embeds, image_embeds, caption_groups, image_groups),
    )
    return summarise_ranks(ranks, (image_groups, caption_groups), bootstrap=bootstrap, seed=seed)


def summarise_ranks(
    ranks: tuple[Tensor, Tensor], groups: tuple[Tensor, Tensor], *, bootstrap: int = 1000, seed: int = 0
) -> dict:
    """The dict of [`evaluate_retrieval`] from the ranks of images and captions and their groups."""
    names = [f"R@{cutoff}" for cutoff in CUTOFFS]
    hits = [torch.stack([rank <= cutoff for cutoff in CUTOFFS], dim=1).double() for rank in ranks]
    recalls = torch.cat([hit.mean(dim=0) for hit in hits])  # (6,)
    resampled = _resampled_recalls(hits, groups, bootstrap, seed)  # (bootstrap, 6)
    result: dict = {"n_images": len(ranks[0]), "n_captions": len(ranks[1])}
    for side, direction in enumerate(DIRECTIONS):
        columns = slice(side * len(CUTOFFS), (side + 1) * len(CUTOFFS))
        result[direction] = dict(zip(names, recalls[columns].tolist(), strict=True))
        # A query that finds nothing stands behind all candidates of the other side.
        result[direction]["median_rank"] = ranks[side].clamp(max=len(ranks[1 - side]) + 1).double().quantile(0.5).item()
        result[direction]["interval"] = dict(zip(names, _intervals(resampled[:, columns]), strict=True))
    result["mean_recall"] = recalls.mean().item()
    result["rsum"] = 100 * recalls.sum().item()
    mean = _intervals(resampled.mean(dim=1, keepdim=True))[0]
    result["interval"] = {"mean_recall": mean, "rsum": [100 * len(recalls) * bound for bound in mean]}
    return result


def _resampled_recalls(hits: list[Tensor], groups: tuple[Tensor, Tensor], bootstrap: int, seed: int) -> Tensor:
    """Recalls (bootstrap, 6) of resamples that draw as many groups as there are, with replacement."""
    ids, index = torch.unique(torch.cat(groups), return_inverse=True)
    sums = []
    for hit, rows in zip(hits, index.split([len(part) for part in groups]), strict=True):
        counted = torch.cat([hit, torch.ones(len(hit), 1, dtype=hit.dtype)], dim=1)
        sums.append(torch.zeros(len(ids), counted.shape[1], dtype=hit.dtype).index_add_(0, rows, counted))
    generator = torch.Generator().manual_seed(seed)
    resampled = []
    for _ in range(bootstrap):
        drawn = torch.randint(len(ids), (len(ids),), generator=generator)
        times = torch.bincount(drawn, minlength=len(ids)).double()
        totals = [times @ part for part in sums]
        resampled.append(torch.cat([total[:-1] / total[-1] for total in totals]))
    return torch.stack(resampled)


def _intervals(samples: Tensor) -> list[list[float]]:
    """95 % percentile interval of each column of (bootstrap, K)."""
    return samples.quantile(QUANTILES, dim=0).T.tolist()
