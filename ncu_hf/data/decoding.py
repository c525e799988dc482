"""Bytes -> RGB image, stored caption -> clean caption; or the reason why not."""

from __future__ import annotations

import codecs
import os
import struct
import warnings
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, features

from ncu_hf.data.records import BadRecord

# Pillow warns above this number of pixels and stops at twice as many; we stop at it. About 268 MB as RGB.
MAX_PIXELS = 89_478_485
MAX_IMAGE_BYTES = 256 * 2**20
# Cut before tokenisation, whose time grows with length. 77 tokens of the CLIP vocabulary are far shorter.
MAX_CAPTION_CHARACTERS = 2_000
MAX_CAPTION_BYTES = 4 * MAX_CAPTION_CHARACTERS

# Only formats that Pillow decodes by itself: EPS, for one, would start an interpreter on code from the data.
IMAGE_FORMATS = ["JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "TGA", "JPEG2000"]
IMAGE_FORMATS += [name.upper() for name in ("webp", "avif") if features.check(name)]

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
    data = _image_bytes(image)
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


def _image_bytes(image: Any) -> bytes:
    """Encoded image in memory, at most `MAX_IMAGE_BYTES`."""
    if image is None or image == "":
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
    except PermissionError as error:
        raise BadRecord("unreadable_file") from error
    except (FileNotFoundError, ValueError) as error:  # ValueError: a zero byte in the path
        raise BadRecord("missing_file") from error


def _decode(data: bytes, min_side: int | None) -> Image.Image:
    with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise BadRecord("too_large")
        if min_side is not None and opened.format in ("JPEG", "MPO"):
            opened.draft(None, (min_side, min_side))
        opened.load()
        orientation = _orientation(opened)
        image = _to_rgb(opened)
    return image.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else image


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
    """RGB copy of an image of any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")  # a copy, also where the mode is RGB already


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey image of 16 or 32 bits -> L. Pillow's own conversion clips at 255: most 16-bit images become white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode == "F" and values.size and values.max() <= 1:
        values = values * 255
    elif image.mode != "F" and (image.mode != "I" or values.max(initial=0) > 255):
        values = values / 257
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _utf8_head(data: bytes) -> str:
    """Text of the first `MAX_CAPTION_BYTES`; a character that this limit cuts in two is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return decoder.decode(data[:MAX_CAPTION_BYTES], final=len(data) <= MAX_CAPTION_BYTES)


def clean_caption(caption: Any) -> str:
    """Check and tidy one caption.

    White space is folded to single blanks; what exceeds `MAX_CAPTION_CHARACTERS` is cut.

    Args:
        caption (`Any`): As stored: text, UTF-8 bytes, or a number (a caption column of figures reads as numbers).

    Returns:
        `str`: not empty.

    Raises:
        BadRecord: `missing_caption`, `empty_caption`, `caption_not_utf8` or `caption_not_text`.
    """
    if caption is None or (isinstance(caption, float) and caption != caption):
        raise BadRecord("missing_caption")
    if isinstance(caption, (int, float)) and not isinstance(caption, bool):
        caption = str(caption)
    try:
        if isinstance(caption, bytes):
            caption = _utf8_head(caption)
        if not isinstance(caption, str):
            raise BadRecord("caption_not_text")
        caption = " ".join(caption[: 2 * MAX_CAPTION_CHARACTERS].split())[:MAX_CAPTION_CHARACTERS].strip()
        caption.encode("utf-8")  # a lone surrogate (from JSON) cannot be tokenised
    except UnicodeError as error:
        raise BadRecord("caption_not_utf8") from error
    if not caption:
        raise BadRecord("empty_caption")
    return caption
