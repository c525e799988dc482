"""Both text passes, without padding and with the prompt encoded once, against passes that are padded to the context."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.text_batches import caption_lengths, cut_lengths, sub_batch_overhead

START, END, CONTEXT, M = 118, 119, 20, 4
POOLING = [pytest.param(END, id="first-end"), pytest.param(2, id="argmax")]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# Words of the captions: ragged up to the full context, one row, all alike.
BATCHES = {"ragged": [3, 18, 0, 7, 1, 18, 12, 2, 15, 10, 4, 4] * 8, "one": [5], "alike": [6] * 5}


def words_of(row: int, count: int) -> list[int]:
    return [3 + (7 * row + 5 * i) % 100 for i in range(count)]


def captions(batch: list[int]) -> Tensor:
    width = max(batch) + 2
    rows = [[START, *words_of(row, n), *[END] * (width - n - 1)] for row, n in enumerate(batch)]
    return torch.tensor(rows)


def padded(model: NCUModel, batch: list[int], negative: bool) -> Tensor:
    """Embeddings of whole rows, all padded to the context, with a written-out mask; the tower's own blocks."""
    text, vectors = model.clip.text_model, model.negative_prompt.vectors
    m = len(vectors) if negative else 0
    kept = [words_of(row, n)[: CONTEXT - 2 - m] for row, n in enumerate(batch)]
    ids = torch.tensor([[START] * (1 + m) + words + [END] * (CONTEXT - 1 - m - len(words)) for words in kept])
    hidden = text.embeddings.token_embedding(ids)
    if negative:
        hidden = torch.cat([hidden[:, :1], vectors.expand(len(batch), -1, -1), hidden[:, 1 + m :]], dim=1)
    hidden = hidden + text.embeddings.position_embedding.weight
    mask = torch.full((CONTEXT, CONTEXT), -torch.inf, dtype=hidden.dtype).triu(1)[None, None]
    updates = model.negative_prompt.updates if negative else None
    with nullcontext() if updates is None else updates.added_to(text):
        for layer in text.encoder.layers:
            hidden = layer(hidden, attention_mask=mask)
    ends = torch.tensor([1 + m + len(words) for words in kept])
    pooled = text.final_layer_norm(hidden)[torch.arange(len(batch)), ends]
    return F.normalize(model.clip.text_projection(pooled), dim=-1)


def gradients(model: NCUModel, embeds: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs every entry differently."""
    model.zero_grad(set_to_none=False)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(embeds.shape, generator=generator, dtype=torch.float64).to(embeds)
    (embeds * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[0, 3], ids=["plain", "updates"])
def make_model(request, make_clip):
    def make(eos_token_id: int, dtype: torch.dtype) -> NCUModel:
        clip = make_clip(eos_token_id)
        torch.manual_seed(0)
        prompt = NegativePrompt(NegativePromptConfig.of(clip.config.text_config, M, request.param))
        if request.param:
            for parameter in prompt.updates.parameters():  # the half that is zero at the start has been trained
                torch.nn.init.normal_(parameter, std=0.3)
        return NCUModel(clip, prompt).to(dtype)

    return make


@pytest.mark.parametrize("negative", [False, True], ids=["caption", "negative"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("eos_token_id", POOLING)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_value_and_gradient_are_those_of_the_padded_pass(dtype, eos_token_id, batch, negative, make_model):
    model, ids = make_model(eos_token_id, dtype), captions(BATCHES[batch])
    encode = model.encode_negative_text if negative else model.encode_text
    expected = padded(model, BATCHES[batch], negative)
    expected_gradients = gradients(model, expected)
    for lengths in (None, caption_lengths(ids, eos_token_id)):
        found = encode(ids, lengths)
        assert (found - expected).abs().max() < TOLERANCE[dtype]
        found_gradients = gradients(model, found)
        assert found_gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            scale = max(1.0, gradient.abs().max().item())
            assert (found_gradients[name] - gradient).abs().max() < TOLERANCE[dtype] * scale, name
    assert ("negative_prompt.vectors" in expected_gradients) == negative


def test_padding_and_prompt_are_not_encoded_row_by_row(make_model):
    """Counted at a block: it sees every token."""
    model, batch = make_model(END, torch.float32), BATCHES["ragged"]
    ids, shapes = captions(batch), []
    model.clip.text_model.encoder.layers[-1].register_forward_hook(
        lambda _module, args, _output: shapes.append(tuple(args[0].shape[:2]))
    )
    lengths = caption_lengths(ids, END)
    for encode, wanted in (
        (model.encode_text, [n + 2 for n in batch]),
        (model.encode_negative_text, [min(n + 1, CONTEXT - 1 - M) for n in batch]),
    ):
        shapes.clear()
        encode(ids, lengths)
        if encode == model.encode_negative_text:
            assert shapes.pop(0) == (1, 1 + M)
        assert len(shapes) > 1 and shapes == cut_lengths(wanted, sub_batch_overhead(ids.device))
        assert sum(rows * width for rows, width in shapes) < 0.6 * len(batch) * CONTEXT


def test_the_attention_of_the_tower_is_given_back(make_clip):
    model = NCUModel(make_clip(), NegativePrompt(NegativePromptConfig(M, 32)))
    config = model.clip.text_model.config
    config._attn_implementation = "eager"
    expected = model.encode_negative_text(captions([3, 9]))
    assert config._attn_implementation == "eager"
    with pytest.raises(IndexError):
        model.encode_negative_text(torch.full((1, 4), 10**6))
    assert config._attn_implementation == "eager"
    config._attn_implementation = "sdpa"
    torch.testing.assert_close(model.encode_negative_text(captions([3, 9])), expected)


@pytest.mark.parametrize(
    ("method", "own", "negatives"),
    [("clip", False, None), ("ncu", False, "input_ids"), ("ncu", True, "negative_input_ids")],
)
def test_the_trainer_knows_the_lengths_before_the_ids_leave_the_cpu(method, own, negatives, trainers_of):
    trainer = trainers_of(method)[-1]
    end = trainer.model.clip.config.text_config.eos_token_id
    rows = {"input_ids": [5, 3, 7], **({"negative_input_ids": [4, 9, 3]} if own else {})}
    chunk = {key: torch.full((3, 9), end) for key in rows}
    for key, lengths in rows.items():
        for row, length in zip(chunk[key], lengths, strict=True):
            row[: length - 1] = 1
    chunk["pixel_values"] = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    _, input_ids, negative_ids, lengths, negative_lengths = trainer._encode(lambda *inputs: inputs, chunk)
    assert torch.equal(input_ids, chunk["input_ids"]) and lengths == tuple(rows["input_ids"])
    if negatives is None:
        assert negative_ids is negative_lengths is None
    else:
        assert torch.equal(negative_ids, chunk[negatives]) and negative_lengths == tuple(rows[negatives])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="what is asserted is that a GPU is not waited for")
def test_a_gpu_is_not_waited_for(make_model):
    model, ids = make_model(END, torch.float32).cuda(), captions(BATCHES["ragged"] * 8)
    lengths, ids = caption_lengths(ids, END), ids.cuda()
    assert len(cut_lengths(lengths, sub_batch_overhead(ids.device))) > 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        embeds = model.encode_text(ids, lengths), model.encode_negative_text(ids, lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for found, encode in zip(embeds, (model.encode_text, model.encode_negative_text), strict=True):
        torch.testing.assert_close(found, encode(ids), atol=1e-5, rtol=0)
