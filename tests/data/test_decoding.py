from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from ncu_hf.data.decoding import IMAGE_FORMATS, MAX_CAPTION_CHARACTERS, clean_caption, decode_image
from ncu_hf.data.records import BadRecord


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reason(image, **options) -> str:
    with pytest.raises(BadRecord) as caught:
        decode_image(image, **options)
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr", "I", "I;16", "F", "LAB"])
def test_every_mode_becomes_rgb(mode):
    format = {"CMYK": "JPEG", "YCbCr": "JPEG", "I": "TIFF", "F": "TIFF", "LAB": "TIFF"}.get(mode, "PNG")
    image = decode_image(encode(Image.new(mode, (5, 3)), format))
    assert (image.mode, image.size) == ("RGB", (5, 3))
    assert image.getpixel((0, 0)) is not None


def test_rgb_pixels_are_kept():
    image = noise(7, 5)
    assert np.array_equal(np.asarray(decode_image(encode(image))), np.asarray(image))


def test_path_and_bytes_are_the_same(tmp_path):
    noise(6, 4).save(tmp_path / "a.png")
    from_path = decode_image(str(tmp_path / "a.png"))
    assert from_path.tobytes() == decode_image((tmp_path / "a.png").read_bytes()).tobytes()


def test_transparency_is_laid_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    for data in (encode(palette, transparency=0), encode(palette, transparency=b"\x00\xff")):
        assert [decode_image(data).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]
    assert decode_image(encode(Image.new("LA", (1, 1), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    half = decode_image(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))).getpixel((0, 0))
    assert half == (127, 127, 127)
    color_key = encode(Image.new("RGB", (1, 1), (9, 8, 7)), transparency=(9, 8, 7))
    assert decode_image(color_key).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    image = decode_image(encode(Image.fromarray(values)))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 100, 255]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_one_pixel():
    assert decode_image(encode(Image.new("RGB", (1, 1), (1, 2, 3)))).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, exif=exif.tobytes())
    with Image.open(BytesIO(data)) as opened:
        wanted = ImageOps.exif_transpose(opened)
    assert decode_image(data).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_a_broken_exif_block_does_not_lose_the_image(exif):
    assert decode_image(encode(noise(8, 8), "JPEG", exif=exif)).size == (8, 8)


def test_draft_keeps_the_short_side_above_what_is_asked():
    data = encode(noise(400, 300), "JPEG")
    assert decode_image(data).size == (400, 300)
    assert decode_image(data, min_side=300).size == (400, 300)
    assert decode_image(data, min_side=150).size == (200, 150)
    assert decode_image(data, min_side=40).size == (100, 75)
    assert decode_image(encode(noise(400, 300)), min_side=40).size == (400, 300)  # not a JPEG


def test_reasons(tmp_path):
    jpeg = encode(noise(64, 64), "JPEG")
    png = encode(noise(64, 64))
    assert reason(None) == reason("") == "missing_image"
    assert reason(str(tmp_path / "none.jpg")) == reason("a\0b") == "missing_file"
    assert reason(str(tmp_path)) == "missing_file"
    assert reason(b"") == "empty_image"
    assert reason(b"<html>not found</html>") == reason(12) == "undecodable"
    assert reason(jpeg[: len(jpeg) // 2]) == reason(png[: len(png) // 2]) == "truncated"
    assert reason(png_header(60_000, 60_000)) == "too_large"
    assert reason(png_header(12_000, 8_000)) == "too_large"  # between Pillow's warning and its error


def test_only_listed_formats_are_opened():
    assert reason(encode(noise(8, 8), "PCX")) == "undecodable"  # Pillow could
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert reason(eps) == "undecodable" and "EPS" not in IMAGE_FORMATS


def test_random_damage_never_raises_anything_else():
    rng = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        data = encode(noise(24, 24), format)
        for _ in range(60):
            damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
            for place in rng.integers(0, len(damaged), 4):
                damaged[place] = rng.integers(256)
            try:
                assert decode_image(bytes(damaged)).mode == "RGB"
            except BadRecord as error:
                assert error.reason in {"undecodable", "truncated", "too_large"}


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("a dog", "a dog"),
        ("  a \t dog\n\nruns\u00a0", "a dog runs"),
        ("café".encode(), "café"),
        (7, "7"),
        ("None", "None"),
    ],
)
def test_captions_are_tidied(stored, wanted):
    assert clean_caption(stored) == wanted


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (None, "missing_caption"),
        (float("nan"), "missing_caption"),
        ("", "empty_caption"),
        (" \n\t", "empty_caption"),
        (b"", "empty_caption"),
        (b"caf\xe9", "caption_not_utf8"),
        ("a \ud800 b", "caption_not_utf8"),
        (["a", "b"], "caption_not_text"),
        (True, "caption_not_text"),
    ],
)
def test_captions_that_are_none(stored, wanted):
    with pytest.raises(BadRecord) as caught:
        clean_caption(stored)
    assert caught.value.reason == wanted


def test_long_captions_are_cut_before_tokenisation():
    assert clean_caption("word " * 10_000) == ("word " * 10_000)[:MAX_CAPTION_CHARACTERS].strip()
    # The limit on bytes may cut a character in two; that is not an encoding error.
    for lead in range(4):
        text = "a" * lead + "\U0001f600" * 10_000
        assert clean_caption(text.encode()) == text[:MAX_CAPTION_CHARACTERS]
