"""Stored images -> what the vision tower reads, batch by batch, as the model's own image processor does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ncu_hf.data import BadRecord, decode_image

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

StoredImage = bytes | str | Path | Image.Image


class PixelBatch(NamedTuple):
    """One batch of images.

    Attributes:
        rows (`Sequence[int]`): B consecutive rows.
        pixel_values (`Tensor`): (K, 3, H, W), of the K rows without fault.
        faults (`dict[int, str]`): The other rows, with the reason.
    """

    rows: Sequence[int]
    pixel_values: Tensor
    faults: dict[int, str]

    @property
    def places(self) -> list[int]:
        """(K,) places in the batch of the rows without fault."""
        return [place for place, row in enumerate(self.rows) if row not in self.faults]


def load_pixels(
    images: Sequence[StoredImage], batches: list[Sequence[int]], image_processor: BaseImageProcessor, workers: int = 0
) -> Iterator[PixelBatch]:
    """Decode and preprocess `batches` of `images`; `workers` processes do so ahead of the caller."""
    workers = min(workers, len(batches))
    loader = DataLoader(
        _PixelBatches(images, batches, image_processor),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    for rows, (pixel_values, faults) in zip(batches, loader, strict=True):
        yield PixelBatch(rows, pixel_values, faults)


class _PixelBatches(Dataset):
    def __init__(
        self, images: Sequence[StoredImage], batches: list[Sequence[int]], image_processor: BaseImageProcessor
    ):
        self._images, self._batches, self._processor = images, batches, image_processor

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[int, str]]:
        decoded, faults = [], {}
        for row in self._batches[index]:
            try:
                image = self._images[row]
                decoded.append(image if isinstance(image, Image.Image) else decode_image(image))
            except BadRecord as error:
                faults[row] = error.reason
        if not decoded:
            return torch.empty(0), faults
        return self._processor(images=decoded, return_tensors="pt")["pixel_values"], faults
