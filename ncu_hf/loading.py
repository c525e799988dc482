"""The model a run starts from: loaded, or made from scratch; checked before anything long starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, CLIPConfig, CLIPModel, CLIPProcessor
from transformers.utils import logging as transformers_logging

from ncu_hf.checkpoint import write_atomically
from ncu_hf.config import ModelArguments
from ncu_hf.errors import InputError, one_line
from ncu_hf.evaluation.encode import check_image_size
from ncu_hf.modeling import PROMPT_FOLDER, NegativePrompt, NegativePromptConfig
from ncu_hf.pinning import pin
from ncu_hf.reference import build_reference

# What `from_pretrained` raises on files that are missing, cut, or of another kind.
_LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError, StrictDataclassError)


class LoadedModel(NamedTuple):
    """A model and its processor, and where both are from.

    Attributes:
        source (`str` or `Path`): Folder or Hub id.
        revision (`str`, *optional*): Commit of the Hub id: whoever loads it later loads the same.
        clip (`CLIPModel`): The model, in float32.
        processor (`CLIPProcessor`): Its processor.
    """

    source: str | Path
    revision: str | None
    clip: CLIPModel
    processor: CLIPProcessor


def load_model(source: str | Path, revision: str | None = None, *, flag: str = "--model") -> LoadedModel:
    """A CLIP with its processor, both of one commit. Messages name `flag`.

    Raises:
        InputError: see [`pinned`], [`load_clip`] and [`load_processor`].
    """
    commit = pinned(source, revision, flag=flag)
    clip = load_clip(source, commit, flag=flag)
    return LoadedModel(source, commit, clip, load_processor(source, clip, commit, flag=flag))


def pinned(source: str | Path, revision: str | None = None, *, flag: str = "--model") -> str | None:
    """The commit to load a CLIP of the Hub from, see [`pin`]; `None` for a folder.

    Raises:
        InputError: nothing there, not a CLIP, or no safetensors.
    """
    load_config(source, revision, flag=flag)
    if Path(source).is_dir():
        return None
    try:
        return pin(str(source), revision)
    except InputError as error:
        raise InputError(f"{flag} {error}") from error


def load_clip(source: str | Path, revision: str | None = None, *, flag: str = "--model") -> CLIPModel:
    """A `CLIPModel` in float32 from a folder or the Hub, safetensors only. Messages name `flag`.

    Raises:
        InputError: nothing there, not a CLIP, no safetensors, or weights that are missing or of other shapes.
    """
    config = load_config(source, revision, flag=flag)
    # No dropout: a chunk is encoded twice and must give the same embeddings.
    config.text_config.attention_dropout = config.vision_config.attention_dropout = 0.0
    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    options |= {"ignore_mismatched_sizes": True}  # reported, and refused below with their names
    try:
        with _quiet():
            clip, report = CLIPModel.from_pretrained(source, config=config, revision=revision or "main", **options)
    except _LOAD_ERRORS as error:
        raise InputError(f"{flag} {source}: its weights cannot be loaded ({one_line(error)}).") from error
    if report["missing_keys"]:
        raise InputError(f"{flag} {source}: its weights lack {', '.join(sorted(report['missing_keys'])[:3])}, ...")
    if report["mismatched_keys"]:
        name, stored, expected = min(report["mismatched_keys"])
        raise InputError(f"{flag} {source}: {name} is stored as {tuple(stored)}, its config says {tuple(expected)}.")
    return clip


@contextmanager
def _quiet() -> Iterator[None]:
    """`from_pretrained` warns in tables of many lines; what they say is judged here."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_processor(
    source: str | Path, clip: CLIPModel, revision: str | None = None, *, flag: str = "--model"
) -> CLIPProcessor:
    """The processor beside a model, checked against the model.

    Raises:
        InputError: none there, or it does not fit the towers: its tokenizer, or the size of its images.
    """
    try:
        with _quiet():
            processor = CLIPProcessor.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise InputError(f"{flag} {source}: no CLIPProcessor can be loaded from it ({one_line(error)}).") from error
    text, tokenizer = clip.config.text_config, processor.tokenizer
    if tokenizer.model_max_length != text.max_position_embeddings:
        raise InputError(
            f"{flag} {source}: the text tower has {text.max_position_embeddings} positions, its tokenizer's "
            f"model_max_length is {tokenizer.model_max_length}; save the tokenizer with the model's length."
        )
    if len(tokenizer) > text.vocab_size:
        raise InputError(
            f"{flag} {source}: the tokenizer has {len(tokenizer)} tokens, the text tower embeds {text.vocab_size}."
        )
    if text.eos_token_id not in (2, tokenizer.eos_token_id):
        raise InputError(
            f"{flag} {source}: the text tower pools at token {text.eos_token_id}, the tokenizer ends captions with "
            f"{tokenizer.eos_token_id}."
        )
    check_image_size(clip, processor, f"{flag} {source}")
    return processor


