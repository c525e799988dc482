"""Variants V1 to V4 of NCU against sums and Sinkhorn iterations written out: value and gradient."""

from __future__ import annotations

import math
from io import BytesIO

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ncu_hf.config import FORMULATIONS, MethodArguments
from ncu_hf.data import ImageTransform, PairCollator
from ncu_hf.data.records import Located, Record
from ncu_hf.losses import alignment_loss, matching_losses, separation_losses
from ncu_hf.modeling import NCUModel
from ncu_hf.objectives.ablations import (
    NEGATING_PREFIXES,
    FalseNegativesObjective,
    FalsePositivesObjective,
    MaxDistancePromptObjective,
    MaxDistanceUnlearningObjective,
    TextNegationObjective,
)
from ncu_hf.objectives.alignment import refine_alignment
from ncu_hf.objectives.unlearning import UnlearningObjective
from ncu_hf.selection import clean_confidence, split_batch
from ncu_hf.step import total_loss

N, D = 9, 6


@pytest.fixture
def inputs() -> list[Tensor]:
    """Images near their captions, negatives away from them, log s; all of which want a gradient."""
    generator = torch.Generator().manual_seed(4)
    noise = [torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(3)]
    text = F.normalize(noise[0], dim=-1)
    image, negative = F.normalize(text + noise[1] / 3, dim=-1), F.normalize(noise[2] / 2 - text, dim=-1)
    return [x.requires_grad_() for x in (image, text, negative, torch.tensor(math.log(20), dtype=torch.float64))]


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    pairs = [
        torch.autograd.grad(x, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
        for x in (found, expected)
    ]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=100 * tolerance, atol=tolerance)


def forgotten(inputs: list[Tensor], forget_ratio: float, formulation: str) -> list[int]:
    return split_batch(clean_confidence(*inputs[:2], inputs[3], formulation), forget_ratio)[0].tolist()


def distance(text: Tensor, negative: Tensor, members: list[int]) -> Tensor:
    return sum(2 - ((text[i] - negative[i]) ** 2).sum().sqrt() for i in members) / len(members)


def divergence(rows: Tensor, columns: Tensor, similarity: Tensor, log_scale: Tensor, formulation: str) -> Tensor:
    """L_otr cell by cell; `rows` and `columns` are the targets (N, C) and (C, N)."""
    n, width = similarity.shape
    over_texts = (log_scale.exp() * similarity).log_softmax(1)
    over_images = (log_scale.exp() * similarity).log_softmax(0)
    total = 0 * log_scale
    for i in range(n):
        for j in range(width):
            for target, prediction, size in ((rows[i, j], over_texts, n), (columns[j, i], over_images, width)):
                if target > 0:
                    total = total + target * (target.log() - prediction[i, j]) / size
    return total / (2 if formulation == "released" else 1)


# V2


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("forget_ratio", [0.0, 0.4])
def test_max_distance_phase_1(forget_ratio, formulation, inputs):
    image, text, negative, log_scale = inputs
    arguments = MethodArguments(forget_ratio=forget_ratio, formulation=formulation, relation_weight=3.0)
    out = forgotten(inputs, forget_ratio, formulation)
    retain = [i for i in range(N) if i not in out]
    matching = sum(matching_losses(image[retain], text[retain], negative[retain], torch.arange(len(retain)), log_scale))
    found = total_loss(MaxDistancePromptObjective(arguments)(*inputs))
    assert_same(found, 3.0 * distance(text, negative, retain) + matching, inputs)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_max_distance_phase_2(formulation, inputs):
    arguments = MethodArguments(forget_ratio=0.4, formulation=formulation)
    expected = UnlearningObjective(arguments)(*inputs)["alignment_loss"] + distance(*inputs[1:3], list(range(N)))
    found = MaxDistanceUnlearningObjective(arguments)(*inputs)
    assert_same(total_loss(found), expected, inputs)
    assert "separation_loss" not in found


def test_max_distance_is_least_for_opposites_and_has_no_gradient_where_they_are_equal(inputs):
    text = inputs[1].detach()
    for negative, loss in ((-text, 0.0), (text.clone(), 2.0)):
        outputs = MaxDistanceUnlearningObjective(MethodArguments())(
            inputs[0], inputs[1], negative.requires_grad_(), inputs[3]
        )
        assert outputs["distance_loss"].item() == pytest.approx(loss, abs=1e-12)
        gradient = torch.autograd.grad(outputs["distance_loss"], negative)[0]
        assert gradient.isfinite().all() and gradient.any() == (loss == 0)


