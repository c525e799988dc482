"""A source whose captions are wrong in a known share of its pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ncu_hf.data.decoding import clean_caption
from ncu_hf.data.files import fingerprint_text
from ncu_hf.data.noise import Noise, inject_noise
from ncu_hf.data.records import PairSource, Record
from ncu_hf.data.sources.views import ChosenRecords, copy_identity, is_usable
from ncu_hf.errors import InputError


class ChosenPair(NamedTuple):
    """A pair that was chosen for noise.

    Attributes:
        key (`str`): Names the pair.
        row (`int`): Its place in the source: keys may occur twice.
        mismatched (`bool`): Whether the caption differs from the original one.
        caption, original_caption (`str`): With noise, and as it was.
    """

    key: str
    row: int
    mismatched: bool
    caption: str
    original_caption: str


class NoisyCaptions(PairSource):
    """A source with noise in its captions. Records without a usable caption take no part.

    Args:
        source (`PairSource`): The source.
        noise (`Noise`): What is done to which pairs.
    """

    def __init__(self, source: PairSource, noise: Noise):
        self._source, self.noise = source, noise
        captions = source.captions()
        usable = [i for i, caption in enumerate(captions) if is_usable(caption)]
        original = [clean_caption(captions[i]) for i in usable]
        classes = None
        if noise.class_column is not None:
            labels = source.classes()
            classes = [labels[i] for i in usable]
        noisy, mismatched, chosen = inject_noise(original, noise, classes)
        self._captions = dict(zip(usable, zip(noisy, mismatched.tolist(), strict=True), strict=True))
        self._originals = {usable[i]: original[i] for i in chosen}
        copy_identity(self, source)
        self.fingerprint = fingerprint_text(source.fingerprint, *noise.told)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        caption, mismatched = self._captions.get(index, (record.caption, False))
        return Record(record.key, record.image, caption, mismatched or bool(record.mismatched), record.fault)

    def shard_of(self, index: int) -> str:
        return self._source.shard_of(index)

    def keys(self) -> list[str]:
        return self._source.keys()

    def is_mismatched(self, index: int) -> bool:
        """Whether the noise made the caption of a record wrong."""
        return index in self._captions and self._captions[index][1]

    def noisy_caption(self, index: int) -> str | None:
        """Caption of a record with the noise; `None` if training skips it."""
        return self._captions[index][0] if index in self._captions else None

    def original_caption(self, index: int) -> str | None:
        """Caption of a record without the noise; `None` if training skips it."""
        return self._originals.get(index, self.noisy_caption(index))

    def chosen(self) -> Iterator[ChosenPair]:
        """The pairs that were chosen, in order."""
        keys = self.keys()
        for row, original in self._originals.items():
            caption, mismatched = self._captions[row]
            yield ChosenPair(keys[row], row, mismatched, caption, original)

    @property
    def description(self) -> dict[str, Any]:
        noise = {
            "share": self.noise.share,
            "kind": self.noise.kind,
            "class_column": self.noise.class_column,
            "seed": self.noise.seed,
            "chosen": len(self._originals),
            "mismatched": sum(self._captions[row][1] for row in self._originals),
        }
        return {**self._source.description, "fingerprint": self.fingerprint, "noise": noise}


class MatchedPairs(ChosenRecords):
    """The pairs that the noise left as they were: what is trained on if every mismatch were known.

    Raises:
        InputError: there is none.
    """

    def __init__(self, source: NoisyCaptions):
        rows = np.array([index for index in range(len(source)) if not source.is_mismatched(index)], dtype=np.int64)
        if not len(rows):
            raise InputError("--drop_mismatched: the noise made every pair wrong; lower --noise_share.")
        self.noisy = source
        super().__init__(source, rows, ("matched",))

    @property
    def description(self) -> dict[str, Any]:
        described = super().description
        return {**described, "noise": {**described["noise"], "dropped": True}}
