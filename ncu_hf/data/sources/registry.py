"""The data sets of the paper by name: where they are on the Hub, and how their pairs are stored."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownSet:
    """A data set that can be named instead of described.

    Args:
        repo (`str`): Its id on the Hub.
        image_column, caption_column (`str`): Columns, or extensions of members, of its pairs.
        train_pairs (`int`): Pairs of its split `train`, as its card or its paper says.
        caption_tokenizer (`str`, *optional*): Tokenizer with whose ids the captions are stored.
    """

    repo: str
    image_column: str
    caption_column: str
    train_pairs: int
    caption_tokenizer: str | None = None


KNOWN_SETS = {
    # 576 tars of train.
    "cc3m": KnownSet("pixparse/cc3m-wds", "jpg", "txt", 2_905_954),
    # 2,176 tars.
    "cc12m": KnownSet("pixparse/cc12m-wds", "jpg", "txt", 10_968_539),
    # 1,507 parquet files; the number of pairs is rounded.
    "yfcc15m-r": KnownSet("Kaichengalex/YFCC15M", "images", "texts", 15_000_000, "openai/clip-vit-base-patch32"),
}


def known_set(spec: str) -> KnownSet | None:
    """The set of that name; `None` if there is none, or if a file or folder of that name exists here."""
    return None if os.path.exists(spec) else KNOWN_SETS.get(spec.lower())
