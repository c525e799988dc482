"""How pairs are stored: what holds the image and the caption, and how a caption is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ncu_hf.data.shards.tar_samples import DEFAULT_CAPTION, DEFAULT_IMAGE
from ncu_hf.data.sources.registry import KnownSet
from ncu_hf.data.sources.tables import Columns
from ncu_hf.data.token_captions import caption_decoder


@dataclass(frozen=True)
class Stored:
    """How pairs are stored. The arguments are those of [`open_pairs`]."""

    image_column: str
    caption_column: str
    delimiter: str
    image_root: Path | None
    caption_tokenizer: str | None

    def of_known(self, known: KnownSet) -> Stored:
        """As in a known set, but for what the user says otherwise."""
        return replace(
            self,
            image_column=known.image_column if self.image_column == DEFAULT_IMAGE else self.image_column,
            caption_column=known.caption_column if self.caption_column == DEFAULT_CAPTION else self.caption_column,
            caption_tokenizer=known.caption_tokenizer if self.caption_tokenizer is None else self.caption_tokenizer,
        )

    def columns(self, where: str, existing: list[str]) -> Columns:
        """The columns in use of those that a table has.

        Raises:
            InputError: there is no such column, or the tokenizer of the captions cannot be loaded.
        """
        found = Columns.find(where, existing, self.image_column, self.caption_column)
        if self.caption_tokenizer is None:
            return found
        return replace(found, decode_caption=caption_decoder(self.caption_tokenizer))

    @property
    def names(self) -> tuple[str, str]:
        """`tuple[str, str]`: what the fingerprint of a stream covers."""
        return self.image_column, self.caption_column
