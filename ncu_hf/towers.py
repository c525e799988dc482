"""How the blocks of the towers compute, without a change of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel

from ncu_hf.modeling import NCUModel


def blocks(clip: CLIPModel) -> Iterator[nn.Module]:
    """The blocks of both towers."""
    return chain(clip.text_model.encoder.layers, clip.vision_model.encoder.layers)


def checkpoint_blocks(model: NCUModel) -> None:
    """Keep the inputs of every block instead of all its activations; the backward pass computes them again.

    `activation_checkpointing_enable` of `CLIPModel` would do no more, but for two things: it makes the output of the
    token embedding require a gradient, so that the backward pass goes through frozen blocks, and it does not know the
    updates of the negative prompt, which the text tower no longer has when the backward pass comes.
    """
    prompt = model.negative_prompt
    updates = None if prompt is None else prompt.updates

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        """Of a block now, and of the same block again."""
        active = updates is not None and updates.active
        return nullcontext(), updates.added_to(model.clip.text_model) if active else nullcontext()

    # There is no dropout. To read the random state of a GPU would wait for it, once a block.
    run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    for block in blocks(model.clip):
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, run
