"""RGB image -> uint8 tensor of the model's input size; the normalisation follows on the device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers.image_processing_utils import BaseImageProcessor

from ncu_hf.data.decoding import MAX_PIXELS
from ncu_hf.data.records import BadRecord
from ncu_hf.errors import InputError

# torch resizes uint8 in SIMD: 0.27 ms where Pillow takes 0.94 ms for half of a 500 x 375 image to 224 x 224. It has
# Pillow's filter (antialiased) and differs from it by rounding alone, on smooth pictures by 2 levels at most; it gives
# the same bits with and without AVX.
_TORCH_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
# It needs copies of the crop, which Pillow does without: above this size memory counts more than time.
_MAX_COPIED_PIXELS = 2**22
# Aspect ratios of a random crop and number of draws before the centre is taken (torchvision's RandomResizedCrop).
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class ImageTransform:
    """Resize and crop, as the model's own image processor says.

    With `train=True` a random part of the image is resized to the model's input size, with the processor's filter;
    otherwise the result equals the processor's (Pillow backend) resize and centre crop, pixel for pixel.

    Args:
        processor (`BaseImageProcessor`): A `CLIPImageProcessor`, of either backend.
        train (`bool`): Random crop or the processor's own preprocessing. The latter can be used for training too.
        crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.5, 1.0)`): Range of the crop's share of the
            area (released code of NCU). Images are not mirrored: captions name sides.

    Attributes:
        output_size (`tuple[int, int]`): (H, W) of the result.
        mean, std, rescale: Arguments for [`normalize`], from the processor.
        min_side (`int`, *optional*): What a JPEG's short side must keep when it is decoded (`decode_image`).
            `None` without random crop: the result must not depend on how it was decoded.

    Raises:
        InputError: the processor does not lead to one fixed size, or pads.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        train: bool,
        crop_scale: tuple[float, float] = (0.5, 1.0),
    ):
        low, high = crop_scale
        if not 0 < low <= high <= 1:
            raise InputError(f"crop_scale: {crop_scale} is not a range in (0, 1]. The released code uses (0.5, 1.0).")
        config = processor.to_dict()
        self.train = train
        self.crop_scale = (float(low), float(high))
        resample = config.get("resample")  # 0 is a filter: nearest
        self.resample = Image.Resampling.BICUBIC if resample is None else Image.Resampling(int(resample))
        self._resize = _size(config, "size") if config.get("do_resize") else None
        self._crop = _crop_size(config)
        self.output_size = self._fixed_size(config)
        self.mean, self.std = _mean_and_std(config)
        self.rescale = float(config.get("rescale_factor") or 1 / 255) if config.get("do_rescale") else 1.0
        # The smallest square crop must still have the output's size.
        self.min_side = math.ceil(max(self.output_size) / math.sqrt(low)) if train else None

    def _fixed_size(self, config: dict[str, Any]) -> tuple[int, int]:
        if config.get("do_pad"):
            raise InputError("Image processor: do_pad is not supported. Set do_pad to false in its config.")
        if self._crop is not None:
            return self._crop
        if self._resize is not None and "height" in self._resize:
            return self._resize["height"], self._resize["width"]
        raise InputError(
            "Image processor: neither a centre crop nor a resize to height and width, so images would differ in size. "
            "Set do_center_crop and crop_size in preprocessor_config.json."
        )

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Transform one image.

        Args:
            image (`PIL.Image.Image`): Mode RGB.
            rng (`np.random.Generator`, *optional*): Source of all randomness; needed with `train=True`.

        Returns:
            `torch.Tensor`: uint8 (3, H, W).

        Raises:
            BadRecord: `too_large`: an extreme aspect ratio blows the resized image up beyond the limit of pixels.
        """
        if not self.train:
            return _to_tensor(self._center_crop(self._plain_resize(image)))
        if rng is None:
            raise ValueError("A training transform needs a generator.")
        box = random_crop_box(image.width, image.height, self.crop_scale, rng)
        return self._resize_box(image, box)

    def _resize_box(self, image: Image.Image, box: tuple[int, int, int, int]) -> torch.Tensor:
        """Part of an image at the output's size, uint8 (3, H, W)."""
        left, top, right, bottom = box
        height, width = self.output_size
        mode = _TORCH_MODES.get(self.resample)
        if mode is None or (right - left) * (bottom - top) > _MAX_COPIED_PIXELS:
            return _to_tensor(image.resize((width, height), resample=self.resample, box=box))
        part = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)  # (3, h, w), stored as (h, w, 3)
        return interpolate(part[None], size=(height, width), mode=mode, antialias=True)[0].contiguous()

    def _plain_resize(self, image: Image.Image) -> Image.Image:
        if self._resize is None:
            return image
        if "height" in self._resize:
            width, height = self._resize["width"], self._resize["height"]
        else:
            edge, short = self._resize["shortest_edge"], min(image.size)
            width, height = (edge if side == short else int(edge * side / short) for side in image.size)
        if width * height > MAX_PIXELS:
            raise BadRecord("too_large")
        return image.resize((width, height), resample=self.resample)

    def _center_crop(self, image: Image.Image) -> Image.Image:
        """Centre crop; what lies outside of a smaller image is black, as in transformers' `center_crop`."""
        if self._crop is None:
            return image
        height, width = self._crop
        top, left = (image.height - height) // 2, (image.width - width) // 2
        return image.crop((left, top, left + width, top + height))


def random_crop_box(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Box (left, top, right, bottom) of a random crop, in pixels.

    The share of the area is uniform in `scale`, the aspect ratio log-uniform in [3/4, 4/3] (Szegedy et al. 2015, as
    in torchvision's `RandomResizedCrop`). If no draw fits, the largest central box with an allowed ratio is taken.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def normalize(
    pixel_values: torch.Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    rescale: float = 1 / 255,
) -> torch.Tensor:
    """(x * rescale - mean) / std, on the tensor's own device.

    Args:
        pixel_values (`torch.Tensor`): uint8 (B, 3, H, W).
        mean, std (`tuple[float, float, float]`): Per channel, in rescaled units.
        rescale (`float`, *optional*, defaults to 1/255): Factor from levels to [0, 1].

    Returns:
        `torch.Tensor`: float32 (B, 3, H, W).
    """
    offset, scale = (_channels(values, pixel_values.device) for values in (mean, std))
    # x / 255 in float32 has the bits of the processor's float64 product with 1/255; the float32 product has not.
    return pixel_values.to(torch.float32).div_(1 / rescale).sub_(offset).div_(scale)


def _channels(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    # Filled on the device: a copy from the host would wait for all that a GPU has still to do.
    return torch.stack([torch.full((1, 1), value, dtype=torch.float32, device=device) for value in values])


def _to_tensor(image: Image.Image) -> torch.Tensor:
    # By channel: numpy's transposition of (H, W, 3) takes half as long again.
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in image.split()]))


def _size(config: dict[str, Any], name: str) -> dict[str, int]:
    """`{"shortest_edge": s}` or `{"height": h, "width": w}`."""
    size = {key: int(value) for key, value in dict(config.get(name) or {}).items() if value is not None}
    if set(size) not in ({"shortest_edge"}, {"height", "width"}) or min(size.values()) < 1:
        raise InputError(
            f"Image processor: {name} = {size} is not supported. Give {{'shortest_edge': s}} or "
            "{'height': h, 'width': w} in preprocessor_config.json."
        )
    return size


def _crop_size(config: dict[str, Any]) -> tuple[int, int] | None:
    if not config.get("do_center_crop"):
        return None
    size = _size(config, "crop_size")
    if "height" not in size:
        raise InputError(f"Image processor: crop_size = {size} must have height and width.")
    return size["height"], size["width"]


def _mean_and_std(config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not config.get("do_normalize"):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (tuple(float(x) for x in config.get(name) or ()) for name in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(f"Image processor: image_mean {mean} and image_std {std} must have 3 values, std above 0.")
    return mean, std
