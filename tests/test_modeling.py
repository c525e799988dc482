"""The negative prompt in the text tower: exact for both pooling modes and any caption length."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from ncu_hf.errors import InputError
from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig, behind_start, load_prompt

START, END, CONTEXT = 118, 119, 20
POOLING = [pytest.param(END, id="first-end"), pytest.param(2, id="argmax")]


def captions(*lengths: int) -> torch.Tensor:
    """Rows of `lengths` words between start and end, padded with the end token."""
    width = max(lengths) + 2
    rows = [[START, *range(3, 3 + n), *[END] * (width - n - 1)] for n in lengths]
    return torch.tensor(rows)


def oracle(clip: CLIPModel, prompt: torch.Tensor, words: list[int]) -> torch.Tensor:
    """[start, prompt, words, end] written out for one caption, with an explicit causal mask and the last position."""
    text = clip.text_model
    room = CONTEXT - 2 - len(prompt)
    ids = torch.tensor([START, *words[:room], END])
    embedded = text.embeddings.token_embedding(ids)
    hidden = torch.cat([embedded[:1], prompt, embedded[1:]])
    hidden = (hidden + text.embeddings.position_embedding(torch.arange(len(hidden))))[None]
    mask = torch.full((len(hidden[0]), len(hidden[0])), float("-inf")).triu(1)[None, None]
    for layer in text.encoder.layers:
        hidden = layer(hidden, attention_mask=mask)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    pooled = text.final_layer_norm(hidden)[0, -1]
    return F.normalize(clip.text_projection(pooled), dim=-1)


@pytest.mark.parametrize("eos_token_id", POOLING)
@pytest.mark.parametrize("length", [1, 8, CONTEXT - 3])
def test_negative_text_is_start_prompt_caption_end(eos_token_id, length, make_clip):
    clip = make_clip(eos_token_id)
    prompt = NegativePrompt(NegativePromptConfig(length, 32))
    lengths = (0, 1, 4, 9, 10, 11, CONTEXT - 2)
    model = NCUModel(clip, prompt)
    found = model.encode_negative_text(captions(*lengths))
    for row, n in zip(found, lengths, strict=True):
        expected = oracle(clip, prompt.vectors, list(range(3, 3 + n)))
        torch.testing.assert_close(row, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("eos_token_id", POOLING)
def test_prompt_of_length_0_is_get_text_features(eos_token_id, make_clip):
    clip = make_clip(eos_token_id)
    model = NCUModel(clip, NegativePrompt(NegativePromptConfig(0, 32)))
    ids = captions(0, 3, CONTEXT - 2)
    features = clip.get_text_features(input_ids=ids)
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    torch.testing.assert_close(model.encode_negative_text(ids), F.normalize(features, dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("eos_token_id", POOLING)
def test_a_caption_loses_words_but_never_its_end_token(eos_token_id):
    ids = captions(2, CONTEXT - 2)
    full, short = behind_start(ids, 11, eos_token_id).flip(0).tolist()
    assert full == [*range(3, 13), END]
    assert short == [3, 4, *[END] * 9]
    assert torch.equal(behind_start(ids, CONTEXT, eos_token_id), ids[:, 1:])


@pytest.mark.parametrize("eos_token_id", POOLING)
def test_padding_changes_nothing(eos_token_id, make_clip):
    model = NCUModel(make_clip(eos_token_id), NegativePrompt(NegativePromptConfig(4, 32)))
    short, padded = captions(3), captions(3, 12)[:1]
    for encode in (model.encode_text, model.encode_negative_text):
        torch.testing.assert_close(encode(short), encode(padded), atol=1e-6, rtol=0)


def test_caption_pass_does_not_see_the_prompt(make_clip):
    clip = make_clip()
    model = NCUModel(clip, NegativePrompt(NegativePromptConfig(4, 32)))
    before = model.encode_text(captions(3))
    model.encode_negative_text(captions(3))
    assert torch.equal(model.encode_text(captions(3)), before)
    assert not clip.text_model.embeddings.token_embedding._forward_hooks


def test_prompt_receives_gradient_and_the_placeholders_do_not(make_clip):
    clip = make_clip()
    model = NCUModel(clip, NegativePrompt(NegativePromptConfig(4, 32)))
    model.encode_negative_text(captions(2))[:, 0].sum().backward()
    assert model.negative_prompt.vectors.grad.abs().amin(dim=1).gt(0).all()
    embedding = clip.text_model.embeddings.token_embedding.weight.grad.norm(dim=1)
    assert set(embedding.nonzero().flatten().tolist()) == {3, 4, START, END}


def test_initial_prompt_has_the_released_deviation():
    torch.manual_seed(0)
    vectors = NegativePrompt(NegativePromptConfig(64, 512)).vectors
    assert abs(vectors.std().item() - 0.02) < 5e-4
    assert abs(vectors.mean().item()) < 5e-4


def test_save_and_load(make_clip, tmp_path):
    clip = make_clip()
    model = NCUModel(clip, NegativePrompt(NegativePromptConfig(5, 32)))
    model.save_pretrained(tmp_path)
    plain, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert plain.state_dict().keys() == clip.state_dict().keys()
    loaded = NCUModel(plain.eval(), load_prompt(tmp_path))
    ids = captions(2, 7)
    assert torch.equal(loaded.encode_negative_text(ids), model.encode_negative_text(ids))
    assert torch.equal(NCUModel.from_pretrained(tmp_path).negative_prompt.vectors, model.negative_prompt.vectors)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("length", "width", "words"), [(CONTEXT - 2, 32, "at most 17"), (4, 16, "width 16, the text tower 32")]
)
def test_a_prompt_that_does_not_fit_is_refused(length, width, words, make_clip):
    with pytest.raises(InputError, match=words):
        NCUModel(make_clip(), NegativePrompt(NegativePromptConfig(length, width)))
