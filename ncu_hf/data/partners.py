"""Batches whose pairs bring other pairs of the same source along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.decoding import clean_caption, decode_image
from ncu_hf.data.records import BadRecord, Located, PairSource
from ncu_hf.data.transforms import ImageTransform
from ncu_hf.errors import InputError


class PartneredCollator:
    """Adds to each batch the partners of its pairs, each of them once.

    They are read when the batch is made, by the workers that make it: to hold their pixels instead would take 150 KB
    a partner at 224 x 224, in every process.

    Args:
        collator (`PairCollator`): Makes the batch itself.
        source (`PairSource`): Of the pairs and of their partners.
        transform (`ImageTransform`): For the partners' images, without randomness.
        partners (`Tensor`): (n, P) int64, indices of the P partners of each of the n pairs.
    """

    def __init__(self, collator: PairCollator, source: PairSource, transform: ImageTransform, partners: Tensor):
        self._collator, self._source, self._transform, self._partners = collator, source, transform, partners

    def __call__(self, records: Sequence[Located], *, seed: int) -> dict[str, Any]:
        """As [`PairCollator`], and besides, of B' usable pairs with U different partners:

        - `partners`: `dict` of `pixel_values`, uint8 (U, 3, H, W), and `input_ids`, int64 (U, L).
        - `partner_places`: int64 (B', P), places of each pair's partners among the U.

        Raises:
            InputError: a partner cannot be read (it could, when it was chosen).
        """
        batch = self._collator(records, seed=seed)
        rows, places = self._partners[batch["indices"]].unique(return_inverse=True)
        images, captions = [], []
        for row in rows.tolist():
            image, caption = self._read(row)
            images.append(image)
            captions.append(caption)
        pixels = torch.stack(images) if images else batch["pixel_values"]  # no partner: there is no pair either
        partners = {"pixel_values": pixels, "input_ids": self._collator.tokenize(captions)}
        return {**batch, "partners": partners, "partner_places": places}

    def _read(self, row: int) -> tuple[Tensor, str]:
        record = self._source[row]
        try:
            if record.fault is not None:
                raise BadRecord(record.fault)
            return self._transform(decode_image(record.image)), clean_caption(record.caption)
        except BadRecord as error:
            raise InputError(
                f"{self._source.name}: pair {record.key!r} cannot be read any longer ({error.reason}), and others are "
                "judged by it. Repair it, or start the run again."
            ) from error
