import itertools
import math

import numpy
import pytest
import torch
from scipy.stats import binomtest

from ncu_hf.errors import InputError
from ncu_hf.evaluation.pairwise import (
    RetrievalItems,
    ZeroShotItems,
    compare_items,
    mcnemar,
    newcombe_interval,
    paired_recall_difference,
    sign_test,
)
from ncu_hf.evaluation.retrieval import NOT_FOUND, summarise_ranks
from ncu_hf.evaluation.zero_shot import summarise_zero_shot

RECALLS = [f"{side} R@{k}" for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def outcomes(both, only_a, only_b, neither):
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return torch.tensor(a), torch.tensor(b)


def retrieval_items(seed, images=12, captions=30):
    """Ranks of a model; every image has a caption."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randint(1, 14, (images,), generator=generator), torch.randint(1, 14, (captions,), generator=generator)
    groups = torch.arange(images), torch.arange(captions) ** 2 % images
    groups[1][:images] = torch.arange(images)
    return RetrievalItems(ranks, groups)


def zero_shot_items(seed, n=120, classes=6):
    ranks = torch.randint(1, 9, (n,), generator=torch.Generator().manual_seed(seed))
    return ZeroShotItems(ranks, torch.arange(n) ** 2 % classes)


# McNemar


@pytest.mark.parametrize(("first", "second"), [*itertools.product(range(7), range(7)), (40, 71), (900, 1100), (0, 60)])
def test_sign_test_against_scipy(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert sign_test(first, second) == pytest.approx(expected, rel=1e-9)


def test_sign_test_of_many_items_is_small_but_never_zero():
    assert 0 < sign_test(0, 5000) < 1e-300
    assert sign_test(250_000, 250_000) == 1
    assert sign_test(249_000, 251_000) == pytest.approx(math.erfc(1999 / math.sqrt(500_000) / math.sqrt(2)), rel=0.01)


def test_hand_computed_mcnemar():
    result = mcnemar(*outcomes(5, 1, 4, 2))
    assert result["difference"] == 3 / 12
    assert (result["n"], result["only_a"], result["only_b"]) == (12, 1, 4)
    assert result["p_value"] == pytest.approx(2 * (1 + 5) / 2**5)
    low, high = result["interval"]
    assert low < 3 / 12 < high


def test_newcombe_interval_by_hand():
    # Wilson's intervals: of 6/10 (0.3127, 0.8318), of 5/10 (0.2366, 0.7634). phi = (4 * 3 - 1 * 2 - 5) / sqrt(600).
    phi = 5 / math.sqrt(6 * 4 * 5 * 5)
    low = 0.1 - math.sqrt(0.28733**2 - 2 * phi * 0.28733 * 0.26341 + 0.26341**2)
    high = 0.1 + math.sqrt(0.23182**2 - 2 * phi * 0.23182 * 0.26341 + 0.26341**2)
    assert newcombe_interval(4, 1, 2, 3) == pytest.approx([low, high], abs=2e-4)


def test_newcombe_interval_stays_in_range_and_has_a_width():
    for cells in itertools.product(range(4), repeat=4):
        if sum(cells):
            low, high = newcombe_interval(*cells)
            assert -1 <= low <= (cells[2] - cells[1]) / sum(cells) <= high <= 1
            assert low < high
            mirrored = newcombe_interval(cells[0], cells[2], cells[1], cells[3])
            assert mirrored == pytest.approx([-high, -low])


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize(
    ("shares", "least"),
    [
        ((0.6, 0.1, 0.1, 0.2), 0.94),
        ((0.7, 0.02, 0.05, 0.23), 0.94),
        ((0.2, 0.3, 0.3, 0.2), 0.94),
        ((0.9, 0.01, 0.01, 0.08), 0.94),
        ((0.5, 0, 0.1, 0.4), 0.91),  # the second model never loses: it is known to fall short here
    ],
)
def test_newcombe_interval_covers(n, shares, least):
    draws = numpy.random.default_rng(0).multinomial(n, shares, size=3000)
    tables, counts = numpy.unique(draws, axis=0, return_counts=True)
    truth = shares[2] - shares[1]
    covered = 0
    for cells, count in zip(tables.tolist(), counts.tolist(), strict=True):
        low, high = newcombe_interval(*cells)
        covered += count * (low <= truth <= high)
    assert covered / 3000 >= least


@pytest.mark.parametrize(("a", "b"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_mcnemar_refuses_what_is_no_pair(a, b):
    with pytest.raises(InputError, match="same items"):
        mcnemar(torch.tensor(a), torch.tensor(b))


# Retrieval


def recalls(ranks, groups, drawn):
    """Oracle: the recalls of a list of groups, one group after another; then their mean and their sum in percent."""
    found = []
    for side in (0, 1):
        chosen = [r for group in drawn for r, g in zip(ranks[side], groups[side], strict=True) if g == group]
        found += [sum(rank <= k for rank in chosen) / len(chosen) for k in (1, 5, 10)]
    return numpy.array([*found, sum(found) / 6, 100 * sum(found)])


def plain(items):
    return [part.tolist() for part in items.ranks], [part.tolist() for part in items.groups]


def test_recall_differences_are_those_of_the_summaries():
    a, b = retrieval_items(0), retrieval_items(1)
    before, after = (summarise_ranks(items.ranks, items.groups, bootstrap=5) for items in (a, b))
    found = paired_recall_difference(a.ranks, b.ranks, a.groups, bootstrap=50)
    assert list(found) == [*RECALLS, "mean_recall", "rsum"]
    for name in RECALLS:
        side, metric = name.split()
        assert found[name]["difference"] == pytest.approx(after[side][metric] - before[side][metric])
    for name in ("mean_recall", "rsum"):
        assert found[name]["difference"] == pytest.approx(after[name] - before[name])
    assert {values["n"] for values in found.values()} == {12}


def test_recall_intervals_agree_with_drawing_one_group_after_another():
    a, b = retrieval_items(0, images=40, captions=90), retrieval_items(1, images=40, captions=90)
    (ranks_a, groups), (ranks_b, _) = plain(a), plain(b)
    generator = numpy.random.default_rng(1)
    draws = []
    for _ in range(600):
        drawn = generator.integers(0, 40, 40).tolist()
        draws.append(recalls(ranks_b, groups, drawn) - recalls(ranks_a, groups, drawn))
    expected = numpy.quantile(draws, [0.025, 0.975], axis=0).T
    found = paired_recall_difference(a.ranks, b.ranks, a.groups)
    for values, interval in zip(found.values(), expected, strict=True):
        width = interval[1] - interval[0]
        assert values["interval"] == pytest.approx(interval.tolist(), abs=0.15 * width)


def test_recall_p_values_agree_with_all_ways_to_swap():
    a, b = retrieval_items(2, images=8, captions=14), retrieval_items(3, images=8, captions=14)
    (ranks_a, groups), (ranks_b, _) = plain(a), plain(b)
    everything = list(range(8))
    difference = recalls(ranks_b, groups, everything) - recalls(ranks_a, groups, everything)
    extreme = numpy.zeros(8)
    for swaps in itertools.product([False, True], repeat=8):
        first = [
            [y if swaps[g] else x for x, y, g in zip(*parts, strict=True)]
            for parts in zip(ranks_a, ranks_b, groups, strict=True)
        ]
        second = [
            [x if swaps[g] else y for x, y, g in zip(*parts, strict=True)]
            for parts in zip(ranks_a, ranks_b, groups, strict=True)
        ]
        swapped = recalls(second, groups, everything) - recalls(first, groups, everything)
        extreme += numpy.abs(swapped) >= numpy.abs(difference) - 1e-9
    found = [values["p_value"] for values in paired_recall_difference(a.ranks, b.ranks, a.groups).values()]
    assert found == pytest.approx((extreme / 2**8).tolist(), abs=0.02)
    assert min(found) < 0.9  # the comparison is not of ones


def test_order_of_images_and_captions_does_not_matter():
    a, b = retrieval_items(0), retrieval_items(1)
    generator = torch.Generator().manual_seed(0)
    orders = torch.randperm(12, generator=generator), torch.randperm(30, generator=generator)

    def shuffled(items):
        return RetrievalItems(
            *(tuple(p[o] for p, o in zip(parts, orders, strict=True)) for parts in (items.ranks, items.groups))
        )

    assert compare_items(shuffled(a), shuffled(b), bootstrap=100) == compare_items(a, b, bootstrap=100)


def test_captions_of_an_image_are_one_observation():
    # 20 images of 50 captions. All captions of an image hit or all miss: b finds six images that a does not.
    captions = torch.arange(20).repeat_interleave(50)
    one = torch.ones(20, dtype=torch.long)
    a, b = torch.where(captions < 6, 100, 1), torch.ones(1000, dtype=torch.long)
    found = paired_recall_difference((one, a), (one, b), (torch.arange(20), captions))["text_to_image R@1"]
    assert found["difference"] == 0.3
    assert found["p_value"] == pytest.approx(2 / 2**6, abs=0.006)
    low, high = found["interval"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / 20), abs=0.06)


# Classification


def test_rows_of_a_classification():
    a, b = zero_shot_items(0), zero_shot_items(1)
    rows = {row["metric"]: row for row in compare_items(a, b, bootstrap=200)}
    before, after = (summarise_zero_shot(items.ranks, items.labels, 6) for items in (a, b))
    assert list(rows) == ["accuracy", "top5", "mean_per_class"]
    for metric, row in rows.items():
        assert set(row) == {"metric", "difference", "interval", "test", "p_value", "n"}
        assert row["difference"] == pytest.approx(after[metric] - before[metric])
        assert row["interval"][0] < row["difference"] < row["interval"][1]
        assert (0 < row["p_value"] <= 1, row["n"]) == (True, 120)
    assert rows["top5"]["p_value"] == mcnemar(a.ranks <= 5, b.ranks <= 5)["p_value"]
    assert "McNemar" in rows["accuracy"]["test"]
    assert "within class" in rows["mean_per_class"]["test"]


def test_mean_per_class_agrees_with_naive_draws_and_swaps():
    labels = torch.tensor([0] * 8 + [1] * 3 + [3] * 4)
    a = torch.tensor([1, 1, 1, 2, 2, 2, 2, 1, 2, 1, 2, 1, 1, 2, 2])
    b = torch.tensor([1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1])
    gains = (b == 1).int().numpy() - (a == 1).int().numpy()
    classes = labels.numpy()

    def mean(values):
        return numpy.mean([values[classes == index].mean() for index in (0, 1, 3)])

    row = compare_items(ZeroShotItems(a, labels), ZeroShotItems(b, labels))[-1]
    assert row["difference"] == pytest.approx(mean(gains))
    generator = numpy.random.default_rng(0)
    rows = [numpy.flatnonzero(classes == index) for index in (0, 1, 3)]
    draws = [mean(gains[numpy.concatenate([generator.choice(r, len(r)) for r in rows])]) for _ in range(4000)]
    assert row["interval"] == pytest.approx(numpy.quantile(draws, [0.025, 0.975]).tolist(), abs=0.03)
    discordant = numpy.flatnonzero(gains)
    extreme = []
    for signs in itertools.product([-1, 1], repeat=len(discordant)):
        swapped = gains.copy()
        swapped[discordant] *= signs
        extreme.append(abs(mean(swapped)) >= abs(mean(gains)) - 1e-9)
    assert row["p_value"] == pytest.approx(numpy.mean(extreme), abs=0.02)


def test_a_difference_of_rounding_is_none():
    # 10 items a class; gains 1, 2 and -3: 0.1 + 0.2 - 0.3 is not 0 for a computer.
    labels = torch.arange(30) // 10
    a, b = torch.ones(30, dtype=torch.long), torch.ones(30, dtype=torch.long)
    a[[0, 10, 11]], b[[20, 21, 22]] = 2, 2
    assert compare_items(ZeroShotItems(a, labels), ZeroShotItems(b, labels))[-1]["p_value"] == 1


def test_one_class_is_the_sign_test():
    a, b = outcomes(20, 3, 12, 9)
    items = [ZeroShotItems(torch.where(right, 1, 2), torch.zeros(44, dtype=torch.long)) for right in (a, b)]
    accuracy, _, mean = compare_items(*items)
    assert mean["p_value"] == pytest.approx(accuracy["p_value"], abs=0.01)
    assert accuracy["p_value"] == pytest.approx(binomtest(3, 15).pvalue)


def test_p_values_keep_their_level():
    # Two models of the same quality: at most 5 % of the p-values may lie below 5 %.
    generator = numpy.random.default_rng(0)
    labels = torch.arange(60) % 4
    groups = (torch.arange(40), torch.arange(80) // 2)
    below = numpy.zeros(11)
    for trial in range(300):
        found = []
        a, b = (ZeroShotItems(torch.tensor(generator.integers(1, 9, 60)), labels) for _ in range(2))
        found += compare_items(a, b, bootstrap=99, seed=trial)
        a, b = (
            RetrievalItems(tuple(torch.tensor(generator.integers(1, 14, len(part))) for part in groups), groups)
            for _ in range(2)
        )
        found += compare_items(a, b, bootstrap=99, seed=trial)
        below += [row["p_value"] <= 0.05 for row in found]
    # Standard error of a share of 0.05 in 300 trials: 0.013.
    assert (below / 300).max() < 0.095
    assert (below / 300).mean() > 0.015


# Both


@pytest.mark.parametrize("items", [zero_shot_items(0), retrieval_items(0)], ids=["zero_shot", "retrieval"])
def test_a_model_against_itself(items):
    for row in compare_items(items, items, bootstrap=50):
        assert (row["difference"], row["p_value"]) == (0, 1)
        low, high = row["interval"]
        assert low <= 0 <= high
        assert row["metric"] in ("accuracy", "top5") or (low, high) == (0, 0)
        assert low > -0.06


@pytest.mark.parametrize("make", [zero_shot_items, retrieval_items])
def test_direction_and_seed(make):
    a, b = make(0), make(1)
    found, again, reverse = compare_items(a, b), compare_items(a, b), compare_items(b, a)
    assert found == again
    for row, mirrored in zip(found, reverse, strict=True):
        assert mirrored["difference"] == pytest.approx(-row["difference"])
        unit = 600 if row["metric"] == "rsum" else 1
        assert mirrored["interval"] == pytest.approx([-bound for bound in reversed(row["interval"])], abs=0.03 * unit)
        assert mirrored["p_value"] == pytest.approx(row["p_value"], abs=0.03)
    assert compare_items(a, b, seed=1)[-1]["interval"] != found[-1]["interval"]


def test_one_item_proves_nothing():
    label = torch.tensor([2])
    rows = compare_items(ZeroShotItems(torch.tensor([NOT_FOUND]), label), ZeroShotItems(torch.tensor([1]), label))
    assert [(row["difference"], row["p_value"]) for row in rows] == [(1, 1)] * 3
    one, other = torch.tensor([1]), torch.tensor([2])
    groups = torch.tensor([0]), torch.tensor([0])
    assert {
        row["p_value"]
        for row in compare_items(RetrievalItems((one, one), groups), RetrievalItems((other, other), groups))
    } == {1}


def test_other_items_are_refused():
    items, pairs = zero_shot_items(0), retrieval_items(0)
    with pytest.raises(InputError, match="one kind"):
        compare_items(items, pairs)
    with pytest.raises(InputError, match=r"\[120, 120\] and \[119, 119\]"):
        compare_items(items, zero_shot_items(0, n=119))
    with pytest.raises(InputError, match="same order"):
        compare_items(items, zero_shot_items(0, classes=5))
    with pytest.raises(InputError, match="same items"):
        compare_items(items, ZeroShotItems(items.ranks[:-1], items.labels))
    with pytest.raises(InputError, match="same order"):
        compare_items(pairs, RetrievalItems(pairs.ranks, (pairs.groups[0].flip(0), pairs.groups[1])))
    with pytest.raises(InputError, match="same items"):
        compare_items(pairs, retrieval_items(0, captions=31))
