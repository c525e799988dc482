"""How the blocks of the towers compute, without a change of what they compute."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel

from ncu_hf.errors import InputError, one_of
from ncu_hf.low_rank import TextTowerUpdates
from ncu_hf.modeling import NCUModel

# The other ones record CUDA graphs, whose outputs the next call overwrites: a block runs several times a step.
_MODES = ("default", "max-autotune-no-cudagraphs")
_VARIANTS = 64


def blocks(clip: CLIPModel) -> Iterator[nn.Module]:
    """The blocks of both towers."""
    return chain(clip.text_model.encoder.layers, clip.vision_model.encoder.layers)


def checkpoint_blocks(model: NCUModel) -> None:
    """Keep the inputs of every block instead of all its activations; the backward pass computes them again.

    `activation_checkpointing_enable` of `CLIPModel` would do no more, but for two things: it makes the output of the
    token embedding require a gradient, so that the backward pass goes through frozen blocks, and it does not know the
    updates of the negative prompt, which the text tower no longer has when the backward pass comes.
    """
    updates = _updates(model)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        """Of a block now, and of the same block again."""
        return nullcontext(), updates.added_to(model.clip.text_model) if updates.active else nullcontext()

    # There is no dropout. To read the random state of a GPU would wait for it, once a block.
    run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if updates is not None:
        run = partial(run, context_fn=contexts)
    for block in blocks(model.clip):
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, run


def compile_blocks(model: NCUModel, backend: str, mode: str | None) -> None:
    """Compile every block in place: the names of the weights stay.

    Not the model, whose negative pass comes and goes by hooks: all of it would be compiled anew for each length of the
    captions. Blocks that are alike share what is compiled.

    Args:
        model (`NCUModel`): Without updates of the negative prompt.
        backend (`str`): Of `torch.compile`.
        mode (`str`, *optional*): Of `inductor`.

    Raises:
        InputError: updates of the negative prompt; checkpointed blocks; no such backend or mode; no compiler.
    """
    if _updates(model) is not None:
        raise InputError(
            "--torch_compile with --negative_rank: the updates of the negative pass are hooks, which compiled blocks "
            "do not see; leave --torch_compile out, or use --negative_rank 0."
        )
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
    # A block is compiled for each of: tower, with and without gradient, frozen or not, behind frozen ones, autocast.
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