# V3


def sinkhorn(cost: Tensor, *, entropy: float, stop: float, limit: int) -> Tensor:
    """Plan of uniform marginals; ends after the iteration in which the row potential (in units of cost) rests."""
    n, width = cost.shape
    u, v = torch.zeros(n, 1, dtype=cost.dtype), torch.zeros(1, width, dtype=cost.dtype)
    for _ in range(limit):
        before = u
        u = entropy * (math.log(1 / n) - ((v - cost) / entropy).logsumexp(1, keepdim=True))
        v = entropy * (math.log(1 / width) - ((u - cost) / entropy).logsumexp(0, keepdim=True))
        if (u - before).abs().sum() < stop:
            break
    return ((u + v - cost) / entropy).exp()


@pytest.mark.parametrize(("formulation", "entropy"), [("released", 0.03), ("released", 0.2), ("paper", 0.2)])
def test_false_negatives_only(formulation, entropy, inputs):
    image, text, negative, log_scale = inputs
    similarity = image @ text.T
    cost = 1 - similarity.detach()
    if formulation == "released":
        plans = [sinkhorn(c / c.max(), entropy=entropy, stop=1e-4, limit=100) for c in (cost, cost.T)]
    else:
        plan = sinkhorn(cost, entropy=entropy, stop=0.0, limit=2000)
        plans = [plan, plan.T]
    rows, columns = (0.7 * plan / plan.sum(1, keepdim=True) + 0.3 * torch.eye(N, dtype=torch.float64) for plan in plans)
    expected = divergence(rows, columns, similarity, log_scale, formulation)
    expected = expected + separation_losses(text, negative, -0.7, -0.2).mean()
    arguments = MethodArguments(forget_ratio=0.4, formulation=formulation, entropy=entropy)
    found = FalseNegativesObjective(arguments)(*inputs)
    assert_same(total_loss(found), expected, inputs, tolerance=1e-9)
    assert "clean_confidence_forget" not in found
    assert rows[0, 0] < 1 and found["plan_entropy"] > math.log(N)


def test_false_negatives_only_meets_negatives_in_the_separation_alone(inputs):
    outputs = FalseNegativesObjective(MethodArguments())(*inputs)
    gradient = torch.autograd.grad(outputs["alignment_loss"], inputs, allow_unused=True, materialize_grads=True)
    assert gradient[2].eq(0).all() and gradient[0].any()


def test_without_the_last_column_the_plan_is_that_of_nothing_forgotten(inputs):
    """A column that nothing may go to changes neither plan nor targets (the `paper` formulation does not rescale)."""
    image, text, negative, _ = (x.detach() for x in inputs)
    extended = torch.cat([image @ text.T, (image * negative).sum(1, keepdim=True)], dim=1)
    none = torch.tensor([], dtype=torch.int64)
    found, expected = (
        refine_alignment(s, none, plan_weight=0.7, entropy=0.03, formulation="paper")
        for s in (extended[:, :N], extended)
    )
    torch.testing.assert_close(found.row_target, expected.row_target[:, :N], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.column_target, expected.column_target[:N], rtol=1e-9, atol=1e-12)


# V4


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(("forget_ratio", "k"), [(0.0, 0), (0.15, 1), (0.4, 3), (0.99, 8)])
def test_false_positives_only(forget_ratio, k, formulation, inputs):
    image, text, negative, log_scale = inputs
    out = forgotten(inputs, forget_ratio, formulation)
    similarity = torch.cat([image @ text.T, (image * negative).sum(1, keepdim=True)], dim=1)
    rows, columns = torch.zeros(N, N + 1, dtype=torch.float64), torch.zeros(N + 1, N, dtype=torch.float64)
    for i in range(N):
        j = N if i in out else i
        rows[i, j] = 1
        columns[j, i] = 1 / k if i in out and formulation == "paper" else 1
    expected = divergence(rows, columns, similarity, log_scale, formulation)
    expected = expected + separation_losses(text, negative, -0.7, -0.2).mean()
    arguments = MethodArguments(forget_ratio=forget_ratio, formulation=formulation)
    found = FalsePositivesObjective(arguments)(*inputs)
    assert len(out) == k
    assert_same(total_loss(found), expected, inputs)
    assert not [key for key in found if key.startswith("plan_")]


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_false_positives_only_is_ncu_with_a_plan_of_no_weight(formulation, inputs):
    arguments = {"forget_ratio": 0.4, "formulation": formulation}
    found = total_loss(FalsePositivesObjective(MethodArguments(**arguments))(*inputs))
    expected = total_loss(UnlearningObjective(MethodArguments(**arguments, plan_weight=0.0))(*inputs))
    assert_same(found, expected, inputs, tolerance=0)


