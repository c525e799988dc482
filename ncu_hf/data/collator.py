"""Records -> batch: the one place where images are decoded and transformed and captions are tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ncu_hf.data.augmentation import augment_caption
from ncu_hf.data.decoding import clean_caption, decode_image
from ncu_hf.data.order import AUGMENTATION, CROP, keyed_generator
from ncu_hf.data.records import BadRecord, Located, Skipped
from ncu_hf.data.transforms import ImageTransform
from ncu_hf.errors import InputError


class PairCollator:
    """Make a batch of records. Unusable records are left out and named in `skipped`; nothing takes their place.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A CLIP tokenizer: start token, words, end token.
        transform (`ImageTransform`): Image -> uint8 (3, H, W).
        context_length (`int`): Longest row of `input_ids`, start and end token included.
        augment_negative_captions (`bool`, *optional*, defaults to `False`): Add `negative_input_ids`: the captions
            after word augmentation, for the negative branch.
        negative_prefixes (`Sequence[str]`, *optional*, defaults to `()`): Add `negative_input_ids`: each caption (after
            its augmentation, if any) behind one of these, drawn by seed, epoch and position of its record.

    Raises:
        InputError: the tokenizer does not frame a text with its start and end token, or its own limit is below
            `context_length`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        transform: ImageTransform,
        *,
        context_length: int,
        augment_negative_captions: bool = False,
        negative_prefixes: Sequence[str] = (),
    ):
        self.tokenizer = tokenizer
        self.transform = transform
        self.context_length = context_length
        self.augment_negative_captions = augment_negative_captions
        self.negative_prefixes = tuple(negative_prefixes)
        self._check_tokenizer()

    def _check_tokenizer(self) -> None:
        if self.context_length < 3:
            raise InputError(f"Context length {self.context_length}: start token, one word and end token need 3.")
        if self.tokenizer.model_max_length < self.context_length:
            raise InputError(
                f"The tokenizer's model_max_length is {self.tokenizer.model_max_length}, the text tower's context "
                f"{self.context_length}. Use the tokenizer that belongs to the model."
            )
        ids = self.tokenizer(["a"])["input_ids"][0]
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None or eos is None or ids[0] != bos or ids[-1] != eos:
            raise InputError(
                "The tokenizer does not put its start token before and its end token after a text, as CLIP's does. "
                "Use the tokenizer that belongs to the model."
            )

    def __call__(self, records: Sequence[Located], *, seed: int) -> dict[str, Any]:
        """Make one batch of B records, of which B' are usable.

        Args:
            records (`Sequence[Located]`): At least one.
            seed (`int`): Seed of crops and augmentation, together with each record's epoch and position.

        Returns:
            `dict`:
            - `pixel_values`: uint8 (B', 3, H, W), not normalised (see [`normalize`]).
            - `input_ids`: int64 (B', L), L = longest of the batch, padded with the end token: the first end token is
              the one that CLIP pools, whichever of its two pooling modes the config selects.
            - `negative_input_ids`: int64 (B', L'), only with `augment_negative_captions` or `negative_prefixes`.
            - `mismatched`: bool (B',), only if known for all records.
            - `keys`: `list[str]` of length B'.
            - `indices`: int64 (B',), numbers of the records in their source, only if that can be indexed.
            - `epoch`: `int`, epoch of the first record.
            - `skipped`: `list[Skipped]` of length B - B'.
        """
        usable, images, captions, skipped = [], [], [], []
        for located in records:
            try:
                image, caption = self._prepare(located, seed)
            except BadRecord as error:
                skipped.append(Skipped(located.record.key, located.shard, error.reason))
                continue
            usable.append(located)
            images.append(image)
            captions.append(caption)
        batch = {
            "pixel_values": torch.stack(images) if images else self._no_images(),
            "input_ids": self.tokenize(captions),
            "keys": [located.record.key for located in usable],
            "epoch": records[0].epoch,
            "skipped": skipped,
        }
        if all(located.index is not None for located in records):
            batch["indices"] = torch.tensor([located.index for located in usable], dtype=torch.int64)
        if all(located.record.mismatched is not None for located in records):
            batch["mismatched"] = torch.tensor([located.record.mismatched for located in usable], dtype=torch.bool)
        if self.augment_negative_captions or self.negative_prefixes:
            negatives = [self._negative(text, item, seed) for text, item in zip(captions, usable, strict=True)]
            batch["negative_input_ids"] = self.tokenize(negatives)
        return batch

    def _prepare(self, located: Located, seed: int) -> tuple[torch.Tensor, str]:
        """Pixels uint8 (3, H, W) and clean caption of one record."""
        if located.record.fault is not None:
            raise BadRecord(located.record.fault)
        caption = clean_caption(located.record.caption)  # first: it costs nothing
        image = decode_image(located.record.image, self.transform.min_side)
        return self.transform(image, keyed_generator(seed, CROP, located.epoch, *located.position)), caption

    def _negative(self, caption: str, located: Located, seed: int) -> str:
        """What the negative branch reads of a caption."""
        rng = keyed_generator(seed, AUGMENTATION, located.epoch, *located.position)
        if self.augment_negative_captions:
            caption = augment_caption(caption, rng)
        if self.negative_prefixes:
            caption = f"{self.negative_prefixes[rng.integers(len(self.negative_prefixes))]} {caption}"
        return caption

    def _no_images(self) -> torch.Tensor:
        return torch.empty(0, 3, *self.transform.output_size, dtype=torch.uint8)

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 (B, L): start token, words, end token, then end tokens up to the longest row.

        A caption that is too long loses words, never its end token. Start and end ids among the words are removed:
        a caption that spells them out, or a word unknown to a small vocabulary, would be pooled at that place.
        """
        if not captions:
            return torch.empty(0, 2, dtype=torch.int64)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        encoded = self.tokenizer(list(captions), truncation=True, max_length=self.context_length)["input_ids"]
        rows = [[bos, *(i for i in row[1:-1] if i not in (bos, eos)), eos] for row in encoded]
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [eos] * (longest - len(row)) for row in rows], dtype=torch.int64)
