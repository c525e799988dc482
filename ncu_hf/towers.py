"""How the blocks of the towers compute, without a change of what they compute."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel

from ncu_hf.errors import InputError, one_of
from ncu_hf.low_rank import TextTowerUpdates
from ncu_hf.modeling import NCUModel
from ncu_hf.shared_prefix import attention_of

# The other ones record CUDA graphs, whose outputs the next call overwrites: a block runs several times a step.
_MODES = ("default", "max-autotune-no-cudagraphs")
_VARIANTS = 64


def blocks(clip: CLIPModel) -> Iterator[nn.Module]:
    """The blocks of both towers."""
    return chain(clip.text_model.encoder.layers, clip.vision_model.encoder.layers)


def checkpoint_blocks(model: NCUModel) -> None:
    """Keep the inputs of every block instead of all its activations; the backward pass computes them again.

    `activation_checkpointing_enable` of `CLIPModel` would do no more, but for two things: it makes the output of the
    token embedding require a gradient, so that the backward pass goes through frozen blocks, and it does not know what
    the negative pass changes in the text tower, which is as before when the backward pass comes.
    """
    # There is no dropout. To read the random state of a GPU would wait for it, once a block.
    plain = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    for block in model.clip.vision_model.encoder.layers:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, plain
    for block in model.clip.text_model.encoder.layers:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(plain, context_fn=lambda: _contexts(model))


def _contexts(model: NCUModel) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Of a block of the text tower now, and of the same block again: with the attention and the updates of now."""
    text_model, updates = model.clip.text_model, _updates(model)
    active = updates if updates is not None and updates.active else None
    return nullcontext(), _as_now(text_model, text_model.config._attn_implementation, active)


@contextmanager
def _as_now(text_model: nn.Module, attention: str, updates: TextTowerUpdates | None) -> Iterator[None]:
    with attention_of(text_model, attention), nullcontext() if updates is None else updates.added_to(text_model):
        yield


def compile_blocks(model: NCUModel, backend: str, mode: str | None) -> None:
    """Compile every block in place: the names of the weights stay.

    Not the model: all of it would be compiled anew for each length of the captions. Blocks that are alike share what is
    compiled.

    Args:
        model (`NCUModel`): Its weights stay where they are.
        backend (`str`): Of `torch.compile`.
        mode (`str`, *optional*): Of `inductor`.

    Raises:
        InputError: checkpointed blocks; no such backend or mode; no compiler.
    """
    if any(block.gradient_checkpointing for block in blocks(model.clip)):
        raise InputError(
            "--torch_compile with --gradient_checkpointing: the compiler refuses attention that is to be computed "
            "again; use --chunk_size for less memory."
        )
    one_of("--torch_compile_backend", backend, torch._dynamo.list_backends(exclude_tags=()))
    if backend == "inductor":
        _check_compiler()
    options = {"backend": backend}
    if mode is not None:
        options["mode"] = one_of("--torch_compile_mode", mode, _MODES)
    # The updates of the negative pass come and go as hooks, which compiled blocks heed only if told.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    # A block is compiled for each of: tower, with and without gradient, frozen or not, behind frozen ones, autocast,
    # with and without updates.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    for block in model.clip.vision_model.encoder.layers:
        block.compile(**options)
    for block in model.clip.text_model.encoder.layers:
        block.compile(**options, dynamic=True)  # captions of every batch have another length


def _updates(model: NCUModel) -> TextTowerUpdates | None:
    return None if model.negative_prompt is None else model.negative_prompt.updates


def _check_compiler() -> None:
    candidates = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++", "cl"]
    if not any(map(shutil.which, candidates)):
        raise InputError(
            f"--torch_compile needs a C++ compiler and finds none ({', '.join(candidates)}); install one, name it in "
            "CXX, or leave --torch_compile out."
        )
