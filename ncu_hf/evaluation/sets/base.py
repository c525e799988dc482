"""What a model is evaluated on: labelled images, or images with captions. Nothing is decoded here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

PRIMARY_METRICS = ("accuracy", "mean_per_class")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a set comes from: what makes two numbers comparable, and an embedding worth keeping.

    Attributes:
        name (`str`): In tables; a name of the registry, or what the user named, without its folder.
        fingerprint (`str`): Of the split's file names, sizes and labels or captions; the same on every machine.
        stamp (`str`): Of the images as they are here, in order: names, sizes and times of change, or the commit.
            Embeddings are cached by it; labels and captions are no part of it.
        hub_id (`str`, *optional*): Data set on the Hub.
        revision (`str`, *optional*): Its commit.
        split (`str`, *optional*): E.g. `"test"`.
        note (`str`, *optional*): What a reader of the number must know, e.g. which captions were kept.
    """

    name: str
    fingerprint: str
    stamp: str
    hub_id: str | None = None
    revision: str | None = None
    split: str | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is stored with every number; keys without a value are left out."""
        shown = ("hub_id", "revision", "split", "fingerprint", "note")
        return {name: value for name in shown if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Images with one class each.

    Attributes:
        origin (`Origin`): Where it comes from.
        images (`Sequence[bytes | str]`): Encoded images or their paths, read when they are asked for.
        labels (`LongTensor` (n_images,)): Index into `classes` of each image.
        classes (`list[str]`): C class names.
        templates (`list[str]`): Texts with the field `{c}` for the class name.
        primary (`str`): The metric that papers report for this set: `accuracy` or `mean_per_class`.
        train (`Callable[[], LabelledSet]`, *optional*): Opens the training split, where there is one; a linear probe
            learns from it.
        skipped (`dict[str, int]`): Records that could not be used, by reason.
    """

    origin: Origin
    images: Sequence[bytes | str]
    labels: Tensor
    classes: list[str]
    templates: list[str]
    primary: str = "accuracy"
    train: Callable[[], LabelledSet] | None = None
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CaptionedSet:
    """Images with captions, many-to-many: an image and a caption match if they are of the same group.

    Attributes:
        origin (`Origin`): Where it comes from.
        keys (`list[str]`): Key of each image.
        images (`Sequence[bytes | str]`): Encoded images or their paths, each once, read when they are asked for.
        captions (`list[str]`): n_captions texts.
        image_groups, caption_groups (`LongTensor`): (n_images,), (n_captions,).
        skipped (`dict[str, int]`): Records that could not be used, by reason.
    """

    origin: Origin
    keys: list[str]
    images: Sequence[bytes | str]
    captions: list[str]
    image_groups: Tensor
    caption_groups: Tensor
    skipped: dict[str, int] = field(default_factory=dict)


EvaluationSet = LabelledSet | CaptionedSet