def load_reference(
    arguments: ModelArguments,
    captions: Callable[[], Iterable[str]],
    seed: int,
    initial: Path,
    *,
    revision: str | None = None,
    resume: bool = False,
) -> LoadedModel:
    """The model that a run starts from.

    Args:
        arguments (`ModelArguments`): `model` names it, or `model_config` has it made from scratch.
        captions (`Callable`): Gives the texts for the tokenizer of a model from scratch; not called otherwise.
        seed (`int`): Seed of the weights of a model from scratch.
        initial (`Path`): Where a run keeps its model from scratch.
        revision (`str`, *optional*): Of the Hub id, instead of `arguments.revision`.
        resume (`bool`, *optional*, defaults to `False`): Read a model from scratch from there, if it is there.

    Raises:
        InputError: both or neither are given, or the model cannot be used.
    """
    if (arguments.model is None) == (arguments.model_config is None):
        raise InputError("Give the model to start from: --model, or --model_config for one from scratch.")
    if arguments.model is not None:
        return load_model(arguments.model, revision or arguments.revision)
    if resume and initial.is_dir():
        return load_model(initial)
    clip, processor = build_reference(
        captions() if arguments.tokenizer is None else None,
        config=arguments.model_config,
        seed=seed,
        tokenizer=arguments.tokenizer,
        vocab_size=arguments.vocab_size,
    )
    return LoadedModel(initial, None, clip, processor)


def save_initial(reference: LoadedModel) -> None:
    """Write a model from scratch to its folder, unless it is there."""

    def write(path: Path) -> None:
        reference.clip.save_pretrained(path)
        reference.processor.save_pretrained(path)

    if not Path(reference.source).is_dir():
        write_atomically(Path(reference.source), write)


def make_prompt(arguments: ModelArguments, clip: CLIPModel, rank: int) -> NegativePrompt:
    """The negative prompt that phase 1 starts from: saved earlier, or drawn from N(0, 0.02²).

    Raises:
        InputError: `arguments.negative_prompt` names nothing that can be loaded, or a prompt of another rank.
    """
    if arguments.negative_prompt is None:
        return NegativePrompt(NegativePromptConfig.of(clip.config.text_config, arguments.prompt_length, rank))
    source = arguments.negative_prompt
    subfolder = "" if (Path(source) / "config.json").is_file() and Path(source).name == PROMPT_FOLDER else PROMPT_FOLDER
    try:
        with _quiet():
            prompt = NegativePrompt.from_pretrained(
                source, subfolder=subfolder, use_safetensors=True, dtype=torch.float32
            )
    except _LOAD_ERRORS as error:
        raise InputError(f"--negative_prompt {source}: cannot be loaded ({one_line(error)}).") from error
    if prompt.config.rank != rank:
        raise InputError(f"--negative_prompt {source}: has rank {prompt.config.rank}; give it as --negative_rank.")
    return prompt


def load_config(source: str | Path, revision: str | None = None, *, flag: str = "--model") -> CLIPConfig:
    """Configuration of a CLIP: the cheapest way to find out whether there is one.

    Raises:
        InputError: nothing there, or not a CLIP.
    """
    try:
        with _quiet():
            # Without a word on remote code, a repository that brings some makes transformers ask whether to run it.
            config = AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise InputError(f"{flag} {source}: no model there, in a folder or on the Hub ({one_line(error)}).") from error
    if config.model_type != "clip":
        raise InputError(f"{flag} {source}: is a {config.model_type!r} model; a CLIPModel ('clip') is needed.")
    return config
