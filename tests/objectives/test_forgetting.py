"""Which pairs of a batch are forgotten, ranked by themselves or among those of recent batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ncu_hf.config import MethodArguments
from ncu_hf.errors import InputError
from ncu_hf.losses import extended_similarity
from ncu_hf.objectives import METHODS
from ncu_hf.objectives.alignment import refine_alignment
from ncu_hf.objectives.clip import RetainedClipObjective
from ncu_hf.objectives.forgetting import ForgettingObjective
from ncu_hf.objectives.unlearning import UnlearningObjective
from ncu_hf.selection import clean_confidence, split_batch, split_by_recent


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


# What forgotten pairs are aligned with


def naive_retained_loss(image, text, negative, log_scale, arguments, refined, forget) -> torch.Tensor:
    """L_otr over the rows and columns of retained pairs alone, one cell at a time."""
    n = len(image)
    similarity = [[image[i] @ text[j] for j in range(n)] + [image[i] @ negative[i]] for i in range(n)]
    logits = [[log_scale.exp() * cell for cell in row] for row in similarity]
    retained = [i for i in range(n) if i not in forget]
    rows = columns = 0
    for i in retained:
        for j in range(n + 1):
            target = refined.row_target[i, j]
            if target > 0:
                rows = rows + target * (target.log() - logits[i][j] + torch.stack(logits[i]).logsumexp(0))
            if j < n:
                target = refined.column_target[i, j]
                column = torch.stack([logits[k][i] for k in range(n)])
                if target > 0:
                    columns = columns + target * (target.log() - column[j] + column.logsumexp(0))
    loss = rows / n + columns / (n + 1)
    return loss / 2 if arguments.formulation == "released" else loss


@pytest.mark.parametrize("formulation", ["released", "paper"])
@pytest.mark.parametrize("plan_weight", [0.0, 0.4])
def test_forgotten_pairs_are_aligned_with_nothing(formulation, plan_weight):
    arguments = MethodArguments(
        formulation=formulation, plan_weight=plan_weight, forget_ratio=0.3, forget_target="none"
    )
    generator = torch.Generator().manual_seed(3)
    leaves = [torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    log_scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def gradients(loss):
        return torch.autograd.grad(loss, [*leaves, log_scale], retain_graph=True)

    image, text, negative = (F.normalize(leaf, dim=1) for leaf in leaves)
    found = UnlearningObjective(arguments)(image, text, negative, log_scale)["alignment_loss"]
    forget, _ = split_batch(clean_confidence(image, text, log_scale, formulation), 0.3)
    assert len(forget) == 2
    refined = refine_alignment(
        extended_similarity(image, text, negative),
        forget,
        plan_weight=plan_weight,
        entropy=arguments.entropy,
        formulation=formulation,
    )
    expected = naive_retained_loss(image, text, negative, log_scale, arguments, refined, forget.tolist())
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_forgotten_caption_stays_a_negative():
    arguments = MethodArguments(forget_ratio=0.3, forget_target="none")
    image, text, negative = (F.normalize(batch, dim=1) for batch in torch.randn(3, 7, 5, dtype=torch.float64).unbind())
    text.requires_grad_(True)
    log_scale = torch.tensor(1.5, dtype=torch.float64)
    loss = UnlearningObjective(arguments)(image, text, negative, log_scale)["alignment_loss"]
    (gradient,) = torch.autograd.grad(loss, text)
    forget, _ = split_batch(clean_confidence(image, text.detach(), log_scale, "released"), 0.3)
    assert gradient[forget].abs().sum() > 0


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match="forget_target"):
        MethodArguments(forget_target="nothing")
