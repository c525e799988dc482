import math
import statistics

import pytest
import torch

from ncu_hf.errors import InputError
from ncu_hf.evaluation import similarity
from ncu_hf.evaluation.similarity import similarity_distributions, summarise_similarity


def units(rows, seed):
    return torch.nn.functional.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("chunk_size", [1, 8, 1000])
@pytest.mark.parametrize("groups", [list(range(45)), [row % 7 for row in range(45)], [0] * 30 + [1] * 15])
def test_against_a_naive_loop(chunk_size, groups):
    images, texts = units(45, 0), units(45, 1)
    result = similarity_distributions(images, texts, groups=torch.tensor(groups), chunk_size=chunk_size)
    for row in range(45):
        negatives = sorted(
            (float(images[row] @ texts[other]) for other in range(45) if groups[other] != groups[row]), reverse=True
        )
        top = negatives[: max(1, math.ceil(0.05 * len(negatives)))]
        assert float(result["positives"][row]) == pytest.approx(float(images[row] @ texts[row]), abs=1e-6)
        assert float(result["negatives_mean"][row]) == pytest.approx(statistics.fmean(negatives), abs=1e-6)
        assert float(result["negatives_top"][row]) == pytest.approx(statistics.fmean(top), abs=1e-6)


def test_many_pairs_are_taken_in_smaller_chunks(monkeypatch):
    images, texts = units(45, 0), units(45, 1)
    expected, rows = similarity_distributions(images, texts), []
    original = similarity._negatives

    def recorded(images, *more):
        rows.append(len(images))
        return original(images, *more)

    monkeypatch.setattr(similarity, "_negatives", recorded)
    similarity_distributions(images, texts)
    monkeypatch.setattr(similarity, "_SCORES", 10 * 45)
    found = similarity_distributions(images, texts)
    assert rows == [45, 10, 10, 10, 10, 5]
    for kind, values in found.items():
        torch.testing.assert_close(values, expected[kind])


def test_default_is_every_pair_a_group_of_its_own():
    images, texts = units(10, 0), units(10, 1)
    result, same = (
        similarity_distributions(images, texts),
        similarity_distributions(images, texts, groups=torch.arange(10)),
    )
    for kind, values in result.items():
        assert torch.equal(values, same[kind])


def test_summary():
    summary = summarise_similarity({"positives": torch.tensor([0.0, 1.0]), "negatives_mean": torch.tensor([0.5, 0.5])})
    assert summary == {"positives": {"mean": 0.5, "std": 0.5}, "negatives_mean": {"mean": 0.5, "std": 0.0}}


def test_no_negatives_is_refused():
    with pytest.raises(InputError, match="at least two groups"):
        similarity_distributions(units(1, 0), units(1, 1))
    with pytest.raises(InputError, match="at least two groups"):
        similarity_distributions(units(3, 0), units(3, 1), groups=torch.zeros(3))
    with pytest.raises(InputError, match="alike"):
        similarity_distributions(units(3, 0), units(4, 1))
