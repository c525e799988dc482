"""Updates that belong to the negative prompt: exact, active in the negative pass alone, stored with the prompt."""

from __future__ import annotations

import copy

import pytest
import torch

from ncu_hf.errors import InputError
from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig, load_prompt

END, RANK = 119, 3
CAPTIONS = torch.tensor([[118, 3, 4, 5, END], [118, 7, END, END, END]])


@pytest.fixture
def model(make_clip) -> NCUModel:
    clip = make_clip(END)
    torch.manual_seed(0)
    return NCUModel(clip, NegativePrompt(NegativePromptConfig.of(clip.config.text_config, 4, RANK)))


def learn(model: NCUModel) -> None:
    """Updates as if they had been trained: B is zero at the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.negative_prompt.updates.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_updates_start_as_no_update(model):
    plain = NegativePrompt(NegativePromptConfig(4, 32))
    plain.vectors = model.negative_prompt.vectors
    expected = NCUModel(model.clip, plain).encode_negative_text(CAPTIONS)
    torch.testing.assert_close(model.encode_negative_text(CAPTIONS), expected)
    learn(model)
    assert not torch.allclose(model.encode_negative_text(CAPTIONS), expected, atol=1e-3)


def test_negative_pass_is_that_of_a_tower_with_updated_weights(model):
    learn(model)
    tower = copy.deepcopy(model.clip)
    with torch.no_grad():
        for index, block in enumerate(model.negative_prompt.updates.blocks):
            for name, update in block.items():
                part = "mlp" if name.startswith("fc") else "self_attn"
                linear = tower.text_model.get_submodule(f"encoder.layers.{index}.{part}.{name}")
                linear.weight += 2 * update.up.weight @ update.down.weight
    plain = NegativePrompt(NegativePromptConfig(4, 32))
    plain.vectors = model.negative_prompt.vectors
    expected = NCUModel(tower, plain).encode_negative_text(CAPTIONS)
    torch.testing.assert_close(model.encode_negative_text(CAPTIONS), expected, atol=2e-6, rtol=0)


def test_captions_are_encoded_as_before(model):
    before = model.encode_text(CAPTIONS)
    learn(model)
    model.encode_negative_text(CAPTIONS)
    assert torch.equal(model.encode_text(CAPTIONS), before)
    assert not any(module._forward_hooks for module in model.clip.modules())


def test_a_failed_pass_leaves_no_hook(model):
    with pytest.raises(IndexError):
        model.encode_negative_text(torch.full((1, 4), 10**6))
    assert not any(module._forward_hooks for module in model.clip.modules())


def test_gradient_reaches_the_prompt_or_nothing(model):
    learn(model)
    model.clip.requires_grad_(False)
    model.encode_negative_text(CAPTIONS).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.negative_prompt.parameters())
    model.clip.requires_grad_(True)
    model.negative_prompt.requires_grad_(False)
    assert not model.encode_negative_text(CAPTIONS).requires_grad
    assert model.encode_text(CAPTIONS).requires_grad


def test_a_frozen_prompt_without_updates_still_trains_the_tower(make_clip):
    model = NCUModel(make_clip(END), NegativePrompt(NegativePromptConfig(4, 32)))
    model.negative_prompt.requires_grad_(False)
    assert model.encode_negative_text(CAPTIONS).requires_grad


def test_saved_with_the_prompt_and_not_in_the_model(model, tmp_path):
    learn(model)
    model.save_pretrained(tmp_path)
    loaded = load_prompt(tmp_path)
    assert loaded.config.rank == RANK
    for name, tensor in model.negative_prompt.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert torch.equal(
        NCUModel.from_pretrained(tmp_path).encode_negative_text(CAPTIONS), model.encode_negative_text(CAPTIONS)
    )


@pytest.mark.parametrize("other", [{"layers": 5}, {"mlp_width": 7}])
def test_updates_of_another_tower_are_refused(model, other):
    config = NegativePromptConfig(**(model.negative_prompt.config.to_dict() | other))
    with pytest.raises(InputError, match="updates for"):
        NCUModel(model.clip, NegativePrompt(config))
