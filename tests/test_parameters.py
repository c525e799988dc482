"""Each phase trains exactly the parameters that the method names, in the right optimizer group."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPModel

from ncu_hf.adapters import add_adapters, merged
from ncu_hf.config import MethodArguments, NCUTrainingArguments
from ncu_hf.errors import InputError
from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.objectives import build_objectives
from ncu_hf.parameters import freeze, parameter_groups

BLOCK = [
    f"{part}.{kind}"
    for part in (
        *(f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")),
        *("layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2"),
    )
    for kind in ("weight", "bias")
]
TEXT_EMBEDDINGS = [f"clip.text_model.embeddings.{kind}_embedding.weight" for kind in ("token", "position")]
VISION_REST = [
    "clip.vision_model.embeddings.class_embedding",
    "clip.vision_model.embeddings.patch_embedding.weight",
    "clip.vision_model.embeddings.position_embedding.weight",
    *(f"clip.vision_model.{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")),
]
HEADS = ["clip.logit_scale", "clip.visual_projection.weight", "clip.text_projection.weight"]
TEXT_NORM = [f"clip.text_model.final_layer_norm.{kind}" for kind in ("weight", "bias")]
PROMPT = ["negative_prompt.vectors"]


def blocks(tower: str, numbers: range) -> list[str]:
    return [f"clip.{tower}_model.encoder.layers.{i}.{name}" for i in numbers for name in BLOCK]


def model_of(clip: CLIPModel, method: str) -> NCUModel:
    return NCUModel(clip, NegativePrompt(NegativePromptConfig(4, 32)) if method != "clip" else None)


def trainable_names(model: NCUModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained(clip: CLIPModel, phase: int, **settings) -> set[str]:
    objective = build_objectives(MethodArguments(**settings))[phase]
    model = model_of(clip, objective.arguments.method)
    freeze(model, objective)
    return trainable_names(model)


def test_phase_1_trains_text_tower_projections_scale_and_prompt(make_clip):
    expected = {*TEXT_EMBEDDINGS, *blocks("text", range(7)), *TEXT_NORM, *HEADS, *PROMPT}
    assert trained(make_clip(text_layers=7), 0) == expected


def test_phase_2_freezes_prompt_text_embeddings_and_blocks_0_to_4(make_clip):
    expected = {*blocks("text", range(5, 7)), *TEXT_NORM, *blocks("vision", range(2)), *VISION_REST, *HEADS}
    assert trained(make_clip(text_layers=7), 1) == expected
    with_tokens = trained(make_clip(text_layers=7), 1, freeze_token_embedding=False)
    assert with_tokens - expected == {TEXT_EMBEDDINGS[0]}


@pytest.mark.parametrize(("layers", "frozen"), [(12, 5), (6, 5), (5, 2), (4, 1), (3, 1), (2, 0)])
def test_frozen_blocks_of_short_towers(layers, frozen):
    assert MethodArguments().text_blocks_to_freeze(layers) == frozen
    assert MethodArguments(frozen_text_blocks=1).text_blocks_to_freeze(layers) == 1


def test_clip_trains_everything(make_clip):
    clip = make_clip()
    assert trained(clip, 0, method="clip") == {f"clip.{name}" for name, _ in clip.named_parameters()}


def test_too_many_frozen_blocks_are_refused(make_clip):
    with pytest.raises(InputError, match="the text tower has 3 blocks"):
        trained(make_clip(), 1, frozen_text_blocks=4)


def test_groups_decay_weights_and_embeddings_alone(make_clip):
    objective = build_objectives(MethodArguments())[0]
    model = model_of(make_clip(), "ncu")
    freeze(model, objective)
    args = NCUTrainingArguments(output_dir="unused", global_batch_size=8, prompt_weight_decay=0.1, use_cpu=True)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [
        ({names[id(p)] for p in g["params"]}, g["weight_decay"], g.get("lr")) for g in parameter_groups(model, args)
    ]
    decayed, undecayed, prompt, scale = groups
    assert decayed[1:] == (0.2, None) and undecayed[1:] == (0.0, None)
    assert prompt == (set(PROMPT), 0.1, 3e-4)
    assert scale == ({"clip.logit_scale"}, 0.0, None)
    norms = {n for n in trainable_names(model) if "norm" in n}
    assert undecayed[0] == norms | {n for n in trainable_names(model) if n.endswith(".bias")}
    assert decayed[0] | undecayed[0] | prompt[0] | scale[0] == trainable_names(model)
    assert {*TEXT_EMBEDDINGS, "clip.text_projection.weight"} <= decayed[0]


def adapted(clip: CLIPModel, towers: tuple[str, ...], phase: int) -> set[str]:
    add_adapters(clip, towers, rank=2, alpha=None)
    objective = build_objectives(MethodArguments())[phase]
    model = model_of(clip, "ncu")
    freeze(model, objective, towers)
    return trainable_names(model)


def test_adapters_train_in_place_of_their_tower(make_clip):
    both = adapted(make_clip(text_layers=7), ("text", "vision"), 1)
    assert {name for name in both if ".lora_" not in name} == set(HEADS)
    layers = {name.split("layers.")[1].split(".")[0] for name in both if "text_model" in name}
    assert layers == {"5", "6"}
    assert any("vision_model" in name for name in both)


def test_phase_1_leaves_vision_adapters_alone(make_clip):
    names = adapted(make_clip(text_layers=7), ("text", "vision"), 0)
    assert {name for name in names if ".lora_" not in name} == {*HEADS, *PROMPT}
    assert not any("vision_model" in name for name in names)


def test_a_tower_without_adapters_trains_in_full(make_clip):
    names = adapted(make_clip(text_layers=7), ("text",), 1)
    assert {*blocks("vision", range(2)), *VISION_REST} <= names


def test_merged_adapters_leave_a_plain_clip_with_the_same_embeddings(make_clip):
    clip = make_clip()
    keys = clip.state_dict().keys()
    add_adapters(clip, ("text", "vision"), rank=3, alpha=5)
    for name, parameter in clip.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    plain = merged(clip)
    assert plain.state_dict().keys() == keys
    pixels, ids = torch.randn(2, 3, 32, 32), torch.tensor([[118, 4, 119], [118, 9, 119]])
    found, expected = (NCUModel(m)(pixels, ids)[0] for m in (plain, clip))
    torch.testing.assert_close(found.image, expected.image, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.text, expected.text, atol=2e-6, rtol=0)
    assert not torch.allclose(found.text, NCUModel(make_clip())(pixels, ids)[0].text, atol=1e-3)
