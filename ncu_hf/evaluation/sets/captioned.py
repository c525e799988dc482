"""Images with captions, from any source of pairs. No image is decoded here: the encoder does, and counts the faults."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ncu_hf.data import BadRecord, PairSource, Record, clean_caption
from ncu_hf.data.files import fingerprint_text
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.base import CaptionedSet, Origin
from ncu_hf.evaluation.sets.images import SourceImages, file_state


@dataclass
class Pairing:
    """Which captions belong to which images, as they are found.

    Args:
        captions_per_image (`int`, *optional*): Further captions of an image are left out; by default none is.
    """

    captions_per_image: int | None = None
    keys: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # record of each image
    captions: list[str] = field(default_factory=list)
    image_of: list[int] = field(default_factory=list)  # image of each caption
    skipped: Counter[str] = field(default_factory=Counter)
    _kept: Counter[int] = field(default_factory=Counter)  # captions of each image

    def add_image(self, key: str, row: int) -> int:
        """A new image; returns its number."""
        self.keys.append(key)
        self.rows.append(row)
        return len(self.rows) - 1

    def add_captions(self, image: int, captions: list[str]) -> None:
        """Captions of an image."""
        if self.captions_per_image is not None:
            captions = captions[: self.captions_per_image - self._kept[image]]
        self._kept[image] += len(captions)
        self.captions += captions
        self.image_of += [image] * len(captions)

    def clean(self, stored: Any) -> list[str]:
        """Usable captions of a record that holds one, or a list of them; the others are counted."""
        found = []
        for caption in (stored or [None]) if isinstance(stored, list) else [stored]:
            try:
                found.append(clean_caption(caption))
            except BadRecord as error:
                self.skipped[error.reason] += 1
        return found

    def to_set(self, source: PairSource, origin: Origin, groups: Tensor) -> CaptionedSet:
        """The set in which an image and a caption match if they are of the same group.

        Args:
            source (`PairSource`): Of the records.
            origin (`Origin`): Where it comes from.
            groups (`LongTensor` (n_images,)): Group of each image.

        Raises:
            InputError: all images are of one group, or there is none, so that nothing can be told apart.
        """
        self.skipped.update(problem.reason for problem in source.problems)
        skipped = dict(self.skipped)
        if len(groups.unique()) < 2:
            raise InputError(
                f"{origin.name}: {len(self.rows)} images with {len(set(self.captions))} different captions; retrieval "
                f"needs at least two images of different captions (skipped: {skipped or 'none'})."
            )
        return CaptionedSet(
            origin=origin,
            keys=self.keys,
            images=SourceImages(source, self.rows),
            captions=self.captions,
            image_groups=groups,
            caption_groups=groups[torch.tensor(self.image_of, dtype=torch.long)],
            skipped=skipped,
        )

    def fingerprint(self, *images: str) -> str:
        """Hash of `images` (what identifies them), of the captions, and of which belongs to which."""
        return fingerprint_text(*images, *self.captions, *map(str, self.image_of))


def captioned_set(source: PairSource, limit: int | None = None, *, name: str | None = None) -> CaptionedSet:
    """Images with captions of a source of pairs.

    Rows of the same image belong together, so do images that share a caption: with either the other's captions are
    found rightly. A caption column that holds lists gives several captions a row.

    Args:
        source (`PairSource`): What `open_pairs` opens. Its images are read once, to find equal ones, and not decoded.
        limit (`int`, *optional*): Take the first records only.
        name (`str`, *optional*): By default that of the source.

    Raises:
        InputError: all readable pairs belong together (or there is none), so that nothing can be told apart.
    """
    pairing, images = Pairing(), _Images()
    count = min(len(source), limit or len(source))
    for row in range(count):
        record = source[row]
        try:
            known = images.identify(record)
        except BadRecord as error:
            pairing.skipped[error.reason] += 1
            continue
        if captions := pairing.clean(record.caption):
            image = images.numbers.get(known)
            if image is None:
                image = images.numbers[known] = pairing.add_image(record.key, row)
            pairing.add_captions(image, captions)
    groups = connect(pairing.captions, pairing.image_of, len(pairing.rows))
    marks = [images.mark(known) for known in images.numbers]
    images.check_files(source.name)
    origin = Origin(
        name=name or source.name,
        fingerprint=pairing.fingerprint(*(mark for mark, _ in marks)),
        stamp=fingerprint_text(*(part for mark in marks for part in mark)),
        hub_id=source.name if source.format == "hub" else None,
        revision=source.revision,
        note=_note(count, len(source), groups),
    )
    return pairing.to_set(source, origin, groups)


def connect(captions: list[str], image_of: list[int], images: int) -> Tensor:
    """Group of each image: images that share a caption, directly or through others, are one group (union-find)."""
    parent = list(range(images))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[str, int] = {}
    for caption, image in zip(captions, image_of, strict=True):
        parent[root(image)] = root(first.setdefault(caption, image))
    return torch.tensor([root(image) for image in range(images)], dtype=torch.long)


class _Images:
    """Images that have been seen: `numbers` of them by identity, which is the path, or the SHA-256 of the bytes."""

    def __init__(self):
        self.numbers: dict[bytes | str, int] = {}

    def identify(self, record: Record) -> bytes | str:
        """Identity of a record's image.

        Raises:
            BadRecord: the record has none, or the source could not read it.
        """
        if record.fault is not None:
            raise BadRecord(record.fault)
        if isinstance(record.image, bytes):
            return hashlib.sha256(record.image).digest()
        if not isinstance(record.image, str) or not record.image:
            raise BadRecord("missing_image" if not record.image else "undecodable")
        return os.path.normpath(record.image)

    def check_files(self, where: str) -> None:
        """That not all of them are paths to nowhere.

        Raises:
            InputError: they are.
        """
        if self.numbers and all(isinstance(known, str) and not os.path.exists(known) for known in self.numbers):
            raise InputError(
                f"{where}: none of its {len(self.numbers)} images exists; the first is {next(iter(self.numbers))}. "
                "Paths are relative to the file, or to --image_root."
            )

    def mark(self, identity: bytes | str) -> tuple[str, str]:
        """What tells an image from others on any machine, and on this one."""
        if isinstance(identity, bytes):
            return identity.hex(), ""
        size, modified = file_state(identity)
        return f"{os.path.basename(identity)} {size}", f"{os.path.abspath(identity)} {modified}"


def _note(count: int, total: int, groups: Tensor) -> str | None:
    different = len(groups.unique())
    notes = []
    if count < total:
        notes.append(f"the first {count:,} of {total:,} records")
    if different < len(groups):
        notes.append(f"{len(groups):,} images, of which those that share a caption count as one: {different:,}")
    return "; ".join(notes) or None
