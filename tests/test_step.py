"""Chunks of a step: which rows they hold, and that the embeddings come back in the order of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ncu_hf.modeling import Embeddings
from ncu_hf.step import encode_rows, split_rows, two_stage_backward

LENGTHS = (4, 9, 2, 9, 5, 3, 7)
ROWS = len(LENGTHS)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    numbers = torch.arange(float(ROWS))[:, None]
    return {"pixel_values": numbers.expand(-1, 3), "input_ids": numbers, "negative_input_ids": -numbers}


@pytest.mark.parametrize("size", [None, 1, 3, ROWS, 100])
def test_captions_of_like_length_come_together(size, batch):
    chunks = split_rows(batch, size, LENGTHS)
    parts = [part for part in chunks.parts if "input_ids" in part]
    assert parts == chunks.parts[: len(parts)]
    assert max(len(part["pixel_values"]) for part in chunks.parts) == min(size or ROWS, ROWS)
    assert torch.cat([part["pixel_values"] for part in chunks.parts]).equal(batch["pixel_values"])
    order = torch.cat([part["input_ids"] for part in parts])[:, 0].long()
    assert torch.cat([part["negative_input_ids"] for part in parts])[:, 0].equal(-order.float())
    if len(chunks.parts) == 1:
        assert chunks.captions is None and order.tolist() == list(range(ROWS))
    else:
        assert chunks.captions.equal(order)
        assert [LENGTHS[row] for row in order] == sorted(LENGTHS, reverse=True)
        assert order.tolist().index(1) < order.tolist().index(3)  # of equal length: in order


@pytest.mark.parametrize("seed", range(20))
def test_captions_take_no_more_room_than_as_many_of_the_longest(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, size = torch.randint(2, 60, (2,), generator=generator).tolist()
    lengths = torch.randint(1, 78, (rows,), generator=generator).tolist()
    numbers = torch.arange(rows)[:, None]
    parts = split_rows({"pixel_values": numbers, "input_ids": numbers}, size, lengths).parts
    dealt = [part["input_ids"][:, 0].tolist() for part in parts if "input_ids" in part]
    assert sorted(row for piece in dealt for row in piece) == list(range(rows))
    assert all(sum(lengths[row] for row in piece) <= min(size, rows) * max(lengths) for piece in dealt)
    assert all(len(piece) >= min(size, rows) for piece in dealt[:-1])


def encoder(weights: Tensor):
    """Embeddings that tell which row they are of, and log s."""
    log_scale = torch.nn.Parameter(torch.tensor(0.5))

    def encode(chunk: dict[str, Tensor]) -> tuple[Embeddings, Tensor]:
        names = ("input_ids", "negative_input_ids")
        texts = (chunk[name] * weights[1:2] if name in chunk else None for name in names)
        return Embeddings(chunk["pixel_values"] * weights[:1], *texts), log_scale

    return encode


@pytest.mark.parametrize("size", [None, 2, 3])
def test_embeddings_are_in_the_order_of_the_batch(size, batch):
    weights = torch.ones(2, requires_grad=True)
    found = encode_rows(encoder(weights), split_rows(batch, size, LENGTHS))
    assert found.image.equal(batch["pixel_values"])
    assert found.text.equal(batch["input_ids"]) and found.negative.equal(batch["negative_input_ids"])


@pytest.mark.parametrize("size", [None, 2, 3])
def test_each_row_gets_its_own_gradient(size, batch):
    """With a loss in which every row has a weight of its own, a gradient in the wrong place shows."""
    weights = torch.ones(2, requires_grad=True)
    places = torch.arange(1.0, ROWS + 1)[:, None]

    def objective(
        image: Tensor, text: Tensor, negative: Tensor, log_scale: Tensor, _shard: object
    ) -> dict[str, Tensor]:
        return {"some_loss": (places * image).sum() + (places**2 * text).sum() + (places**3 * negative).sum()}

    two_stage_backward(
        encoder(weights),
        split_rows(batch, size, LENGTHS),
        objective,
        backward=lambda loss: loss.backward(),
        check=lambda loss: None,
    )
    numbers = batch["input_ids"]
    expected = [3 * (places * numbers).sum(), ((places**2 - places**3) * numbers).sum()]
    torch.testing.assert_close(weights.grad, torch.stack(expected))


@pytest.mark.parametrize("images_learn", [True, False])
def test_images_alone_are_encoded_again_only_to_learn(images_learn, batch):
    """Seven chunks of one image, of which the first five have all captions."""
    weights, calls = torch.ones(2, requires_grad=True), []

    def encode(chunk: dict[str, Tensor]) -> tuple[Embeddings, Tensor]:
        calls.append("input_ids" in chunk)
        embeddings, _ = encoder(weights)(chunk)
        image = embeddings.image if images_learn else embeddings.image.detach()
        return embeddings._replace(image=image), torch.tensor(0.5)

    chunks = split_rows(batch, 1, LENGTHS)
    assert ["input_ids" in part for part in chunks.parts] == 5 * [True] + 2 * [False]
    two_stage_backward(
        encode,
        chunks,
        lambda image, text, negative, *_: {"some_loss": (image * text).sum()},
        backward=lambda loss: loss.backward(),
        check=lambda loss: None,
    )
    assert calls == 5 * [True] + 2 * [False] + images_learn * [False] + 5 * [True]
    numbers = batch["input_ids"]
    assert weights.grad.tolist() == [3 * images_learn * numbers.square().sum(), 3 * numbers.square().sum()]
