"""Cross-modal retrieval: ranks, recall at 1, 5 and 10 both ways, median rank, bootstrap intervals.

The rule, which every function here follows: a query's rank is 1 + the number of *wrong* candidates whose score is at
least that of its best-scored true candidate. So ties count against the model, several true candidates (the captions of
one image) do not compete with each other, and a model that maps everything to one point finds nothing.
A vector that is not finite counts against the model too: as a true candidate it is never found, as a wrong one it
stands before all others, as a query it finds nothing.

Scores are dot products of the embeddings as they are given (unit vectors: cosines), taken in float64. Two scores closer
than the rounding error of such a product are a tie; without this, equal vectors would be ordered by where in a block
of the matrix product they happen to lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from ncu_hf.distributed import gather_rows, world
from ncu_hf.errors import InputError
from ncu_hf.evaluation.intervals import percentile_intervals, resampled_totals

CUTOFFS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
NOT_FOUND = torch.iinfo(torch.int64).max
# Dot products of vectors up to this length cannot overflow; longer ones are treated as not finite.
LONGEST = 1e150


def retrieval_ranks(
    query_embeds: Tensor,
    candidate_embeds: Tensor,
    query_groups: Tensor,
    candidate_groups: Tensor,
    *,
    query_chunk: int = 1024,
    candidate_chunk: int = 1024,
    shared: bool = False,
) -> Tensor:
    """Rank of the best true candidate of each query (see the rule above).

    Time is one matrix product of all queries with all candidates, a chunk by a chunk. Beyond the inputs and a few
    integers a row, memory holds one float64 chunk of each side and the scores between them, whatever Q and C are.

    Args:
        query_embeds (`Tensor` (Q, D)): One row a query. Scores are taken on their device, so candidates on another one
            are copied there again for every chunk of queries.
        candidate_embeds (`Tensor` (C, D)): One row a candidate.
        query_groups, candidate_groups (`LongTensor` (Q,), (C,)): A candidate is true for a query of the same group.
        query_chunk, candidate_chunk (`int`, *optional*): Rows of the chunks; larger ones are faster on a GPU.
        shared (`bool`, *optional*): Share the chunks of queries among the processes of the run: a collective, on the
            device of the queries, which all of them call with the same inputs. The ranks do not depend on how many
            processes there are.

    Returns:
        `LongTensor` (Q,): On the CPU; 1 is best; `NOT_FOUND` where no true candidate has a finite score.

    Raises:
        InputError: sizes disagree, or a query has no true candidate at all.
    """
    query_groups, candidate_groups = _whole(query_groups), _whole(candidate_groups)
    _check_sizes(query_embeds, candidate_embeds, query_groups, candidate_groups)
    # In order of their groups the true candidates of a chunk of queries are neighbours, however the rows came.
    candidates = _Candidates(candidate_embeds, *candidate_groups.sort(stable=True), candidate_chunk)
    groups, order = query_groups.sort(stable=True)
    first = torch.searchsorted(candidates.groups, groups)
    last = torch.searchsorted(candidates.groups, groups, right=True)
    _check_orphans(order[first == last], len(order))
    rounding = candidates.rounding(query_embeds.device)
    rank, processes = world() if shared else (0, 1)
    chunks = torch.arange(len(order)).split(query_chunk)
    ranks = [
        _chunk_ranks(
            exact_rows(query_embeds, order[rows]),
            groups[rows],
            candidates,
            slice(int(first[rows].min()), int(last[rows].max())),
            rounding,
        )
        for rows in chunks[rank::processes]
    ]
    return _in_place(ranks, order, [chunks[r::processes] for r in range(processes)], query_embeds.device)


def exact_rows(embeds: Tensor, rows: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Float64 copy of some rows, and their lengths.

    Args:
        embeds (`Tensor` (N, D)): Of any precision.
        rows (`LongTensor` (B,)): Which rows.
        device (`torch.device`, *optional*): Where the copy is made; by default where `embeds` are.

    Returns:
        `tuple[Tensor, Tensor]`: (B, D), a row with any value that is not finite is NaN throughout; (B,), 0 for those.
    """
    exact = embeds.detach()[rows.to(embeds.device)].to(device or embeds.device).double()
    lengths = exact.norm(dim=1)
    unusable = ~(lengths <= LONGEST)  # also where the length is not a number
    return exact.masked_fill_(unusable[:, None], torch.nan), lengths.masked_fill_(unusable, 0.0)


