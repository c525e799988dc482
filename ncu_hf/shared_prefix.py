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

_ATTENTION = "ncu_hf_shared_prefix"


class SharedPrefix:
    """The first P tokens of all rows, as a text tower has them.

    Args:
        text_model (`CLIPTextModel`): It is run as it is, hooks included; only its attention looks at more keys.
        input_ids (`Tensor`): (1, P).
    """

    def __init__(self, text_model: CLIPTextModel, input_ids: Tensor):
        self._text_model = text_model
        # attention of a block -> keys and values (1, heads, P, head width)
        self._known: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._length = 0
        self.pooled(input_ids)
        self._length = input_ids.shape[1]

    def pooled(self, input_ids: Tensor) -> Tensor:
        """What the tower pools (B, width) of the rows [prefix, `input_ids` (B, L)]."""
        length, known = input_ids.shape[1], self._length + input_ids.shape[1]
        mask = torch.ones(length, known, dtype=torch.bool, device=input_ids.device).tril(self._length)
        positions = torch.arange(self._length, known, device=input_ids.device)[None]
        with _attention_of(self._text_model):
            return self._text_model(
                input_ids=input_ids, attention_mask=mask[None, None], position_ids=positions, shared_prefix=self
            ).pooler_output

    def put_before(self, attention: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, P + L, head width) of whole rows, given those (B, heads, L, head width) behind the
        prefix; those of the prefix itself are kept."""
        if not self._length:
            self._known[attention] = key, value
            return key, value
        first = (own.expand(len(key), -1, -1, -1) for own in self._known[attention])
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
    shared_prefix: SharedPrefix,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as an `AttentionInterface`: (B, heads, L, head width) -> (B, L, heads, head width)."""
    key, value = shared_prefix.put_before(module, key, value)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return output.transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attend)


@contextmanager
def _attention_of(text_model: CLIPTextModel) -> Iterator[None]:
    usual = text_model.config._attn_implementation
    text_model.config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        text_model.config._attn_implementation = usual
