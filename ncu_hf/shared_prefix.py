"""Texts that begin alike: the beginning passes the text tower once, and all of them attend to it.

Attention is causal, so that the keys and values of the first tokens do not depend on what follows: they are the same in
every row, and so is all that the tower computes of them. The gradient of the shared ones is the sum over the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPTextModel

from ncu_hf.text_batches import caption_end

_ATTENTION = "ncu_hf_shared_prefix"


class SharedPrefix:
    """The first P tokens of all rows, as a text tower has them.

    Args:
        text_model (`CLIPTextModel`): Its parts are run as they are, hooks included; only its attention looks at more
            keys.
        input_ids (`Tensor`): (1, P).
    """

    def __init__(self, text_model: CLIPTextModel, input_ids: Tensor):
        self._text_model = text_model
        self._known = [_Known() for _ in text_model.encoder.layers]
        self._length = 0
        self._encoded(input_ids)
        self._length = input_ids.shape[1]

    def pooled(self, input_ids: Tensor) -> Tensor:
        """What the tower pools (B, width) of the rows [prefix, `input_ids` (B, L)]."""
        hidden = self._encoded(input_ids)
        rows = torch.arange(len(hidden), device=hidden.device)
        ends = caption_end(input_ids, self._text_model.config.eos_token_id)
        return self._text_model.final_layer_norm(hidden[rows, ends])

    def _encoded(self, input_ids: Tensor) -> Tensor:
        """(B, L) -> what the last block makes of the rows behind what is known of the prefix, (B, L, width)."""
        length, known = input_ids.shape[1], self._length + input_ids.shape[1]
        mask = torch.ones(length, known, dtype=torch.bool, device=input_ids.device).tril(self._length)[None, None]
        positions = torch.arange(self._length, known, device=input_ids.device)[None]
        hidden = self._text_model.embeddings(input_ids=input_ids, position_ids=positions)
        with attention_of(self._text_model):
            for block, of_prefix in zip(self._text_model.encoder.layers, self._known, strict=True):
                hidden = block(hidden, mask, shared_prefix=of_prefix)
        return hidden


class _Known:
    """Keys and values (1, heads, P, head width) of the prefix in one block, once it has passed.

    Each block gets its own: a compiled block is compiled for what it is given, and all are given the same.
    """

    def __init__(self):
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def put_before(self, key: Tensor, value: Tensor, known: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, `known`, head width) of whole rows, given those (B, heads, L, head width) behind
        the prefix; those of the prefix itself, of which `known` are all, are kept.

        A checkpointed block asks the same again in the backward pass: what is kept must not change by it.
        """
        if key.shape[2] == known:
            if self.key is None:
                self.key, self.value = key, value
            return key, value
        first = (own.expand(len(key), -1, -1, -1) for own in (self.key, self.value))
        key, value = (torch.cat(parts, dim=2) for parts in zip(first, (key, value), strict=True))
        return key, value


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    dropout: float,
    shared_prefix: _Known,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as an `AttentionInterface`: (B, heads, L, head width) -> (B, L, heads, head width)."""
    key, value = shared_prefix.put_before(key, value, attention_mask.shape[-1])
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return output.transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attend)


@contextmanager
def attention_of(text_model: CLIPTextModel, implementation: str = _ATTENTION) -> Iterator[None]:
    """The blocks of `text_model` attend by this implementation."""
    usual = text_model.config._attn_implementation
    text_model.config._attn_implementation = implementation
    try:
        yield
    finally:
        text_model.config._attn_implementation = usual
