"""A reference CLIP from scratch: configuration, random weights, and a CLIP tokenizer trained on the captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)

from ncu_hf.errors import InputError, one_line, one_of

BYTE_TOKENS = 512  # each of the 256 bytes alone and at the end of a word: no text is ever out of the vocabulary
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
OLD_END_ID = 2  # CLIPTextModel takes this end id for a faulty old configuration and pools at the largest id instead


@dataclass(frozen=True)
class Preset:
    """Sizes of a CLIP; the MLPs are four times as wide as their tower, as in Radford et al. 2021."""

    image_size: int
    patch_size: int
    context: int
    projection: int
    vision: tuple[int, int, int]  # layers, width, heads
    text: tuple[int, int, int]

    def to_config(self) -> CLIPConfig:
        """The same as a `CLIPConfig`; the vocabulary is filled in when the tokenizer is known."""
        vision = _tower(*self.vision) | {"image_size": self.image_size, "patch_size": self.patch_size}
        text = _tower(*self.text) | {"max_position_embeddings": self.context}
        shared = {"projection_dim": self.projection, "attention_dropout": 0.0}
        return CLIPConfig(vision_config=vision | shared, text_config=text | shared, projection_dim=self.projection)


def _tower(layers: int, width: int, heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
    }


PRESETS: dict[str, Preset] = {
    "tiny": Preset(32, 8, context=32, projection=32, vision=(2, 32, 2), text=(2, 32, 2)),
    "demo": Preset(64, 16, context=32, projection=96, vision=(3, 96, 3), text=(2, 96, 3)),
    "vit-b-32": Preset(224, 32, context=77, projection=512, vision=(12, 768, 12), text=(12, 512, 8)),
    "vit-b-16": Preset(224, 16, context=77, projection=512, vision=(12, 768, 12), text=(12, 512, 8)),
}


def build_reference(
    captions: Iterable[str] | None,
    *,
    config: str,
    seed: int,
    tokenizer: str | None = None,
    vocab_size: int = 2048,
) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP with random weights and its processor, ready to be trained and saved.

    Args:
        captions (`Iterable[str]`, *optional*): Texts to train the tokenizer on; read once. Not needed, and not read, if
            `tokenizer` is given.
        config (`str`): Name of one of `PRESETS`, or path to the JSON file of a `CLIPConfig`.
        seed (`int`): Seed of the weights. The global random state stays as it is.
        tokenizer (`str`, *optional*): Folder or Hub id of a tokenizer to use as it is.
        vocab_size (`int`, *optional*, defaults to 2048): Largest size of a trained vocabulary. Few captions give less.

    Returns:
        `tuple[CLIPModel, CLIPProcessor]`: the model in evaluation mode, float32. `vocab_size` and the ids of its text
        configuration are those of the tokenizer, and the tokenizer's `model_max_length` is the model's context.

    Raises:
        InputError: unknown preset; a file that is not a CLIP configuration; no captions; a vocabulary below 514; a
            tokenizer that cannot be loaded or does not end every text with its end token.
    """
    clip_config = load_config(config)
    context = clip_config.text_config.max_position_embeddings
    if tokenizer is None:
        trained = train_tokenizer(captions, vocab_size=vocab_size, context=context)
    else:
        trained = _load_tokenizer(tokenizer, context)
    text = clip_config.text_config
    text.vocab_size = len(trained)
    text.bos_token_id, text.eos_token_id = trained.bos_token_id, trained.eos_token_id
    text.pad_token_id = trained.pad_token_id
    return _init_model(clip_config, seed), _processor(trained, clip_config.vision_config.image_size)


def load_config(config: str) -> CLIPConfig:
    """The configuration of a preset or of a JSON file.

    Raises:
        InputError: unknown preset (names the nearest); unreadable file; not a CLIP configuration; one with dropout.
    """
    if config in PRESETS:
        return PRESETS[config].to_config()
    path = Path(config)
    if not (path.suffix == ".json" or path.is_file()):
        one_of("--model_config (a preset, or the path of a CLIPConfig JSON file)", config, PRESETS)
    loaded = _parse_config(path)
    if loaded.text_config.attention_dropout or loaded.vision_config.attention_dropout:
        raise InputError(
            f"--model_config {path}: attention_dropout must be 0, a batch has to determine its loss. Set it to 0."
        )
    return loaded


