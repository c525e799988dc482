"""Which pairs of a batch are forgotten, ranked by themselves or among those of recent batches."""

from __future__ import annotations

import pytest
import torch

from ncu_hf.config import MethodArguments
from ncu_hf.errors import InputError
from ncu_hf.objectives import METHODS
from ncu_hf.objectives.clip import RetainedClipObjective
from ncu_hf.objectives.forgetting import ForgettingObjective
from ncu_hf.selection import split_batch, split_by_recent


def batches(count: int, n: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(count)]


def objective(window: int, ratio: float = 0.4) -> RetainedClipObjective:
    return RetainedClipObjective(MethodArguments(forget_ratio=ratio, forget_window=window))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.4, 0.99])
def test_without_recent_batches_the_batch_is_ranked_by_itself(ratio):
    (confidence,) = batches(1, 13)
    expected = split_batch(confidence, ratio)
    for found, wanted in zip(split_by_recent(confidence, confidence[:0], ratio), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("m", [1, 6, 40])
def test_forgets_the_lowest_share_of_the_batch_and_the_recent_pairs(m):
    confidence, recent = batches(1, 9)[0], batches(2, m)[1]
    together = sorted([*confidence.tolist(), *recent.tolist()])
    below = set(together[: int(0.4 * (9 + m))])
    forget, retain = split_by_recent(confidence, recent, 0.4)
    assert forget.tolist() == [i for i, value in enumerate(confidence.tolist()) if value in below]
    assert sorted([*forget.tolist(), *retain.tolist()]) == list(range(9))


def test_a_batch_worse_than_all_before_keeps_one_pair():
    forget, retain = split_by_recent(torch.zeros(4) - torch.arange(4.0), torch.ones(100), 0.5)
    assert (forget.tolist(), retain.tolist()) == ([1, 2, 3], [0])


def test_equal_confidences_forget_no_more_than_their_share():
    forget, _ = split_by_recent(torch.zeros(10), torch.zeros(90), 0.3)
    assert forget.numel() == 0
    assert split_by_recent(torch.zeros(0), torch.zeros(3), 0.3)[1].numel() == 0


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_window_holds_the_last_batches(window):
    chosen, seen = objective(window), []
    for confidence in batches(6):
        recent = torch.cat([*seen[max(len(seen) - window + 1, 0) :], confidence[:0]]) if window > 1 else confidence[:0]
        expected = split_by_recent(confidence, recent, 0.4)
        found = chosen.split(confidence)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        seen.append(confidence)


def test_goes_on_from_its_state():
    first, stream = objective(3), batches(6)
    for confidence in stream[:4]:
        first.split(confidence)
    second = objective(3)
    second.load_state_dict(first.state_dict())
    for confidence in stream[4:]:
        assert torch.equal(first.split(confidence)[0], second.split(confidence)[0])
    assert objective(1).state_dict() == {}


def test_every_method_that_forgets_shares_the_window():
    forgetting = {name for name, kinds in METHODS.items() if any("forget_ratio" in kind.settings for kind in kinds)}
    for name in forgetting:
        for kind in METHODS[name]:
            if "forget_ratio" in kind.settings:
                assert issubclass(kind, ForgettingObjective)
                assert "forget_window" in kind.settings


def test_no_window_is_refused():
    with pytest.raises(InputError, match="forget_window must be at least 1, got 0"):
        MethodArguments(forget_window=0)
    with pytest.raises(InputError, match="negative_rank must be 0"):
        MethodArguments(negative_rank=-1)
