import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ncu_hf.errors import InputError
from ncu_hf.evaluation.retrieval import (
    NOT_FOUND,
    evaluate_retrieval,
    group_ids,
    ranks_both_ways,
    retrieval_ranks,
    summarise_ranks,
)


def naive_ranks(queries, candidates, query_groups, candidate_groups):
    """Oracle: one query at a time, Python numbers, integer embeddings (so that scores are exact)."""
    ranks = []
    for query, group in zip(queries.tolist(), query_groups.tolist(), strict=True):
        scores = [sum(a * b for a, b in zip(query, candidate, strict=True)) for candidate in candidates.tolist()]
        true = [score for score, other in zip(scores, candidate_groups.tolist(), strict=True) if other == group]
        wrong = [score for score, other in zip(scores, candidate_groups.tolist(), strict=True) if other != group]
        ranks.append(1 + sum(score >= max(true) for score in wrong))
    return torch.tensor(ranks)


def integers(rows, width, seed, highest=2):
    return torch.randint(-highest, highest + 1, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunks", [(1, 1), (7, 5), (1000, 1000)])
def test_ranks_with_ties_and_many_to_many_groups(seed, chunks):
    generator = torch.Generator().manual_seed(100 + seed)
    image_groups = torch.cat([torch.arange(9), torch.randint(0, 9, (14,), generator=generator)])
    caption_groups = torch.cat([torch.arange(9), torch.randint(0, 9, (28,), generator=generator)])
    images, captions = integers(23, 3, seed), integers(37, 3, seed + 50)
    ranks = retrieval_ranks(
        images, captions, image_groups, caption_groups, query_chunk=chunks[0], candidate_chunk=chunks[1]
    )
    torch.testing.assert_close(ranks, naive_ranks(images, captions, image_groups, caption_groups))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_any_precision_and_any_ids(dtype):
    # Small integers are exact in every precision. Ids: far apart, negative, in no order, of another type.
    images, captions = integers(23, 3, 0), integers(37, 3, 1)
    ids = torch.tensor([-5, 10**12, 7, 0, 3])
    image_groups, caption_groups = ids[torch.arange(23) % 5], ids[torch.arange(37) * 3 % 5]
    expected = naive_ranks(images, captions, image_groups, caption_groups)
    found = retrieval_ranks(images.to(dtype), captions.to(dtype), image_groups, caption_groups, candidate_chunk=4)
    assert torch.equal(found, expected)
    small = retrieval_ranks(
        images.to(dtype).requires_grad_(dtype.is_floating_point), captions, image_groups, caption_groups
    )
    assert torch.equal(small, expected)
    places = {group: place for place, group in enumerate(ids.tolist())}
    renamed = [torch.tensor([places[i] for i in g.tolist()], dtype=torch.int32) for g in (image_groups, caption_groups)]
    assert torch.equal(retrieval_ranks(images, captions, *renamed), expected)


class LargestTensors(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives, by kind."""

    def __init__(self):
        super().__init__()
        self.found = {"real": 0, "bool": 0, "whole": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        # A view holds no memory of its own.
        for tensor in [] if func.is_view else tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                kind = "real" if tensor.is_floating_point() else "bool" if tensor.dtype == torch.bool else "whole"
                self.found[kind] = max(self.found[kind], tensor.numel())
        return results


@pytest.mark.parametrize("shuffled", [False, True])
def test_memory_is_a_few_chunks(shuffled):
    rows, width, chunk = 600, 20, 30
    images, captions = integers(rows, width, 0), integers(rows, width, 1)
    groups = torch.arange(rows)
    other = groups[torch.randperm(rows, generator=torch.Generator().manual_seed(0))] if shuffled else groups
    with LargestTensors() as largest:
        retrieval_ranks(images, captions, groups, other, query_chunk=chunk, candidate_chunk=chunk)
    assert largest.found["real"] <= chunk * max(chunk, width)
    assert largest.found["bool"] <= max(chunk * max(chunk, width), rows)
    assert largest.found["whole"] <= rows


@pytest.mark.parametrize(("processes", "query_chunk"), [(2, 8), pytest.param(3, 40, marks=pytest.mark.slow)])
def test_processes_share_the_work_and_agree(processes, query_chunk, launch, tmp_path):
    # 61 queries: the last chunk is short. In chunks of 40, the third process has nothing to do.
    queries, candidates = integers(61, 5, 0).div(3), integers(90, 5, 1).div(3)
    candidates[4, 2] = torch.nan
    query_groups = torch.randint(0, 20, (61,), generator=torch.Generator().manual_seed(2))
    candidate_groups = torch.arange(90).flip(0) % 20
    inputs = {
        "query_embeds": queries,
        "candidate_embeds": candidates,
        "query_groups": query_groups,
        "candidate_groups": candidate_groups,
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    launch(processes, "tests/workers/ranks.py", tmp_path / "inputs.safetensors", query_chunk, tmp_path)
    expected = retrieval_ranks(**inputs, query_chunk=query_chunk, candidate_chunk=7)
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(processes)]
    assert all(torch.equal(part["ranks"], expected) for part in found)
    worked = [part["worked"].item() for part in found]
    assert sum(worked) == 61
    assert worked == ([32, 29] if processes == 2 else [40, 21, 0])


def test_hand_computed_recalls_of_one_hot_embeddings():
    # Three images on the axes; two captions of image 0 (one right, one nearer to image 1), one each of 1 and 2.
    images = torch.eye(3)
    captions = torch.tensor([[1.0, 0, 0], [0.3, 0.9, 0], [0, 1, 0], [0, 0, 1]])
    result = evaluate_retrieval(images, captions, caption_image=torch.tensor([0, 0, 1, 2]))
    assert result["image_to_text"]["R@1"] == 1.0
    assert result["text_to_image"]["R@1"] == 0.75
    assert result["text_to_image"]["R@5"] == result["text_to_image"]["R@10"] == 1.0
    assert result["image_to_text"]["median_rank"] == result["text_to_image"]["median_rank"] == 1.0
    assert result["mean_recall"] == pytest.approx(5.75 / 6)
    assert result["rsum"] == pytest.approx(575)
    assert (result["n_images"], result["n_captions"]) == (3, 4)


def test_true_candidates_do_not_compete():
    captions = torch.tensor([[1.0, 0]] * 12 + [[0, 1.0]])
    ranks = retrieval_ranks(torch.eye(2), captions, torch.tensor([0, 1]), torch.tensor([0] * 12 + [1]))
    assert ranks.tolist() == [1, 1]


@pytest.mark.parametrize("width", [1, 7, 513])
def test_one_point_for_everything_finds_nothing(width):
    # Values whose products round: the tie must not depend on where a vector lies in a block.
    point = torch.nn.functional.normalize(torch.rand(1, width, generator=torch.Generator().manual_seed(0)), dim=1)
    result = evaluate_retrieval(point.repeat(31, 1), point.repeat(31, 1))
    assert result["rsum"] == 0
    assert result["image_to_text"]["median_rank"] == 31


def test_a_difference_above_rounding_is_not_a_tie():
    images = torch.eye(2)
    captions = torch.tensor([[1.0, 1 - 1e-6], [1 - 1e-6, 1.0]])
    assert evaluate_retrieval(images, captions)["mean_recall"] == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_counts_against_the_model(bad):
    images, captions = torch.eye(4), torch.eye(4)
    captions[2, 0] = bad
    groups = torch.arange(4)
    # Caption 2 stands before all others for every image, and its own image never finds it.
    assert retrieval_ranks(images, captions, groups, groups).tolist() == [2, 2, NOT_FOUND, 2]
    # As a query it finds nothing.
    assert retrieval_ranks(captions, images, groups, groups).tolist() == [1, 1, NOT_FOUND, 1]
    result = evaluate_retrieval(images, captions)
    assert result["image_to_text"]["R@10"] == result["text_to_image"]["R@10"] == 0.75


def test_vectors_too_long_to_multiply_are_not_finite():
    images, captions = torch.eye(3).double(), torch.eye(3).double()
    captions[1, 1] = 1e300
    groups = torch.arange(3)
    assert retrieval_ranks(images, captions, groups, groups).tolist() == [2, NOT_FOUND, 2]
    assert retrieval_ranks(captions, images, groups, groups).tolist() == [1, NOT_FOUND, 1]


def test_zeros_find_nothing():
    assert evaluate_retrieval(torch.zeros(12, 4), torch.zeros(12, 4))["rsum"] == 0
    assert retrieval_ranks(torch.zeros(2, 4), torch.eye(4)[:2], torch.arange(2), torch.arange(2)).tolist() == [2, 2]


def test_all_nan_is_zero_however_few_candidates():
    result = evaluate_retrieval(torch.full((3, 2), torch.nan), torch.eye(3)[:, :2])
    assert result["rsum"] == 0
    assert result["image_to_text"]["median_rank"] == 4


def test_another_finite_true_candidate_is_enough():
    captions = torch.tensor([[torch.nan, 0], [1.0, 0], [0, 1]])
    ranks = retrieval_ranks(torch.eye(2), captions, torch.tensor([0, 1]), torch.tensor([0, 0, 1]))
    assert ranks.tolist() == [1, 2]


def test_order_of_rows_does_not_matter():
    images, captions = integers(20, 4, 1).div(3), integers(60, 4, 2).div(3)
    caption_image = torch.arange(20).repeat_interleave(3)
    expected = evaluate_retrieval(images, captions, caption_image=caption_image)
    image_order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    caption_order = torch.randperm(60, generator=torch.Generator().manual_seed(6))
    result = evaluate_retrieval(
        images[image_order],
        captions[caption_order],
        image_groups=torch.arange(20)[image_order],
        caption_groups=caption_image[caption_order],
    )
    assert result == expected


def test_intervals_are_seeded_and_narrow_with_more_data():
    def width(copies):
        hits = torch.arange(40 * copies) % 4 > 0
        ranks = torch.where(hits, 1, 100)
        groups = torch.arange(len(ranks))
        result = summarise_ranks((ranks, ranks), (groups, groups))
        low, high = result["image_to_text"]["interval"]["R@1"]
        assert low < result["image_to_text"]["R@1"] == 0.75 < high
        return high - low

    # Normal approximation of a share: 2 * 1.96 * sqrt(0.75 * 0.25 / n).
    assert width(1) == pytest.approx(0.268, abs=0.04)
    assert width(16) == pytest.approx(0.067, abs=0.015)
    groups = torch.arange(40)
    ranks = torch.where(groups % 4 > 0, 1, 100)
    first, same, other = (summarise_ranks((ranks, ranks), (groups, groups), seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert first["interval"] != other["interval"]
    assert first["interval"]["rsum"] == pytest.approx([600 * bound for bound in first["interval"]["mean_recall"]])


def test_bootstrap_draws_whole_groups():
    # 20 images of 50 captions, all captions of an image hit or all miss: 20 observations, not 1000.
    caption_groups = torch.arange(20).repeat_interleave(50)
    ranks = torch.where(caption_groups % 2 == 0, 1, 100)
    image_ranks = torch.where(torch.arange(20) % 2 == 0, 1, 100)
    result = summarise_ranks((image_ranks, ranks), (torch.arange(20), caption_groups))
    low, high = result["text_to_image"]["interval"]["R@1"]
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 20) ** 0.5, abs=0.08)


def test_intervals_agree_with_drawing_one_group_after_another():
    generator = numpy.random.default_rng(3)
    caption_image = torch.tensor(generator.integers(0, 60, 200))
    caption_image[:60] = torch.arange(60)  # none is without a caption
    ranks = torch.tensor(generator.integers(1, 14, 60)), torch.tensor(generator.integers(1, 30, 200))
    result = summarise_ranks(ranks, (torch.arange(60), caption_image), bootstrap=4000)
    draws = []
    for _ in range(4000):
        drawn = generator.integers(0, 60, 60).tolist()
        images = [ranks[0][image].item() for image in drawn]
        times = numpy.bincount(drawn, minlength=60)[caption_image.numpy()]
        recalls = [numpy.mean(numpy.array(images) <= k) for k in (1, 5, 10)]
        recalls += [(times * (ranks[1].numpy() <= k)).sum() / times.sum() for k in (1, 5, 10)]
        draws.append([*recalls, numpy.mean(recalls)])
    low, high = numpy.quantile(draws, [0.025, 0.975], axis=0)
    found = [result[side]["interval"][f"R@{k}"] for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    found.append(result["interval"]["mean_recall"])
    assert numpy.allclose(found, numpy.stack([low, high], axis=1), atol=0.015)


def test_median_lies_between_the_middle_two():
    ranks = torch.tensor([1, 2, 5, NOT_FOUND])
    result = summarise_ranks((ranks, ranks), (torch.arange(4), torch.arange(4)))
    assert result["text_to_image"]["median_rank"] == 3.5


def test_a_million_pairs_are_summarised_in_seconds():
    ranks = torch.randint(1, 20, (10**6,), generator=torch.Generator().manual_seed(0))
    groups = torch.arange(10**6)
    result = summarise_ranks((ranks, ranks), (groups, groups))
    low, high = result["image_to_text"]["interval"]["R@1"]
    # 2 * 1.96 * sqrt(p (1 - p) / n) with p = 1/19
    assert high - low == pytest.approx(8.75e-4, rel=0.1)


def test_no_resample_is_refused():
    with pytest.raises(InputError, match="bootstrap: 0 resamples"):
        evaluate_retrieval(torch.eye(3), torch.eye(3), bootstrap=0)


def test_both_ways():
    images, captions = integers(9, 4, 0), integers(18, 4, 1)
    groups = torch.arange(9), torch.arange(18) % 9
    ranks = ranks_both_ways(images, captions, groups)
    assert torch.equal(ranks[0], naive_ranks(images, captions, *groups))
    assert torch.equal(ranks[1], naive_ranks(captions, images, *reversed(groups)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"caption_image": torch.tensor([0.0, 1.0, 2.0])}, "whole numbers"),
        ({"caption_image": torch.tensor([0, 1])}, "2 group ids"),
        ({"caption_image": torch.tensor([0, 1, 3])}, r"0\.\.2"),
        ({"caption_image": torch.tensor([0, -1, 2])}, r"0\.\.2"),
        ({"caption_image": torch.tensor([0, 0, 1])}, "no true candidate"),
        ({"image_groups": torch.arange(3)}, "together"),
        ({"image_groups": torch.arange(3), "caption_groups": torch.tensor([0, 1, 7])}, "first: row 2"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        evaluate_retrieval(torch.eye(3), torch.eye(3), **arguments)


def test_sizes_that_disagree_are_refused():
    with pytest.raises(InputError, match="need caption_image"):
        group_ids(3, 4)
    with pytest.raises(InputError, match="one D"):
        evaluate_retrieval(torch.eye(3), torch.eye(3)[:, :2])
    with pytest.raises(InputError, match="0 queries"):
        evaluate_retrieval(torch.empty(0, 2), torch.empty(0, 2))