def rounding_error(width: int, longest: Tensor) -> Tensor:
    """Bound of the difference between two float64 products of one pair of vectors, a unit of length of the other.

    4 D eps |q| |c| bounds it whatever the order of summation.

    Args:
        width (`int`): D.
        longest (`Tensor` ()): Length of the longest candidate.
    """
    return 4 * width * torch.finfo(torch.float64).eps * longest


@dataclass(frozen=True)
class _Candidates:
    """Candidates in order of their groups (C,), a chunk at a time; `order` (C,) says where each one's row lies."""

    embeds: Tensor
    groups: Tensor
    order: Tensor
    chunk: int

    def chunks(self, span: slice) -> Iterator[slice]:
        for start in range(span.start, span.stop, self.chunk):
            yield slice(start, min(start + self.chunk, span.stop))

    def rows(self, part: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        return exact_rows(self.embeds, self.order[part], device)

    def rounding(self, device: torch.device) -> Tensor:
        everything = slice(0, len(self.order))
        longest = torch.stack([self.rows(part, device)[1].max() for part in self.chunks(everything)]).max()
        return rounding_error(self.embeds.shape[1], longest)


def _chunk_ranks(
    queries: tuple[Tensor, Tensor], groups: Tensor, candidates: _Candidates, span: slice, rounding: Tensor
) -> Tensor:
    """Ranks of one chunk of queries in two passes: find the best true score, count the wrong ones that reach it.

    Args:
        queries (`tuple[Tensor, Tensor]`): From [`exact_rows`].
        groups (`LongTensor` (B,)): Of the queries.
        span (`slice`): Of the candidates; outside of it none is true for any of these queries.
        rounding (`Tensor` ()): From [`rounding_error`].
    """
    (rows, lengths), device = queries, queries[0].device
    groups = groups.to(device)[:, None]
    best = rows.new_full((len(rows),), -torch.inf)
    for part in candidates.chunks(span):
        true = groups == candidates.groups[part].to(device)
        scores = (rows @ candidates.rows(part, device)[0].T).nan_to_num_(-torch.inf)
        best = torch.maximum(best, scores.masked_fill_(~true, -torch.inf).amax(dim=1))
    bar = (best - rounding * lengths)[:, None]
    ranks = torch.ones(len(rows), dtype=torch.long, device=device)
    for part in candidates.chunks(slice(0, len(candidates.order))):
        passed = rows @ candidates.rows(part, device)[0].T < bar  # never true of a score that is not a number
        if part.start < span.stop and span.start < part.stop:
            passed |= groups == candidates.groups[part].to(device)
        ranks += passed.shape[1] - passed.count_nonzero(dim=1)
    return ranks.masked_fill(best == -torch.inf, NOT_FOUND)


def _in_place(ranks: list[Tensor], order: Tensor, chunks: list[tuple[Tensor, ...]], device: torch.device) -> Tensor:
    """Ranks (Q,) of all queries from those of each process' own `chunks`; `order` says where each one's row lies."""
    none = order[:0]
    positions = [torch.cat([none, *own]) for own in chunks]
    local = torch.cat([none.to(device), *ranks])
    gathered = gather_rows(local, [len(own) for own in positions]) if len(chunks) > 1 else local
    return torch.empty_like(order).index_copy_(0, order[torch.cat(positions)], gathered.cpu())


def _whole(groups: Tensor) -> Tensor:
    groups = torch.as_tensor(groups)
    if groups.is_floating_point() or groups.is_complex():
        raise InputError(f"Retrieval: group ids must be whole numbers, not {groups.dtype}.")
    return groups.detach().long().cpu()


def _check_orphans(orphans: Tensor, n: int) -> None:
    if len(orphans):
        raise InputError(
            f"Retrieval: {len(orphans)} of {n} queries have no true candidate"
            f" (first: row {int(orphans.min())}); remove them or add their counterparts."
        )


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
        return _whole(image_groups), _whole(caption_groups)
    images = torch.arange(n_images)
    if caption_image is None:
        if n_images != n_captions:
            raise InputError(f"Retrieval: {n_images} images and {n_captions} captions need caption_image.")
        return images, images
    caption_image = _whole(caption_image)
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
    groups = group_ids(
        len(image_embeds),
        len(text_embeds),
        caption_image=caption_image,
        image_groups=image_groups,
        caption_groups=caption_groups,
    )
    ranks = ranks_both_ways(image_embeds, text_embeds, groups)
    return summarise_ranks(ranks, groups, bootstrap=bootstrap, seed=seed)


def ranks_both_ways(
    image_embeds: Tensor, text_embeds: Tensor, groups: tuple[Tensor, Tensor], *, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """[`retrieval_ranks`] of all images (n_images,) and of all captions (n_captions,), from [`group_ids`]."""
    return (
        retrieval_ranks(image_embeds, text_embeds, *groups, shared=shared),
        retrieval_ranks(text_embeds, image_embeds, *reversed(groups), shared=shared),
    )


def summarise_ranks(
    ranks: tuple[Tensor, Tensor], groups: tuple[Tensor, Tensor], *, bootstrap: int = 1000, seed: int = 0
) -> dict:
    """The dict of [`evaluate_retrieval`] from the ranks of images and captions and their groups."""
    names = [f"R@{cutoff}" for cutoff in CUTOFFS]
    hits = recall_hits(ranks)
    recalls = torch.cat([hit.double().mean(dim=0) for hit in hits])  # (6,)
    totals = resampled_totals(group_totals(hits, groups), bootstrap, seed)  # (bootstrap, 8)
    resampled = totals[:, : len(recalls)] / totals[:, [-2] * len(CUTOFFS) + [-1] * len(CUTOFFS)]
    result: dict = {"n_images": len(ranks[0]), "n_captions": len(ranks[1])}
    for side, direction in enumerate(DIRECTIONS):
        columns = slice(side * len(CUTOFFS), (side + 1) * len(CUTOFFS))
        result[direction] = dict(zip(names, recalls[columns].tolist(), strict=True))
        # A query that finds nothing stands behind all candidates of the other side.
        places = ranks[side].clamp(max=len(ranks[1 - side]) + 1)
        result[direction]["median_rank"] = float(numpy.median(places.numpy()))
        result[direction]["interval"] = dict(zip(names, percentile_intervals(resampled[:, columns]), strict=True))
    result["mean_recall"] = recalls.mean().item()
    result["rsum"] = 100 * recalls.sum().item()
    mean = percentile_intervals(resampled.mean(axis=1, keepdims=True))[0]
    result["interval"] = {"mean_recall": mean, "rsum": [100 * len(recalls) * bound for bound in mean]}
    return result


def recall_hits(ranks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(n_images, 3) and (n_captions, 3) int64: 1 where the rank is within each of `CUTOFFS`."""
    images, captions = (torch.stack([rank <= cutoff for cutoff in CUTOFFS], dim=1).long() for rank in ranks)
    return images, captions


def group_totals(values: tuple[Tensor, Tensor], groups: tuple[Tensor, Tensor]) -> Tensor:
    """What each group adds to the totals that recalls are made of.

    Args:
        values (`tuple[LongTensor, LongTensor]`): (n_images, K) and (n_captions, K).
        groups (`tuple[LongTensor, LongTensor]`): (n_images,) and (n_captions,).

    Returns:
        `LongTensor` (G, 2 K + 2): sums over the group's images and captions of `values`, then how many of each it has.
    """
    ids, index = torch.unique(torch.cat(groups), return_inverse=True)
    sums = []
    for value, rows in zip(values, index.split([len(part) for part in groups]), strict=True):
        counted = torch.cat([value, torch.ones(len(value), 1, dtype=torch.long)], dim=1)
        sums.append(torch.zeros(len(ids), counted.shape[1], dtype=torch.long).index_add_(0, rows, counted))
    images, captions = sums
    return torch.cat([images[:, :-1], captions[:, :-1], images[:, -1:], captions[:, -1:]], dim=1)
