"""A pass over all training pairs: their embeddings, as an evaluation computes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from ncu_hf.data import BadRecord, PairSource, clean_caption
from ncu_hf.errors import InputError
from ncu_hf.evaluation import ClipEncoder
from ncu_hf.evaluation.sets.images import SourceImages


class PairEmbeds(NamedTuple):
    """Embeddings of all n pairs of a source, on the CPU.

    Attributes:
        image, text (`Tensor`): (n, D) float32 unit vectors; 0 where the pair cannot be used.
        similarity (`Tensor`): (n,) paired cosine; NaN where the pair cannot be used.
        scale (`float`): s of the model.
    """

    image: Tensor
    text: Tensor
    similarity: Tensor
    scale: float


class PairEncoder:
    """Encodes all pairs of a source with the transform of evaluation: no random crop, float32, in fixed batches.

    The processes share the work, and each has all of the result: 4 (2 D + H) bytes a pair while it is made, H being the
    width of the vision tower (ViT-B/32: 7 GB for a million pairs).

    Args:
        source (`PairSource`): The pairs.
        processor (`CLIPProcessor`): Of the model.
        workers (`int`): Processes that decode images ahead.
    """

    def __init__(self, source: PairSource, processor: CLIPProcessor, workers: int):
        self._source, self._processor, self._workers = source, processor, workers
        self._rows: list[int] = []
        self._captions: list[str] = []

    def __call__(self, clip: CLIPModel) -> PairEmbeds:
        """A collective.

        Raises:
            InputError: no pair can be used.
        """
        self._read_captions()
        encoder = ClipEncoder(clip, self._processor, workers=self._workers)
        images = encoder.encode_images(SourceImages(self._source, self._rows))
        image, text = (torch.zeros(len(self._source), encoder.width) for _ in range(2))
        similarity = torch.full((len(self._source),), torch.nan)
        rows = torch.tensor(self._rows)
        image[rows], text[rows] = images.embeds, encoder.encode_texts(self._captions)
        usable = rows[images.usable]
        if not len(usable):
            raise InputError(f"{self._source.name}: no pair has a readable image. Check --image_column, --image_root.")
        similarity[usable] = (image[usable] * text[usable]).sum(dim=1)
        return PairEmbeds(image, text, similarity, encoder.scale)

    def _read_captions(self) -> None:
        """Once: they are the same in every epoch."""
        if self._rows:
            return
        for row, caption in enumerate(self._source.captions()):
            try:
                self._captions.append(clean_caption(caption))
            except BadRecord:
                continue
            self._rows.append(row)
        if not self._rows:
            raise InputError(f"{self._source.name}: no pair has a caption. Check --caption_column.")
