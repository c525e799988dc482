"""Images of the web: each is either usable in a defined way or left out for a defined reason."""

from __future__ import annotations

import math
import multiprocessing
import resource
import struct
import sys
import time
import warnings
import zlib
from io import BytesIO

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, features
from transformers import CLIPProcessor

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.decoding import MAX_PIXELS, decode_image
from ncu_hf.data.records import BadRecord, Located, Record
from ncu_hf.data.transforms import ImageTransform

REASONS = {"undecodable", "truncated", "too_large"}
SECONDS, MEGABYTES = 2.0, 600


@pytest.fixture(autouse=True)
def nothing_on_stderr(capfd):
    """Neither Python nor a C library says a word; no warning gets out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr().err == ""


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def flat(mode: str, color, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, color)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width: int, height: int, *extra: bytes, depth=8, color=2, interlace=0, rows=b"", crc=None, behind=b"") -> bytes:
    """A PNG by hand; `extra` chunks stand before the pixels, `behind` after them."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header, crc) + b"".join(extra)
    return start + chunk(b"IDAT", zlib.compress(rows)) + behind + chunk(b"IEND", b"")


def insert(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment at its start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


def timed(image, **options) -> Image.Image:
    started = time.perf_counter()
    try:
        return decode_image(image, **options)
    finally:
        assert time.perf_counter() - started < SECONDS


def reason(image, **options) -> str:
    with pytest.raises(BadRecord) as caught:
        timed(image, **options)
    return caught.value.reason


def either(image, size: tuple[int, int] | None = None) -> str:
    """`"usable"` or the reason; a usable image is RGB, loaded and, if given, of that size."""
    try:
        decoded = timed(image)
    except BadRecord as error:
        assert error.reason in REASONS
        return error.reason
    assert decoded.mode == "RGB" and (size is None or decoded.size == size)
    assert len(decoded.tobytes()) == 3 * decoded.width * decoded.height
    return "usable"


JPEG = encode(noise(32, 24), "JPEG", quality=90)
GIF = encode(noise(32, 24), "GIF")
RED_ROW = b"\0" + b"\xff\0\0" * 8
ORIENTED = {"MM": b"MM\0*\0\0\0\x08\0\x01\x01\x12", "II": b"II*\0\x08\0\0\0\x01\0\x12\x01"}


def tiff_block(entry: bytes, following: int = 0) -> bytes:
    """Exif block with one entry: type, count, value."""
    return b"Exif\0\0" + ORIENTED["MM"] + entry + struct.pack(">I", following)


def bmp_rle(width: int, height: int, body: bytes) -> bytes:
    palette = bytes(value for i in range(256) for value in (i, i, i, 0))
    start = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body


def tiff_of_one_tile(side: int) -> bytes:
    """An image of 9 x 9 pixels that is a corner of its only tile."""
    pixels = zlib.compress(bytes(2**20))
    tags = {256: 9, 257: 9, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 134, 325: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + pixels


def frames(format: str, **options) -> bytes:
    first, *others = (flat("RGB", color) for color in ("red", "blue", "lime"))
    return encode(first, format, save_all=True, append_images=others, **options)


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'
LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(20)
)

# name -> (encoded, size, first pixel or None)
USABLE = {
    "one_pixel": (encode(flat("RGB", RED, (1, 1))), (1, 1), RED),
    "tall": (encode(flat("RGB", RED, (1, 10_000))), (1, 10_000), RED),
    "wide": (encode(flat("RGB", RED, (10_000, 1)), "JPEG", quality=100), (10_000, 1), None),
    "palette": (encode(flat("RGB", RED).convert("P")), (8, 8), RED),
    "palette_with_transparency": (encode(flat("P", 0), transparency=0), (8, 8), WHITE),
    "gif_with_transparency": (encode(flat("P", 0), "GIF", transparency=0), (8, 8), WHITE),
    "transparent": (encode(flat("RGBA", (255, 0, 0, 0))), (8, 8), WHITE),
    "one_bit": (encode(flat("1", 1)), (8, 8), WHITE),
    "one_bit_tiff": (encode(flat("1", 1), "TIFF", compression="group4"), (8, 8), WHITE),
    "grey_alpha": (encode(flat("LA", (128, 255))), (8, 8), GREY),
    "cmyk": (encode(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), (8, 8), RED),
    "ycck": (patched(encode(noise(8, 8, "CMYK"), "JPEG"), b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"), (8, 8), None),
    "16_bit_grey": (encode(Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))), (8, 8), GREY),
    "16_bit_rgb": (png(8, 8, depth=16, rows=(b"\0" + b"\x80\x80" * 24) * 8), (8, 8), GREY),
    "16_bit_rgba": (png(8, 8, depth=16, color=6, rows=(b"\0" + b"\xff\xff\0\0\0\0\0\0" * 8) * 8), (8, 8), WHITE),
    "float_tiff": (encode(Image.fromarray(np.full((8, 8), 128 / 255, np.float32)), "TIFF"), (8, 8), GREY),
    "nan_tiff": (encode(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), (8, 8), (0, 0, 0)),
    "negative_tiff": (encode(Image.fromarray(np.full((8, 8), -5, np.int32)), "TIFF"), (8, 8), (0, 0, 0)),
    "animated_gif": (frames("GIF"), (8, 8), RED),
    "animated_png": (frames("PNG"), (8, 8), RED),
    "multi_page_tiff": (frames("TIFF"), (8, 8), RED),
    "mpo": (frames("MPO", quality=100), (8, 8), (254, 0, 0)),
    "tiff_of_a_large_tile": (tiff_of_one_tile(1_024), (9, 9), (0, 0, 0)),
    "bmp": (encode(flat("RGB", RED), "BMP"), (8, 8), RED),
    "bmp_rle": (bmp_rle(4, 2, b"\x04\x80\0\0\x04\x80\0\1"), (4, 2), GREY),
    "bmp_rle_that_skips_all": (bmp_rle(2_000, 2_000, b"\0\2\xff\xff" * 70), (2_000, 2_000), None),
    "ico": (encode(flat("RGBA", (255, 0, 0, 255), (16, 16)), "ICO", sizes=[(16, 16)]), (16, 16), RED),
    "tga": (encode(flat("RGB", RED), "TGA"), (8, 8), RED),
    "ppm_in_text": (b"P3 2 1 255 255 0 0 0 0 255", (2, 1), RED),
    "gif_without_a_canvas": (GIF[:6] + bytes(4) + GIF[10:], (32, 24), None),  # its frame says the size
    "interlaced": (png(2, 1, interlace=1, rows=b"\0\xff\0\0" * 2), (2, 1), RED),
    "progressive": (encode(noise(32, 24), "JPEG", progressive=True), (32, 24), None),
    "jpeg_with_restarts": (encode(noise(32, 24), "JPEG", restart_marker_rows=1), (32, 24), None),
    "jpeg_with_thumbnails": (insert(insert(JPEG, 0xE1, b"Exif\0\0" + JPEG * 20), 0xE2, JPEG * 20), (32, 24), None),
    "jpeg_with_64_segments": (
        JPEG[:2] + b"\xff\xed\xff\xff".join([b""] + [bytes(65_533)] * 64) + JPEG[2:],
        (32, 24),
        None,
    ),
    "bytes_after_the_end": (JPEG + b"\0" * 100_000 + b"MZ", (32, 24), None),
    "exif_garbage": (insert(JPEG, 0xE1, b"Exif\0\0garbage"), (32, 24), None),
    "exif_header_cut": (insert(JPEG, 0xE1, b"Exif\0\0MM\0*"), (32, 24), None),
    "exif_far_offset": (insert(JPEG, 0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"), (32, 24), None),
    "exif_65535_entries": (insert(JPEG, 0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(600)), (32, 24), None),
    "exif_endless": (insert(JPEG, 0xE1, tiff_block(b"\0\3\0\0\0\1\0\1\0\0", 8)), (32, 24), None),
    "orientation_text": (insert(JPEG, 0xE1, tiff_block(b"\0\2\0\0\0\2six\0")), (32, 24), None),
    "orientation_fraction": (insert(JPEG, 0xE1, tiff_block(b"\0\5\0\0\0\1\0\0\0\x1a") + bytes(8)), (32, 24), None),
    "orientation_of_4_billion": (insert(JPEG, 0xE1, tiff_block(b"\0\3\xff\xff\xff\xff\0\0\0\x08")), (32, 24), None),
    "orientation_0": (insert(JPEG, 0xE1, tiff_block(b"\0\3\0\0\0\1\0\0\0\0")), (32, 24), None),
    "orientation_6": (insert(JPEG, 0xE1, tiff_block(b"\0\3\0\0\0\1\0\6\0\0")), (24, 32), None),
    "xmp_orientation": (insert(JPEG, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(6).encode()), (24, 32), None),
    "xmp_orientation_0": (
        insert(JPEG, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(0).encode()),
        (32, 24),
        None,
    ),
    "xmp_broken": (insert(JPEG, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta <<\xff"), (32, 24), None),
    "xmp_billion_laughs": (insert(JPEG, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + LAUGHS.encode()), (32, 24), None),
    "xmp_of_png": (
        png(8, 1, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(6).encode()), rows=RED_ROW),
        (1, 8),
        RED,
    ),
    "icc_garbage": (insert(JPEG, 0xE2, b"ICC_PROFILE\0\1\1garbage"), (32, 24), None),
    "photoshop_garbage": (insert(JPEG, 0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff"), (32, 24), None),
    # A whole stream of too few rows: the rest is black.
    "too_few_rows": (png(8, 100, rows=RED_ROW), (8, 100), RED),
}
for name in ("webp", "avif"):
    if features.check(name):
        USABLE[f"animated_{name}"] = (frames(name.upper(), quality=100), (8, 8), None)
        USABLE[f"transparent_{name}"] = (encode(flat("RGBA", (9, 9, 9, 0)), name.upper()), (8, 8), WHITE)


@pytest.mark.parametrize("name", USABLE)
def test_usable(name):
    data, size, color = USABLE[name]
    image = timed(data)
    assert (image.mode, image.size) == ("RGB", size)
    assert color is None or image.getpixel((0, 0)) == color
    small = timed(data, min_side=1)
    assert small.mode == "RGB" and min(small.size) >= 1


BOMB = zlib.compress(bytes(80 * 2**20), 9)
# name -> (encoded, reasons)
REFUSED = {
    "nothing": (b"", {"empty_image"}),
    "zeros": (bytes(1_000), {"undecodable"}),
    "html": (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", {"undecodable"}),
    "zero_wide": (png(0, 8), {"undecodable"}),
    "zero_high": (png(8, 0), {"undecodable"}),
    "wrong_crc_of_the_header": (png(8, 1, rows=RED_ROW, crc=1), {"undecodable"}),
    "unknown_depth": (png(8, 1, depth=3, rows=RED_ROW), {"undecodable"}),
    "wrong_crc_of_a_text": (png(8, 1, chunk(b"tEXt", b"a\0b", crc=1), rows=RED_ROW), {"undecodable"}),
    "no_pixels": (png(8, 8).replace(b"IDAT", b"iDAT"), REASONS),
    "bomb": (png(60_000, 60_000), {"too_large"}),
    "bomb_one_row": (png(2**31 - 1, 1), {"too_large"}),
    "small_bomb": (png(10_000, 8_000), {"too_large"}),
    "gif_bomb": (GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:], {"too_large"}),
    "bmp_bomb": (bmp_rle(60_000, 60_000, b"\xff\5" * 100), {"too_large"}),
    "bmp_of_many_runs": (bmp_rle(4_000, 4_000, b"\1\5" * 3_000_000), {"too_large"}),
    "tiff_tile_bomb": (tiff_of_one_tile(44_000), {"too_large"}),
    "ppm_bomb": (b"P6 60000 60000 255 ", {"too_large"}),
    "text_bomb": (png(8, 1, chunk(b"zTXt", b"a\0\0" + BOMB), rows=RED_ROW), REASONS),
    "text_bomb_behind": (png(8, 1, rows=RED_ROW, behind=chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), REASONS),
    "profile_bomb": (png(8, 1, chunk(b"iCCP", b"a\0\0" + BOMB), rows=RED_ROW), REASONS),
    "rle_ends_early": (bmp_rle(64, 64, b"\4\5\0\1"), {"undecodable", "truncated"}),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", {"undecodable"}),
    "eps_with_preview": (b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, 9, 0, 0, 0, 0, 0) + b"%!PS\n", {"undecodable"}),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', {"undecodable"}),
    "pdf": (encode(flat("RGB", RED), "PDF"), {"undecodable"}),
    "wmf": (b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\1\0\x09\0\0\3" + bytes(60), {"undecodable"}),
    "emf": (b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60), {"undecodable"}),
    "photoshop": (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(300), {"undecodable"}),
    "icns": (encode(flat("RGB", RED, (16, 16)), "ICNS"), {"undecodable"}),
    "pcx": (encode(flat("RGB", RED), "PCX"), {"undecodable"}),
    "not_bytes": (12, {"undecodable"}),
    "a_list": ([1, 2], {"undecodable"}),
    "an_array": (np.zeros((3, 3)), {"undecodable"}),
    "none": (None, {"missing_image"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    data, reasons = REFUSED[name]
    assert reason(data) in reasons
    assert reason(data, min_side=224) in reasons


def test_no_program_is_started(monkeypatch):
    """PostScript would go to Ghostscript."""
    started = []
    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(f"subprocess.{name}", lambda *call, **_: started.append(call))
    monkeypatch.setattr("os.system", started.append)
    for name in ("eps", "eps_with_preview", "svg", "pdf", "wmf", "emf"):
        reason(REFUSED[name][0])
    assert started == []


def truncations() -> dict[str, bytes]:
    image = noise(48, 40)
    files = {name: encode(image, name) for name in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "JPEG2000")}
    files["progressive"] = encode(image, "JPEG", progressive=True)
    return files | {name: encode(image, name.upper()) for name in ("webp", "avif") if features.check(name)}


@pytest.mark.parametrize(("name", "data"), truncations().items(), ids=list(truncations()))
def test_cut_anywhere(name, data):
    outcomes = {cut: either(data[:cut], (48, 40)) for cut in [*range(1, 80), *range(80, len(data), 61)]}
    assert outcomes[1] == "undecodable" and outcomes[20] != "usable"
    half = either(data[: len(data) // 2])
    assert half != "usable"
    if name in ("JPEG", "progressive", "PNG", "GIF"):
        assert half == "truncated"
    assert either(data, (48, 40)) == "usable"


def test_every_marker_of_a_jpeg_can_be_wrong():
    """Lossless, hierarchical and arithmetic coding among them: what libjpeg cannot read must not do harm."""
    start = JPEG.index(b"\xff\xc0")
    outcomes = {marker: either(JPEG[:start] + bytes([0xFF, marker]) + JPEG[start + 2 :]) for marker in range(0xC0, 256)}
    assert outcomes[0xC0] == outcomes[0xC1] == "usable"
    assert outcomes[0xC3] in REASONS and outcomes[0xC5] in REASONS


def test_broken_index_of_a_multi_picture_file():
    data = frames("MPO")
    start = data.index(b"MPF\0")
    expected = ("usable", "undecodable") if PIL.__version__.startswith("12.") else ("usable",)  # 12 gives some up
    for offset in range(4, 80):
        for value in (0, 255):
            damaged = data[: start + offset] + bytes([value]) + data[start + offset + 1 :]
            assert either(damaged, (8, 8)) in expected, offset


def test_tags_of_a_tiff_can_be_wrong():
    for data in (encode(noise(16, 12), "TIFF"), encode(noise(16, 12), "TIFF", compression="tiff_adobe_deflate")):
        entries = struct.unpack("<I", data[4:8])[0] + 2
        for place in range(entries, len(data) if entries > 200 else entries + 150):
            for value in (0, 1, 127, 255):
                either(data[:place] + bytes([value]) + data[place + 1 :])


def test_progressive_scans_without_end():
    data = encode(flat("L", 128, (2_000, 2_000)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert reason(data[:-2] + last * 5_000 + data[-2:]) == "too_large"
    assert timed(data[:-2] + last * 20 + data[-2:]).size == (2_000, 2_000)


def test_what_a_name_says_does_not_matter(tmp_path):
    for name, data in (
        ("a.png", JPEG),
        ("a.txt", JPEG),
        ("a.eps", JPEG),
        ("noname", JPEG),
        ("a.jpg", encode(noise(32, 24))),
    ):
        (tmp_path / name).write_bytes(data)
        assert timed(tmp_path / name).size == (32, 24)


def test_paths_that_are_no_image(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "none.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "real.jpg").write_bytes(JPEG)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    for name in ("folder.jpg", "dangling.jpg", "loop.jpg", "none.jpg", "x" * 5_000):
        assert reason(str(tmp_path / name)) == "missing_file"
    assert reason("/dev/zero") == reason("\ud800.jpg") == "missing_file"
    assert timed(str(tmp_path / "link.jpg")).size == (32, 24)


def _peak_megabytes(data: bytes, answer) -> None:
    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

    before, result = peak(), "usable"
    try:
        decode_image(data)
    except BadRecord as error:
        result = error.reason
    answer.put((result, peak() - before))


def memory(data: bytes) -> tuple[str, float]:
    """Outcome and megabytes that decoding adds, in a process of its own."""
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    process = context.Process(target=_peak_megabytes, args=(data, answer))
    process.start()
    result = answer.get()
    process.join()
    return result


SIDE = math.isqrt(MAX_PIXELS)
LARGE = {
    "rgb": lambda: png(SIDE, SIDE, rows=bytes((3 * SIDE + 1) * SIDE)),
    "transparent": lambda: png(SIDE, SIDE, color=6, rows=bytes((4 * SIDE + 1) * SIDE)),
    "16_bit": lambda: png(SIDE, SIDE, color=0, depth=16, rows=bytes((2 * SIDE + 1) * SIDE)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_largest_image_fits(name):
    outcome, megabytes = memory(LARGE[name]())
    assert outcome == "usable" and megabytes < MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize(("format", "side"), [("WEBP", 5_700), ("AVIF", 5_700), ("JPEG2000", 4_090)])
def test_decoders_that_hold_copies_are_kept_small(format, side):
    if format in ("WEBP", "AVIF") and not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}")
    options = {"speed": 10} if format == "AVIF" else {}
    outcome, megabytes = memory(encode(flat("RGBA", (1, 2, 3, 4), (side, side)), format, **options))
    assert outcome == "usable" and megabytes < MEGABYTES
    larger = encode(flat("RGB", RED, (side + 200, side + 200)), format, **options)
    assert reason(larger) == "too_large"


@pytest.mark.parametrize("name", ["bomb", "gif_bomb", "text_bomb", "text_bomb_behind", "profile_bomb", "bmp_bomb"])
def test_a_bomb_costs_no_memory(name):
    outcome, megabytes = memory(REFUSED[name][0])
    assert outcome != "usable" and megabytes < 150


# Batches


@pytest.fixture
def collate(clip_folder):
    """Records -> batch; all the hostile ones go through the real tokenizer and transform."""
    processor = CLIPProcessor.from_pretrained(clip_folder)

    def run(records: list[Record], train: bool) -> dict:
        transform = ImageTransform(processor.image_processor, train=train)
        collator = PairCollator(processor.tokenizer, transform, context_length=20)
        return collator([Located(record, "s", 0, (i,)) for i, record in enumerate(records)], seed=0)

    return run


@pytest.mark.parametrize("train", [True, False])
def test_hostile_images_in_a_batch(collate, train):
    bad = [Record(name, data, "a dog") for name, (data, _) in REFUSED.items()]
    good = [Record(name, data, "a dog") for name, (data, size, _) in USABLE.items() if max(size) < 5_000]
    batch = collate(sorted(bad + good, key=lambda record: record.key), train)  # mixed
    assert sorted(batch["keys"]) == sorted(record.key for record in good)
    assert batch["pixel_values"].shape == (len(good), 3, 32, 32) and batch["pixel_values"].dtype == torch.uint8
    assert sorted(skipped.key for skipped in batch["skipped"]) == sorted(record.key for record in bad)
    assert all(skipped.reason in REFUSED[skipped.key][1] for skipped in batch["skipped"])


def test_extreme_aspect_ratios_in_a_batch(collate):
    records = [Record(name, USABLE[name][0], "a dog") for name in ("tall", "wide")]
    assert collate(records, True)["pixel_values"].shape == (2, 3, 32, 32)
    assert collate(records, False)["pixel_values"].shape == (2, 3, 32, 32)  # 32 x 320 000 pixels: below the limit


def test_a_fault_of_the_source_is_a_skipped_record(collate):
    batch = collate([Record("a", JPEG, "a dog"), Record("b", None, None, fault="corrupt_page")], True)
    assert batch["keys"] == ["a"] and batch["skipped"][0].reason == "corrupt_page"