def _parse_config(path: Path) -> CLIPConfig:
    """Read a CLIPConfig file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(PRESETS)
        raise InputError(
            f"--model_config {path}: cannot be read as JSON ({one_line(error)}). Known presets: {known}."
        ) from error
    if not isinstance(values, dict) or values.get("model_type") != "clip":
        kind = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        raise InputError(
            f"--model_config {path}: not a CLIP configuration (model_type is {kind!r}). It has to say 'clip'."
        )
    for tower in ("text_config", "vision_config"):
        if not isinstance(values.get(tower), dict):
            raise InputError(
                f"--model_config {path}: {tower} is missing. Write it with CLIPConfig(...).save_pretrained."
            )
    try:
        return CLIPConfig.from_dict(values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise InputError(f"--model_config {path}: not a valid CLIP configuration. {one_line(error)}") from error


def train_tokenizer(captions: Iterable[str] | None, *, vocab_size: int, context: int) -> CLIPTokenizer:
    """Train a CLIP tokenizer: lower-cased byte-level BPE with `</w>` at the end of words.

    The vocabulary is laid out like that of Radford et al. 2021: bytes, bytes at the end of a word, merges, start
    token, end token. The end token has the largest id, and also pads.

    Args:
        captions (`Iterable[str]`): Texts; read once.
        vocab_size (`int`): Largest size of the vocabulary. Pairs of symbols seen once are not merged.
        context (`int`): Longest text in tokens, start and end token included.

    Raises:
        InputError: no caption, a caption that is not text, or a vocabulary that is too small for the bytes.
    """
    smallest = BYTE_TOKENS + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise InputError(f"--vocab_size: {vocab_size} is too small, bytes and special tokens alone take {smallest}.")
    scaffold = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [byte + "</w>" for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        # Equally frequent pairs are merged in the order of their ids. Endings would get theirs in the order of a hash
        # table with a random seed, and two runs other tokenizers; as special tokens they come first.
        special_tokens=endings,
        end_of_word_suffix="</w>",
    )
    scaffold.train_from_iterator(_texts(captions), trainer)
    merges = [tuple(pair) for pair in json.loads(scaffold.to_str())["model"]["merges"]]
    merges = merges[: vocab_size - smallest]
    tokens = [*alphabet, *endings, *(a + b for a, b in merges), *SPECIAL_TOKENS]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)


def _texts(captions: Iterable[str] | None) -> Iterator[str]:
    """The captions, checked on their way."""
    found = False
    for row, caption in enumerate(captions or ()):
        if not isinstance(caption, str):
            raise InputError(
                f"caption {row} is {type(caption).__name__}, not text. Give the caption column as strings."
            )
        found = found or bool(caption.strip())
        yield caption
    if not found:
        raise InputError("no captions to train a tokenizer on. Give captions that are not empty, or --tokenizer.")


def _load_tokenizer(name: str, context: int) -> PreTrainedTokenizerBase:
    """A tokenizer that exists already, checked to end every text with its end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--tokenizer {name}: cannot be loaded ({one_line(error)}). Give a folder or a Hub id."
        ) from error
    tokenizer.model_max_length = context
    for text in ("a", "a " * 2 * context):
        ids = tokenizer(text, truncation=True)["input_ids"]
        if tokenizer.eos_token_id is None or ids[-1] != tokenizer.eos_token_id:
            raise InputError(f"--tokenizer {name}: does not end a text with its end token. Use that of a CLIP model.")
    if tokenizer.eos_token_id == OLD_END_ID:
        raise InputError(f"--tokenizer {name}: a CLIP cannot pool at end token id {OLD_END_ID}. Use another tokenizer.")
    return tokenizer


def _init_model(config: CLIPConfig, seed: int) -> CLIPModel:
    """Random weights on the CPU. Only the CPU generator is seeded: torch.manual_seed would reseed accelerators too."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CLIPModel(config).eval()


def _processor(tokenizer: PreTrainedTokenizerBase, image_size: int) -> CLIPProcessor:
    """Resize the short edge, crop the centre, normalise with CLIP's mean and deviation; with Pillow, for which nothing
    beyond the project's requirements has to be installed."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)
