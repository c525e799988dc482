"""Bytes -> RGB image, stored caption -> clean caption; or the reason why not."""

from __future__ import annotations

import codecs
import contextlib
import logging
import math
import os
import re
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, features

from ncu_hf.data.records import BadRecord

# 67 million: 268 MB as RGB (4 bytes a pixel in Pillow), at most about twice that while it is decoded.
MAX_PIXELS = 2**26
# Decoders that hold several copies: 23, 15 and 9 bytes a pixel at their peak.
_FORMAT_PIXELS = {"JPEG2000": 2**24, "WEBP": 2**25, "AVIF": 2**25}
MAX_IMAGE_BYTES = 256 * 2**20
# Pillow decodes these in Python, about 0.2 s a megabyte.
_SLOW_DECODERS = ("bmp_rle", "ppm", "ppm_plain")
_MAX_SLOW_BYTES = 4 * 2**20
# A progressive JPEG visits all its pixels in every scan (0.3 ns each), and a scan may be as short as 14 bytes. Encoders
# write about 10 scans.
_MAX_SCANNED_PIXELS = 2**31
# Pixels that are converted at once, where a conversion needs more room than the image has.
_BAND_PIXELS = 2**20
# Cut before tokenisation, whose time grows with length. 77 tokens of the CLIP vocabulary are far shorter.
MAX_CAPTION_CHARACTERS = 2_000
MAX_CAPTION_BYTES = 4 * MAX_CAPTION_CHARACTERS
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
# Unicode categories: controls, joiners and direction marks, separators, marks that sit on a letter.
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp", "Mn"}

