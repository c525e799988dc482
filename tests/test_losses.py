"""Losses against sums written out over pairs, value and gradient, and the golden values of the released code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ncu_hf.losses import (
    alignment_loss,
    contrastive_loss,
    contrastive_losses,
    extended_similarity,
    matching_losses,
    relation_loss,
    separation_losses,
)

N, D = 7, 5
SCALES = [0.0, 1.3, math.log(100)]


@pytest.fixture
def leaves():
    generator = torch.Generator().manual_seed(1)
    embeds = [F.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=-1) for _ in range(3)]
    return [e.requires_grad_() for e in embeds]


def assert_same(found: torch.Tensor, expected: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(x, leaves, allow_unused=True, materialize_grads=True, retain_graph=True)
        for x in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("log_scale", SCALES)
def test_contrastive_loss(log_scale, leaves):
    v, t, _ = leaves
    s = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    expected = 0
    for i in range(N):
        row = torch.stack([s.exp() * v[i] @ t[j] for j in range(N)])
        column = torch.stack([s.exp() * v[j] @ t[i] for j in range(N)])
        expected = expected - (row.log_softmax(0)[i] + column.log_softmax(0)[i]) / (2 * N)
    assert_same(contrastive_loss(v, t, s), expected, [v, t, s])


def test_contrastive_loss_is_that_of_clip(make_clip):
    clip = make_clip()
    pixels, ids = torch.randn(4, 3, 32, 32), torch.tensor([[118, 5 + i, 119] for i in range(4)])
    outputs = clip(pixel_values=pixels, input_ids=ids, return_loss=True)
    found = contrastive_loss(outputs.image_embeds, outputs.text_embeds, clip.logit_scale)
    torch.testing.assert_close(found, outputs.loss)


def test_separation_losses(leaves):
    _, t, n = leaves
    expected = 0
    for i in range(N):
        x = t[i] @ n[i]
        expected = expected + (max(-0.7 - x, x * 0) + max(x + 0.2, x * 0)) / N
    assert_same(separation_losses(t, n, -0.7, -0.2).mean(), expected, [t, n])


@pytest.mark.parametrize(("similarity", "expected"), [(-1.0, 0.3), (-0.7, 0.0), (-0.4, 0.0), (-0.2, 0.0), (1.0, 1.2)])
def test_separation_losses_at_and_around_the_margins(similarity, expected):
    t = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    n = torch.tensor([[similarity, math.sqrt(1 - similarity**2)]], dtype=torch.float64)
    assert separation_losses(t, n, -0.7, -0.2).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("formulation", ["released", "paper"])
def test_relation_loss(formulation, leaves):
    _, t, n = leaves
    expected = 0
    for i in range(N):
        for j in range(N):
            released = t[i] @ t[j] - n[i] @ n[j]
            paper = t[i] @ n[j] - t[j] @ n[i]
            expected = expected + (released if formulation == "released" else paper) ** 2 / N
    assert_same(relation_loss(t, n, t, n, formulation), expected, [t, n])
    parts = [relation_loss(t[rows], n[rows], t, n, formulation) for rows in (slice(0, 3), slice(3, N))]
    assert_same(sum(parts), expected, [t, n])


@pytest.mark.parametrize("log_scale", SCALES)
def test_matching_losses(log_scale, leaves):
    v, t, n = leaves
    s = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    positive = negative = 0
    for i in range(N):
        for j in range(N):
            m = 1 if i == j else -1
            positive = positive - F.logsigmoid(m * s.exp() * (t[i] @ v[j])) / N
            negative = negative - F.logsigmoid(-m * s.exp() * (n[i] @ v[j])) / N
    own = torch.arange(N)
    for found, expected in zip(matching_losses(v, t, n, own, s), (positive, negative), strict=True):
        assert_same(found, expected, [*leaves, s])
    parts = [matching_losses(v, t[rows], n[rows], own[rows], s) for rows in (slice(0, 3), slice(3, N))]
    for found, expected in zip(zip(*parts, strict=True), (positive, negative), strict=True):
        assert_same(sum(found), expected, [*leaves, s])


@pytest.mark.parametrize("formulation", ["released", "paper"])
def test_alignment_loss(formulation, leaves):
    v, t, n = leaves
    s = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(2)
    rows = torch.rand(N, N + 1, generator=generator, dtype=torch.float64)
    columns = torch.rand(N + 1, N, generator=generator, dtype=torch.float64)
    rows[0, 1] = columns[2, 2] = 0  # 0 log 0 = 0
    similarity = torch.cat([v @ t.T, (v * n).sum(1, keepdim=True)], dim=1)
    torch.testing.assert_close(extended_similarity(v[2:], t, n[2:]), similarity[2:].detach())
    row_part = column_part = 0
    for i in range(N):
        q = (s.exp() * similarity[i]).softmax(0)
        row_part = row_part + sum(p * (p / q[j]).log() for j, p in enumerate(rows[i]) if p > 0) / N
    for j in range(N + 1):
        q = (s.exp() * similarity[:, j]).softmax(0)
        column_part = column_part + sum(p * (p / q[i]).log() for i, p in enumerate(columns[j]) if p > 0) / (N + 1)
    expected = (row_part + column_part) * (0.5 if formulation == "released" else 1)
    assert_same(alignment_loss(similarity, rows, columns, s, formulation), expected, [*leaves, s])


@pytest.mark.parametrize("log_scale", SCALES)
def test_contrastive_losses_are_those_of_single_pairs(log_scale, leaves):
    v, t, _ = leaves
    s = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    found = contrastive_losses(v, t, s)
    for i in range(N):
        row = torch.stack([s.exp() * v[i] @ t[j] for j in range(N)])
        column = torch.stack([s.exp() * v[j] @ t[i] for j in range(N)])
        assert_same(found[i], -(row.log_softmax(0)[i] + column.log_softmax(0)[i]) / 2, [v, t, s])
    torch.testing.assert_close(found.mean(), contrastive_loss(v, t, s), rtol=1e-14, atol=0)
