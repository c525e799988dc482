"""A WebDataset sample, and which of its members are image, caption and ground truth."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ncu_hf.data.decoding import MAX_CAPTION_BYTES, MAX_IMAGE_BYTES
from ncu_hf.errors import InputError, nearest

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
DEFAULT_IMAGE, DEFAULT_CAPTION = "image_path", "text_content"
MAX_JSON_BYTES = 2**22


class Place(NamedTuple):
    """Where the content of a member lies in the archive."""

    offset: int
    size: int


@dataclass
class Sample:
    """Consecutive members with one key.

    Args:
        key (`str`): Path up to the first dot of the file name; bytes that are not UTF-8 as surrogates.
        members (`dict[str, Place]`): By extension (all behind the first dot, in small letters), in stored order.
        contents (`dict[str, bytes]`): Content of the members that were read.
        end (`int`): Offset of the header where the next sample is to be looked for.
    """

    key: str
    members: dict[str, Place] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    end: int = 0

    @property
    def printable_key(self) -> str:
        """`str`: The key as UTF-8."""
        return self.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@dataclass(frozen=True)
class TarLayout:
    """Which members of a sample hold what.

    The image is the member called `image_column` (an extension), by default the first one with an image extension.
    The caption is the member called `caption_column` (an extension; by default `txt`), else the field of that name of
    the sample's `.json`.
    """

    image_column: str = DEFAULT_IMAGE
    caption_column: str = DEFAULT_CAPTION

    def image_in(self, extensions: Collection[str]) -> str | None:
        """Extension of the image."""
        if self.image_column == DEFAULT_IMAGE:
            return next((name for name in extensions if name.rpartition(".")[2] in IMAGE_EXTENSIONS), None)
        return self.image_column.lower() if self.image_column.lower() in extensions else None

    def caption_in(self, extensions: Collection[str]) -> str | None:
        """Extension of the caption, if it is a member."""
        names = [self.caption_column.lower(), *(["txt"] if self.caption_column == DEFAULT_CAPTION else [])]
        return next((name for name in names if name in extensions), None)

    def is_whole(self, extensions: Collection[str]) -> bool:
        """Whether a sample behind which the archive is cut has all that it needs."""
        caption = self.caption_in(extensions) is not None
        return self.image_in(extensions) is not None and (
            caption or (self.caption_column != DEFAULT_CAPTION and "json" in extensions)
        )

    def bytes_to_read(self, members: Mapping[str, Place], extension: str) -> int | None:
        """How much is of use of the last of the `members` so far; `None` if nothing is."""
        size = members[extension].size
        if extension == self.image_in(members):
            return size if size <= MAX_IMAGE_BYTES else None
        if extension == "json":
            return size if size <= MAX_JSON_BYTES else None
        # `txt` is read at once although a member called as the default may follow: archives are read forwards.
        return min(size, MAX_CAPTION_BYTES + 1) if self.caption_in([extension]) else None

    def check(self, where: str, members: Collection[str], fields: Collection[str]) -> None:
        """A misspelt column shows in the first sample: name what it has.

        Args:
            where (`str`): The archive.
            members, fields (`Collection[str]`): Extensions of the sample, and keys of its json.

        Raises:
            InputError: the sample has no image or no caption of the name that the user gave.
        """
        known = [*members, *fields]
        if self.image_column != DEFAULT_IMAGE and self.image_in(members) is None:
            name = self.image_column.lower()
            raise InputError(
                f"{where}: no member .{name} in the first sample (--image_column).{nearest(name, members)} "
                f"Members: {', '.join(members)}."
            )
        name = self.caption_column
        if name != DEFAULT_CAPTION and self.caption_in(members) is None and name not in fields:
            raise InputError(
                f"{where}: neither a member nor a json field {name!r} in the first sample (--caption_column)."
                f"{nearest(name, known)} Members and fields: {', '.join(known)}."
            )


def json_fields(stored: bytes | None) -> dict[str, Any]:
    """Fields of a sample's .json; empty if there is none, or it is broken (its caption is then missing)."""
    try:
        fields = json.loads(stored) if stored else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
