"""Towers that compute the same with fewer passes over memory."""

from __future__ import annotations

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel
from transformers.activations import QuickGELUActivation

_QUICK = 1.702  # of QuickGELU


def lean_towers(clip: CLIPModel) -> None:
    """Have both towers compute the same with fewer passes over memory. Weights and their names stay.

    On an accelerator most of what is not a matrix product waits for memory; and convolutions whose stride is their
    kernel, as that of the patches, get code that is made for others.
    """
    patches = clip.vision_model.embeddings.patch_embedding
    if type(patches) is nn.Conv2d and patches.stride == patches.kernel_size and patches.padding == (0, 0):
        patches.__class__ = _Patches
    for block in chain(clip.text_model.encoder.layers, clip.vision_model.encoder.layers):
        for norm in (block.layer_norm1, block.layer_norm2):
            if type(norm) is nn.LayerNorm:
                norm.__class__ = _LayerNorm
        if isinstance(block.mlp.activation_fn, QuickGELUActivation):
            block.mlp.activation_fn = _QuickGELU()


class _Patches(nn.Conv2d):
    """A convolution whose stride is its kernel: one matrix product of all patches."""

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / patch, W / patch)."""
        high, wide = self.kernel_size
        pixels = pixels[..., : pixels.shape[-2] // high * high, : pixels.shape[-1] // wide * wide]
        cut = pixels.unflatten(3, (-1, wide)).unflatten(2, (-1, high)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(cut.flatten(3), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class _LayerNorm(nn.LayerNorm):
    """Under autocast, where it computes in float32, its output is cast once, not by each product that reads it."""

    def forward(self, hidden: Tensor) -> Tensor:
        device = hidden.device.type
        normed = super().forward(hidden)
        return normed.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normed


class _QuickGELU(nn.Module):
    """x σ(1.702 x), rounded as in transformers; keeps x alone for the backward pass."""

    def forward(self, hidden: Tensor) -> Tensor:
        return _QuickGELUFunction.apply(hidden)


class _QuickGELUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        return (_QUICK * hidden).sigmoid_().mul_(hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        # The function is silu(1.702 x) / 1.702.
        return torch.ops.aten.silu_backward(gradient, _QUICK * hidden)
