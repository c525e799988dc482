"""What a study can be made of: drawn scenes, emoji with a vendor left out, pictures with captions."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ncu_hf.data.scenes import ATTRIBUTES, draw_scene
from ncu_hf.errors import InputError, nearest, one_line, one_of
from ncu_hf.evaluation.sets.labelled_folder import open_labelled_folder

EMOJI_VENDOR = "noto"
CAPTION_KEYWORDS, KEYWORD_CLASSES = 4, 20
# Between the seeds of scenes to train on and to measure on, as in the demonstration.
SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Pair:
    """A pair; `image` is an encoded image that any reader takes as RGB."""

    key: str
    image: bytes
    caption: str


@dataclass(frozen=True)
class Labels:
    """A labelled set.

    Attributes:
        labels (`list[int]`): Class of each image.
        classes, templates (`list[str]`): Names, and texts with the field `{c}`.
        images (`list[Path]`, *optional*): Files of its own; by default the images of the clean pairs.
        rows (`list[int]`, *optional*): Of those, which ones the labels belong to; by default all, in order.
    """

    labels: list[int]
    classes: list[str]
    templates: list[str]
    images: list[Path] | None = None
    rows: list[int] | None = None


@dataclass(frozen=True)
class Study:
    """Content of a study, in memory.

    Attributes:
        source (`dict`): Where it comes from.
        train, evaluation (`list[Pair]`): Clean pairs.
        sets (`dict[str, Labels]`): Labelled sets by name.
    """

    source: dict[str, Any]
    train: list[Pair]
    evaluation: list[Pair]
    sets: dict[str, Labels] = field(default_factory=dict)


def scenes(train: int, evaluation: int, size: int, seed: int) -> Study:
    """Drawn scenes; every attribute of the clean ones is a labelled set.

    Raises:
        InputError: fewer than two scenes of a kind, or images that are too small.
    """
    for name, count in (("train_scenes", train), ("eval_scenes", evaluation)):
        if count < 2:
            raise InputError(f"--{name} must be at least 2, got {count}.")
    drawn = [draw_scene(seed + SEED_STEP, index, size) for index in range(evaluation)]
    learned = (draw_scene(seed, index, size) for index in range(train))
    return Study(
        {"kind": "scenes", "seed": seed, "size": size},
        [Pair(scene.key, png(scene.image), scene.caption) for scene in learned],
        [Pair(scene.key, png(scene.image), scene.caption) for scene in drawn],
        {
            name: Labels([classes.index(scene.attributes[name]) for scene in drawn], classes, templates)
            for name, (classes, templates) in ATTRIBUTES.items()
        },
    )


def emoji(file: Path, vendor: str) -> Study:
    """Emoji: drawings of one vendor are held out, so that known concepts are asked for in new drawings.

    A caption is the name and the first `CAPTION_KEYWORDS` keywords ("bat: animal, vampire"), so that captions share
    words. Labelled sets are `name`, a class a name, and `keyword`, a class for each of the `KEYWORD_CLASSES` most
    frequent keywords of the held-out drawings, with the drawings that have exactly one of them.

    Raises:
        InputError: no such file, column or vendor.
    """
    rows = read_rows(file, ["key", "png", "name", "keywords", "vendor"])
    one_of("--held_out_vendor", vendor, sorted({row["vendor"] for row in rows}))
    held_out = [row for row in rows if row["vendor"] == vendor]
    return Study(
        {"kind": "emoji", "file": file.name, "held_out_vendor": vendor},
        [_emoji_pair(row) for row in rows if row["vendor"] != vendor],
        [_emoji_pair(row) for row in held_out],
        {"name": _name_classes(rows, held_out), "keyword": _keyword_classes(held_out)},
    )


def _emoji_pair(row: dict[str, Any]) -> Pair:
    keywords = ", ".join(row["keywords"][:CAPTION_KEYWORDS])
    return Pair(row["key"], flattened(row["png"]), f"{row['name']}: {keywords}" if keywords else row["name"])


def _name_classes(rows: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> Labels:
    names = sorted({row["name"] for row in rows})
    index = {name: number for number, name in enumerate(names)}
    return Labels([index[row["name"]] for row in held_out], names, ["{c}"])


def _keyword_classes(held_out: list[dict[str, Any]]) -> Labels:
    counts = Counter(word for row in held_out for word in set(row["keywords"]))
    classes = sorted(sorted(counts), key=counts.get, reverse=True)[:KEYWORD_CLASSES]
    found = [[number for number, word in enumerate(classes) if word in row["keywords"]] for row in held_out]
    chosen = [row for row, numbers in enumerate(found) if len(numbers) == 1]
    return Labels([found[row][0] for row in chosen], classes, ["{c}"], rows=chosen)


def photos(file: Path, share: float, by: str, labels: Path | None = None) -> Study:
    """Pictures with captions; a share of them, or of their books, is held out by a hash.

    Raises:
        InputError: no such file or column, a share outside (0, 1), one that leaves nothing on a side, or a labelled
            set that cannot be read.
    """
    if not 0 < share < 1:
        raise InputError(f"--held_out_share is a share between 0 and 1, got {share}.")
    rows = read_rows(file, list(dict.fromkeys(["key", "jpg", "txt", by])), optional=["kind"])
    rows = [row for row in rows if row.get("kind", "picture") == "picture"]
    held_out = [hashed(row[by]) < share for row in rows]
    pairs = [Pair(row["key"], row["jpg"], row["txt"]) for row in rows]
    sides = [[pair for pair, out in zip(pairs, held_out, strict=True) if out is side] for side in (False, True)]
    if min(map(len, sides)) < 2:
        raise InputError(f"--held_out_share {share}: {len(sides[0])} pairs to train on, {len(sides[1])} to measure on.")
    source = {"kind": "photos", "file": file.name, "held_out_share": share, "held_out_by": by}
    return Study(source, *sides, {} if labels is None else _labelled(labels))


def _labelled(path: Path) -> dict[str, Labels]:
    found = open_labelled_folder(path)
    images = [Path(str(image)) for image in found.images]
    return {found.origin.name: Labels(found.labels.tolist(), found.classes, found.templates, images)}


def read_rows(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a parquet file.

    Raises:
        InputError: no such file, not a parquet file, or a column is missing.
    """
    try:
        existing = pq.read_schema(file).names
        if missing := [name for name in columns if name not in existing]:
            hint = nearest(missing[0], existing)
            raise InputError(f"{file}: no column {missing[0]!r}.{hint} Columns: {', '.join(existing)}.")
        return pq.read_table(file, columns=[*columns, *(name for name in optional if name in existing)]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable parquet file ({one_line(error)}).") from error


def hashed(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def flattened(data: bytes) -> bytes:
    """An image with a palette or transparency as plain RGB on white."""
    with Image.open(io.BytesIO(data)) as image:
        layers = image.convert("RGBA")
    return png(Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB"))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