# V1


@pytest.fixture(scope="module")
def collator() -> PairCollator:
    """One token a letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=40)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    transform = ImageTransform(processor, train=False)
    return PairCollator(tokenizer, transform, context_length=40, negative_prefixes=NEGATING_PREFIXES)


def located(number: int, epoch: int = 0) -> Located:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return Located(Record(f"key{number}", buffer.getvalue(), f"dog {'abc'[number % 3]}"), "shard", epoch, (number,))


def prefixes_of(collator: PairCollator, records: list[Located], seed: int = 0) -> list[str]:
    """The prefix before each negative caption; fails where a row is no caption behind a prefix."""
    batch = collator(records, seed=seed)
    texts = [collator.tokenizer.decode(row, skip_special_tokens=True).strip() for row in batch["negative_input_ids"]]
    captions = [record.record.caption for record in records]
    assert torch.equal(batch["input_ids"], collator.tokenize(captions))
    found = [[p for p in NEGATING_PREFIXES if text == f"{p} {c}"] for text, c in zip(texts, captions, strict=True)]
    return [prefix for (prefix,) in found]


def test_prefixes_are_drawn_by_seed_epoch_and_position(collator):
    whole = prefixes_of(collator, [located(i) for i in range(60)])
    assert set(whole) == set(NEGATING_PREFIXES)
    parts = [
        *prefixes_of(collator, [located(i) for i in range(17)]),
        *prefixes_of(collator, [located(i) for i in range(17, 60)]),
    ]
    assert parts == whole
    assert prefixes_of(collator, [located(i, epoch=1) for i in range(60)]) != whole
    assert prefixes_of(collator, [located(i) for i in range(60)], seed=1) != whole


def test_without_prefixes_the_collator_adds_nothing(collator):
    plain = PairCollator(collator.tokenizer, collator.transform, context_length=40)
    assert "negative_input_ids" not in plain([located(0)], seed=0)


def test_a_long_caption_behind_a_prefix_keeps_its_end_token(collator):
    record = Record("key", located(0).record.image, "a" * 60)
    ids = collator([Located(record, "shard", 0, (0,))], seed=0)["negative_input_ids"]
    assert ids.shape == (1, 40)
    assert ids[0, -1] == collator.tokenizer.eos_token_id and (ids == collator.tokenizer.eos_token_id).sum() == 1


def test_written_negatives_are_texts_like_any_other(make_clip):
    model = NCUModel(make_clip())
    ids = torch.tensor([[118, 4, 5, 119], [118, 9, 119, 119]])
    assert torch.equal(model.encode_negative_text(ids), model.encode_text(ids))


def test_text_negation_unlearns_as_ncu_does(inputs):
    arguments = MethodArguments(forget_ratio=0.4)
    objective = TextNegationObjective(arguments)
    assert objective.needs_negative_text and not objective.needs_prompt
    assert len(set(NEGATING_PREFIXES)) == len(NEGATING_PREFIXES) > 1
    expected = UnlearningObjective(arguments)(*inputs)
    assert_same(total_loss(objective(*inputs)), total_loss(expected), inputs, tolerance=0)


def test_naive_sums_agree_with_those_of_ncu(inputs):
    """The oracle of this file, on the targets of the method itself."""
    image, text, negative, log_scale = inputs
    similarity = torch.cat([image @ text.T, (image * negative).sum(1, keepdim=True)], dim=1)
    refined = refine_alignment(similarity, torch.tensor([2, 5]), plan_weight=0.7, entropy=0.03, formulation="released")
    targets = refined.row_target, refined.column_target
    found = alignment_loss(similarity, *targets, log_scale, "released")
    assert_same(found, divergence(*targets, similarity, log_scale, "released"), inputs)
