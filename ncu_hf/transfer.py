"""Batches on their way to the device, while it computes."""

from __future__ import annotations

import torch
from torch import Tensor


class Transfer:
    """Copies tensors to `device`; to a GPU on a stream of their own, so that they travel while it computes.

    The host is ahead of a GPU: it asks for the next chunk while the GPU is busy with what came before. From page-locked
    memory (`--dataloader_pin_memory`) the copy then needs neither of the two.

    Args:
        device (`torch.device`): Where to.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors on the device, ready for what the current stream computes next."""
        if self._stream is None:
            return {key: value.to(self._device) for key, value in tensors.items()}
        with torch.cuda.stream(self._stream):
            moved = {key: value.to(self._device, non_blocking=True) for key, value in tensors.items()}
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for value in moved.values():
            value.record_stream(current)  # its memory is free for the next copy when that stream is done with it
        return moved
