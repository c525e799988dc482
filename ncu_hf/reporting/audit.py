"""Which pairs are wrong? Pairs in order of their clean confidence, as a table and as a sheet of pictures."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

import matplotlib
import PIL.Image
from PIL import ImageDraw, ImageFont
from torch import Tensor

from ncu_hf.errors import InputError

COLUMNS, THUMBNAIL, MARGIN, LINE = 6, 190, 14, 16
CAPTION_LINES = 4
CELL_HEIGHT = THUMBNAIL + LINE * (CAPTION_LINES + 1) + MARGIN + 6
HEADING = 34
INK, GREY, PAPER = "#111111", "#555555", "#ffffff"


@dataclass(frozen=True)
class AuditedPair:
    """One line of the audit; the fields are the columns of the CSV.

    Attributes:
        key (`str`): Names the pair in its data set.
        caption (`str`): Its caption.
        clean_confidence (`float`): In [0, 1]; low means that other captions fit the image better.
        cosine (`float`): Of image and caption.
        suggested_forget (`bool`): Whether it is one of the int(P N) pairs of lowest clean confidence.
    """

    key: str
    caption: str
    clean_confidence: float
    cosine: float
    suggested_forget: bool


def rank_pairs(
    keys: Sequence[str], captions: Sequence[str], confidence: Tensor, cosine: Tensor, forget_ratio: float
) -> tuple[list[AuditedPair], list[int]]:
    """Sort pairs by clean confidence, lowest first; equal ones stay in order.

    Args:
        keys, captions (`Sequence[str]`): N each.
        confidence, cosine (`Tensor` (N,)): N each.
        forget_ratio (`float`): P in [0, 1).

    Returns:
        `tuple[list[AuditedPair], list[int]]`: the pairs, and for each its index in the input.
    """
    if not len(keys) == len(captions) == len(confidence) == len(cosine):
        raise ValueError(f"{len(keys)} keys, {len(captions)} captions, {len(confidence)} and {len(cosine)} values")
    order = confidence.nan_to_num(nan=-1.0).argsort(stable=True).tolist()  # what is no number is not trusted
    k = int(forget_ratio * len(order))
    pairs = [
        AuditedPair(keys[index], captions[index], confidence[index].item(), cosine[index].item(), place < k)
        for place, index in enumerate(order)
    ]
    return pairs, order


def refuse_existing(paths: Mapping[str | Path, str], overwrite: bool) -> None:
    """Check, before the work, that its output may be written.

    Args:
        paths (`Mapping[str | Path, str]`): Each file, and the flag that named it.
        overwrite (`bool`): Whether existing files may be replaced.

    Raises:
        InputError: a path is a folder, a file exists and `overwrite` is false, or its folder does not exist.
    """
    for path, flag in ((Path(name), flag) for name, flag in paths.items()):
        if path.is_dir():
            raise InputError(f"{flag}: {path} is a folder; name a file in it.")
        if path.exists() and not overwrite:
            raise InputError(f"{flag}: {path} exists; choose another name or add --overwrite.")
        if not path.parent.is_dir():
            raise InputError(f"{flag}: folder {path.parent} does not exist; make it first.")


def write_audit(pairs: Sequence[AuditedPair], path: str | Path) -> None:
    """Write pairs as CSV (UTF-8), in their order; numbers with six significant digits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(AuditedPair)])
        for pair in pairs:
            writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in astuple(pair)])


def contact_sheet(
    sections: Sequence[tuple[str, Sequence[tuple[PIL.Image.Image, AuditedPair]]]], path: str | Path
) -> None:
    """Draw pictures with their captions and confidences.

    Args:
        sections (`Sequence`): Heading and pictures of each section, e.g. the worst and the best pairs.
        path (`str` or `Path`): PNG file.
    """
    heights = [HEADING + -(-len(pictures) // COLUMNS) * CELL_HEIGHT for _, pictures in sections]
    size = (MARGIN + COLUMNS * (THUMBNAIL + MARGIN), MARGIN + sum(heights))
    sheet = PIL.Image.new("RGB", size, PAPER)
    top = MARGIN
    for (heading, pictures), height in zip(sections, heights, strict=True):
        ImageDraw.Draw(sheet).text((MARGIN, top), heading, fill=INK, font=_font(18))
        for place, (image, pair) in enumerate(pictures):
            row, column = divmod(place, COLUMNS)
            corner = (MARGIN + column * (THUMBNAIL + MARGIN), top + HEADING + row * CELL_HEIGHT)
            _draw_cell(sheet, corner, image, pair)
        top += height
    sheet.save(path, format="PNG")


def _draw_cell(sheet: PIL.Image.Image, corner: tuple[int, int], image: PIL.Image.Image, pair: AuditedPair) -> None:
    left, top = corner
    thumbnail = image.convert("RGB")
    scale = THUMBNAIL / max(thumbnail.size)
    thumbnail = thumbnail.resize([max(1, round(side * scale)) for side in thumbnail.size])
    sheet.paste(thumbnail, (left + (THUMBNAIL - thumbnail.width) // 2, top + THUMBNAIL - thumbnail.height))
    draw = ImageDraw.Draw(sheet)
    numbers = f"confidence {pair.clean_confidence:.3f}  cosine {pair.cosine:.2f}"
    draw.text((left, top + THUMBNAIL + 4), numbers, fill=GREY, font=_font(11))
    for line, text in enumerate(_wrapped(pair.caption)):
        draw.text((left, top + THUMBNAIL + 4 + LINE * (line + 1)), text, fill=INK, font=_font(12))


def _wrapped(caption: str) -> list[str]:
    """Lines of a caption that fit the cell; what does not fit ends in an ellipsis."""
    letters = int(THUMBNAIL / _font(12).getlength("n"))
    return textwrap.wrap(caption, letters, max_lines=CAPTION_LINES, placeholder=" …")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font lacks most letters that are not Latin."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
