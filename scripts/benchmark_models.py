"""Models of the benchmarks: shapes that users train, with random weights."""

from __future__ import annotations

from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

# openai/clip-vit-base-patch32 and -patch16 are what `CLIPConfig` describes by default, but for the size of a patch and
# the end token: both say `eos_token_id` 2, hence pool at the largest id.
_OPENAI_TEXT = {"eos_token_id": 2}
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
# name -> settings of the text tower, settings of the vision tower, size D of an embedding
_SHAPES = {
    "vit-b-32": (_OPENAI_TEXT, {"patch_size": 32}, 512),
    "vit-b-16": (_OPENAI_TEXT, {"patch_size": 16}, 512),
    "small": (_SMALL | _OPENAI_TEXT, _SMALL | {"image_size": 32, "patch_size": 16}, 32),
}
MODELS = tuple(_SHAPES)


def make_clip(name: str) -> CLIPModel:
    """One of `MODELS`, float32, context of 77; `small` is for smoke tests and runs in milliseconds."""
    text, vision, width = _SHAPES[name]
    config = CLIPConfig(
        text_config=CLIPTextConfig(**text).to_dict(),
        vision_config=CLIPVisionConfig(**vision).to_dict(),
        projection_dim=width,
    )
    return CLIPModel(config)
