"""LoRA trains adapters in place of a tower's weights and leaves a plain `CLIPModel`."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPProcessor

from ncu_hf.trainer import NCUTrainer


@pytest.mark.parametrize("towers", ["text", "vision", "text,vision"])
def test_lora_leaves_a_plain_model(towers, recipe, clip_folder, monkeypatch, embed, load_plain):
    trainers, save_outcome = [], NCUTrainer.save_outcome
    monkeypatch.setattr(
        NCUTrainer, "save_outcome", lambda trainer, folder: (trainers.append(trainer), save_outcome(trainer, folder))
    )
    output = recipe(lora_rank=4, lora_towers=towers, learning_rate=1e-3)
    before, after = load_file(clip_folder / "model.safetensors"), load_file(output / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    load_plain(output)
    changed = {name for name in before if not before[name].equal(after[name])}
    for tower in ("text", "vision"):
        linear = f"{tower}_model.encoder.layers.1.self_attn.q_proj.weight"
        own = f"{tower}_model.encoder.layers.1.layer_norm1.weight"
        assert linear in changed
        assert (own in changed) == (tower not in towers)
    assert "LoRA adapters of rank 4" in (output / "README.md").read_text(encoding="utf-8")
    processor = CLIPProcessor.from_pretrained(output)
    # Unmerged, in memory, against merged, from disk.
    for a, b in zip(embed(load_plain(output), processor), embed(trainers[-1].model.clip, processor), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
