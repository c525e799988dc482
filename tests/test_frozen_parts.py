"""What is frozen costs no graph: no tensor is kept for its backward pass."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from ncu_hf.config import MethodArguments
from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.objectives import build_objectives
from ncu_hf.parameters import freeze
from ncu_hf.text_batches import caption_lengths

END, LAYERS = 119, 7
IDS = torch.tensor([[118, 3, 4, 5, 6, END], [118, 7, END, END, END, END]] * 20)
VISION, EMBEDDINGS = "clip.vision_model", "clip.text_model.embeddings"
CAPTION, NEGATIVE = "caption", "negative"


def block(index: int) -> str:
    return f"clip.text_model.encoder.layers.{index}"


def saved_tensors(model: NCUModel) -> Counter[str]:
    """How many tensors each part of the model keeps in a forward pass: images, captions and negatives in turn.

    Those of the negative pass are counted as `negative <name>`.
    """
    parts = {name: model.get_submodule(name) for name in (VISION, EMBEDDINGS, *map(block, range(LAYERS)))}
    counts: Counter[str] = Counter()
    running: list[str] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        counts.update(running)
        return tensor

    def watch(module: nn.Module, name: str) -> list:
        enter = module.register_forward_pre_hook(lambda *_: running.append(name))
        return [enter, module.register_forward_hook(lambda *_: running.remove(name))]

    lengths = caption_lengths(IDS, END)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for kind in ("image", CAPTION, NEGATIVE):
            handles = [handle for name, part in parts.items() for handle in watch(part, f"{kind} {name}")]
            if kind == "image":
                embeds = model.encode_image(torch.rand(2, 3, 32, 32))
            else:
                embeds = (model.encode_text if kind == CAPTION else model.encode_negative_text)(IDS, lengths)
            counts[kind] += embeds.requires_grad
            for handle in handles:
                handle.remove()
    return counts


@pytest.fixture
def saved(make_clip):
    def count(phase: int, **settings) -> Counter[str]:
        objective = build_objectives(MethodArguments(**settings))[phase]
        clip = make_clip(text_layers=LAYERS)
        prompt = NegativePromptConfig.of(clip.config.text_config, 4, objective.arguments.negative_rank)
        model = NCUModel(clip, NegativePrompt(prompt)).train()
        freeze(model, objective)
        return saved_tensors(model)

    return count


def test_phase_1_keeps_nothing_of_the_vision_tower(saved):
    counts = saved(0)
    assert counts[f"image {VISION}"] == 0
    for kind in (CAPTION, NEGATIVE):
        assert counts[f"{kind} {EMBEDDINGS}"] and all(counts[f"{kind} {block(i)}"] for i in range(LAYERS))


def test_phase_2_keeps_nothing_of_embeddings_and_frozen_blocks(saved):
    counts = saved(1)
    assert counts[f"image {VISION}"]
    for kind in (CAPTION, NEGATIVE):
        assert counts[f"{kind} {EMBEDDINGS}"] == 0
        assert [counts[f"{kind} {block(i)}"] > 0 for i in range(LAYERS)] == [False] * 5 + [True] * 2


def test_phase_2_with_no_block_frozen_keeps_tensors_of_all_blocks(saved):
    counts = saved(1, frozen_text_blocks=0)
    for kind in (CAPTION, NEGATIVE):
        assert counts[f"{kind} {EMBEDDINGS}"] == 0
        assert all(counts[f"{kind} {block(i)}"] for i in range(LAYERS))


def test_phase_2_with_a_token_embedding_that_trains_keeps_its_ids(saved):
    counts = saved(1, freeze_token_embedding=False)
    for kind in (CAPTION, NEGATIVE):
        assert counts[f"{kind} {EMBEDDINGS}"] and all(counts[f"{kind} {block(i)}"] for i in range(LAYERS))


def test_negatives_of_their_own_keep_nothing_of_captions_in_phase_1_nor_of_themselves_in_phase_2(saved):
    first, second = (saved(phase, negative_rank=2) for phase in (0, 1))
    assert first["image"] == first[CAPTION] == second[NEGATIVE] == 0
    assert first[NEGATIVE] == second["image"] == second[CAPTION] == 1
    for i in range(LAYERS):
        assert first[f"{CAPTION} {block(i)}"] == second[f"{NEGATIVE} {block(i)}"] == 0
        assert first[f"{NEGATIVE} {block(i)}"]
