"""Pictures for the data benchmark that cost a JPEG decoder what photographs cost."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

# The spectrum's fall and the sensor's noise set how well the pictures compress. At 500 px and quality 90 they take 2.5
# bits a pixel; three photographs at that size and quality took 1.6, 2.5 and 2.9. At 2000 px it is 1.7: as in
# photographs, much of the detail has a size in the scene, not in pixels.
_FALL, _NOISE = 1.4, 1.5
_SHAPES = 25
# Height for a width of 1; every third is upright.
_FORMATS = (3 / 4, 2 / 3)


def draw_photos(long_side: int, count: int, quality: int) -> list[bytes]:
    """JPEGs (4:2:0) with soft light, texture at all scales, sharp edges and noise; always the same ones."""
    return [_jpeg(_photo(long_side, index), quality) for index in range(count)]


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _photo(long_side: int, index: int) -> Image.Image:
    rng = np.random.default_rng((index, long_side))
    width, height = long_side, max(1, round(long_side * _FORMATS[index % 2]))
    if index % 3 == 2:
        width, height = height, width
    light = _cloud(height, width, _FALL, rng)
    colors = [128 + 42 * light + 14 * _cloud(height, width, _FALL + 0.3, rng) for _ in range(3)]
    image = Image.fromarray(np.stack(colors, axis=2).clip(0, 255).astype(np.uint8))
    _draw_shapes(image, rng)
    noisy = np.asarray(image) + _NOISE * rng.normal(size=(height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _cloud(height: int, width: int, fall: float, rng: np.random.Generator) -> np.ndarray:
    """Random field (H, W) of variance 1 whose amplitude falls as 1 / frequency^fall."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    frequency[0, 0] = np.inf  # no mean
    spectrum = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) / frequency**fall
    field = np.fft.irfft2(spectrum, (height, width))
    return field / field.std()


def _draw_shapes(image: Image.Image, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        x, y = rng.uniform(0, image.width), rng.uniform(0, image.height)
        radius = rng.uniform(0.01, 0.08) * image.width
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw = pen.ellipse if rng.integers(2) else pen.rectangle
        draw((x - radius, y - radius, x + radius, y + radius), fill=color)