# Only formats that Pillow decodes by itself: EPS, for one, would start an interpreter on code from the data.
IMAGE_FORMATS = ["JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "TGA", "JPEG2000"]
IMAGE_FORMATS += [name.upper() for name in ("webp", "avif") if features.check(name)]

# This module of Pillow logs an error for a file that it refuses: here that is counted, not told a line at a time.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

# What Pillow's decoders raise on hostile input.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    struct.error,
    zlib.error,
)
_ORIENTATION_TAG = 0x0112
_TILE_SIZE_TAGS = (322, 323)
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(image: bytes | str | os.PathLike[str] | None, min_side: int | None = None) -> Image.Image:
    """Decode one image.

    The first frame of an animation is taken, EXIF orientation is applied (an unreadable EXIF block is ignored),
    transparency is laid on white, 16 bits are scaled to 8.

    Args:
        image (`bytes` or `str`): Encoded image or path of its file.
        min_side (`int`, *optional*): A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its short side
            keeps this number of pixels (Pillow's draft mode). Off by default.

    Returns:
        `PIL.Image.Image`: loaded, mode RGB.

    Raises:
        BadRecord: `missing_image`, `missing_file`, `unreadable_file`, `empty_image`, `undecodable`, `truncated` or
            `too_large`.
    """
    data = read_image(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. corrupt EXIF: handled, or counted, below
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(data, min_side)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
            raise BadRecord("too_large") from error
        except Image.UnidentifiedImageError as error:
            raise BadRecord("undecodable") from error
        except _DECODER_ERRORS as error:
            raise BadRecord("truncated" if _means_truncated(error) else "undecodable") from error


def read_image(image: Any) -> bytes:
    """Encoded image in memory, at most `MAX_IMAGE_BYTES`.

    Raises:
        BadRecord: see [`decode_image`]; nothing is decoded here.
    """
    if image is None or (isinstance(image, str) and not image):  # an array would compare element by element
        raise BadRecord("missing_image")
    if isinstance(image, (str, os.PathLike)):
        image = _read_file(image)
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise BadRecord("undecodable")
    if not len(image):
        raise BadRecord("empty_image")
    if len(image) > MAX_IMAGE_BYTES:
        raise BadRecord("too_large")
    return bytes(image)


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        if not os.path.isfile(path):  # a device or a pipe could block for ever
            raise BadRecord("missing_file")
        with open(path, "rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except (FileNotFoundError, ValueError) as error:  # ValueError: a zero byte in the path
        raise BadRecord("missing_file") from error
    except OSError as error:
        raise BadRecord("unreadable_file") from error


def _decode(data: bytes, min_side: int | None) -> Image.Image:
    with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as opened:
        _check_cost(opened, data)
        if min_side is not None and opened.format in ("JPEG", "MPO"):
            opened.draft(None, (min_side, min_side))
        with _silent_c_code() if _uses(opened, "libtiff") else contextlib.nullcontext():
            opened.load()
        orientation = _orientation(opened)
        image = _to_rgb(opened)
    return image.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else image


def _check_cost(opened: Image.Image, data: bytes) -> None:
    """Refuse a small file that would take seconds or gigabytes."""
    pixels = opened.width * opened.height
    if opened.format == "TIFF":  # one tile is decoded whole, however little of it lies in the image
        pixels = max(pixels, math.prod(opened.tag_v2.get(tag, 0) for tag in _TILE_SIZE_TAGS))
    if pixels > _FORMAT_PIXELS.get(opened.format, MAX_PIXELS):
        raise BadRecord("too_large")
    if opened.info.get("progressive") and pixels * data.count(b"\xff\xda") > _MAX_SCANNED_PIXELS:
        raise BadRecord("too_large")
    if len(data) > _MAX_SLOW_BYTES and _uses(opened, *_SLOW_DECODERS):
        raise BadRecord("too_large")


def _uses(opened: Image.Image, *decoders: str) -> bool:
    return any(tile.codec_name in decoders for tile in opened.tile)


@contextlib.contextmanager
def _silent_c_code() -> Iterator[None]:
    """Nothing goes to standard error: libtiff writes a line there for each fault that it finds."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _means_truncated(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if there is none or the block is broken: a bad EXIF block is no reason to lose an image."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB image of an image of any mode; the image itself where it is RGB already."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in stripes with their first rows: what is computed of a stripe does not multiply the memory."""
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    for top, band in _bands(image):
        rgba = band.convert("RGBA")
        white.paste(rgba, (0, top), mask=rgba)
    return white


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey image of 16 or 32 bits -> L. Pillow's own conversion clips at 255: most 16-bit images become white."""
    largest = max(_numbers(band).max() for _, band in _bands(image))
    factor = 1.0
    if image.mode == "F" and largest <= 1:
        factor = 255.0
    elif image.mode != "F" and (image.mode != "I" or largest > 255):
        factor = 1 / 257
    grey = Image.new("L", image.size)
    for top, band in _bands(image):
        values = (_numbers(band) * factor).clip(0, 255).round()
        grey.paste(Image.fromarray(values.astype(np.uint8)), (0, top))
    return grey


def _numbers(band: Image.Image) -> np.ndarray:
    """Values (H, W), float64, finite."""
    return np.nan_to_num(np.asarray(band, dtype=np.float64))


def clean_caption(caption: Any) -> str:
    """Check and tidy one caption.

    White space and control characters are folded to single blanks, a byte order mark is dropped; what exceeds
    `MAX_CAPTION_CHARACTERS` is cut.

    Args:
        caption (`Any`): As stored: text, UTF-8 bytes, or a number (a caption column of figures reads as numbers).

    Returns:
        `str`: not empty.

    Raises:
        BadRecord: `missing_caption`, `empty_caption` (nothing to see in it), `caption_not_utf8` or
            `caption_not_text`.
    """
    if caption is None or (isinstance(caption, float) and caption != caption):
        raise BadRecord("missing_caption")
    try:
        text = _caption_text(caption)[: 2 * MAX_CAPTION_CHARACTERS]
        if text.count("\0") * 4 > len(text):  # UTF-16 of plain letters is valid UTF-8 with zeros in between
            raise BadRecord("caption_not_utf8")
        text = " ".join(_CONTROLS.sub(" ", text.removeprefix("\ufeff")).split())[:MAX_CAPTION_CHARACTERS].strip()
        text.encode("utf-8")  # a lone surrogate (from JSON) cannot be tokenised
    except UnicodeError as error:
        raise BadRecord("caption_not_utf8") from error
    if all(unicodedata.category(character) in _INVISIBLE for character in text):
        raise BadRecord("empty_caption")
    return text


def _caption_text(caption: Any) -> str:
    """Stored caption as text; zeros that pad a field of fixed width are dropped."""
    if isinstance(caption, (int, float)) and not isinstance(caption, bool):
        # Python writes no integer of more than 4300 digits; no caption is one of 20.
        if abs(caption) < 1e20:
            return str(caption)
    elif isinstance(caption, bytes):
        return _utf8_head(caption.rstrip(b"\0"))
    elif isinstance(caption, str):
        return caption.rstrip("\0")
    raise BadRecord("caption_not_text")


def _utf8_head(data: bytes) -> str:
    """Text of the first `MAX_CAPTION_BYTES`; a character that this limit cuts in two is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return decoder.decode(data[:MAX_CAPTION_BYTES], final=len(data) <= MAX_CAPTION_BYTES)
