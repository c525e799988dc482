from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ncu_hf.data.records import BadRecord
from ncu_hf.data.transforms import RATIO, ImageTransform, normalize, random_crop_box
from ncu_hf.errors import InputError

SIZES = [(64, 64), (97, 65), (65, 97), (300, 40), (1, 1), (3, 200), (20, 20), (31, 33)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def processor(**options) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(**{"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **options})


def check_equals_processor(wanted_by: CLIPImageProcessorPil, image: Image.Image) -> None:
    transform = ImageTransform(wanted_by, train=False)
    pixels = transform(image)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, *transform.output_size)
    ours = normalize(pixels[None], transform.mean, transform.std, transform.rescale)
    theirs = torch.as_tensor(wanted_by(image, return_tensors="pt")["pixel_values"]).to(torch.float32)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
def test_eval_equals_the_processor(size):
    check_equals_processor(processor(), noise(*size))


@pytest.mark.parametrize(
    "options",
    [
        {"crop_size": {"height": 40, "width": 24}},  # pads one axis, crops the other
        {"size": {"height": 24, "width": 48}, "do_center_crop": False},
        {"size": {"height": 48, "width": 24}},
        {"do_resize": False},
        {"resample": 2},
        {"resample": 0},
        {"do_normalize": False},
        {"do_rescale": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 127.5},
    ],
)
@pytest.mark.parametrize("size", [(97, 65), (31, 33)])
def test_eval_equals_unusual_processors(options, size):
    check_equals_processor(processor(**options), noise(*size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_center_crop": False}, "neither a centre crop"),
        ({"do_center_crop": False, "do_resize": False}, "neither a centre crop"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "size = "),
        ({"do_pad": True}, "do_pad"),
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std"),
    ],
)
def test_processors_without_one_fixed_size_are_refused(options, message):
    for train in (False, True):
        with pytest.raises(InputError, match=message):
            ImageTransform(processor(**options), train=train)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_crop_scale_is_checked(scale):
    with pytest.raises(InputError, match="crop_scale"):
        ImageTransform(processor(), train=True, crop_scale=scale)


def test_extreme_aspect_ratio_does_not_fill_the_memory():
    transform = ImageTransform(CLIPImageProcessorPil(), train=False)
    with pytest.raises(BadRecord, match="too_large"):
        transform(Image.new("RGB", (4000, 1)))
    assert ImageTransform(CLIPImageProcessorPil(), train=True)(
        Image.new("RGB", (4000, 1)), np.random.default_rng(0)
    ).shape == (3, 224, 224)


@pytest.mark.parametrize("size", [*SIZES, (500, 375)])
def test_random_crop_box_lies_inside_and_keeps_area_and_ratio(size):
    width, height = size
    fits = min(size) / max(size) > 0.75  # every draw with area 0.5 .. and ratio 3/4 .. 4/3 may fit
    for seed in range(50):
        left, top, right, bottom = random_crop_box(width, height, (0.5, 0.6), np.random.default_rng(seed))
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        if fits and min(size) > 50:
            w, h = right - left, bottom - top
            assert 0.48 < w * h / (width * height) < 0.62
            assert RATIO[0] * 0.97 < w / h < RATIO[1] * 1.03


def test_random_crop_moves_over_the_whole_image():
    boxes = [random_crop_box(100, 100, (0.5, 0.5), np.random.default_rng(seed)) for seed in range(300)]
    assert min(box[0] for box in boxes) < 3 and max(box[2] for box in boxes) > 97
    assert min(box[1] for box in boxes) < 3 and max(box[3] for box in boxes) > 97


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (200, 37), (20, 20), (1, 1), (3, 500)])
@pytest.mark.parametrize("filter", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_train_is_the_crop_and_resize_of_the_same_box(size, filter):
    """torch's resize against Pillow's: rounding apart the same filter, hence also the same place and no shift."""
    image = noise(*size)
    transform = ImageTransform(processor(resample=filter), train=True)
    pixels = transform(image, np.random.default_rng(3))
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
    part = image.crop(random_crop_box(*size, (0.5, 1.0), np.random.default_rng(3)))
    wanted = np.asarray(part.resize((32, 32), filter)).transpose(2, 0, 1).astype(int)
    assert np.abs(pixels.numpy() - wanted).max() <= 3
    assert np.abs(pixels.numpy() - wanted).mean() < 0.3


@pytest.mark.parametrize(("options", "size"), [({"resample": 1}, (80, 60)), ({}, (3_000, 2_900))])
def test_other_filters_and_large_crops_are_left_to_pillow(options, size):
    image = noise(*size)
    transform = ImageTransform(processor(**options), train=True, crop_scale=(0.9, 1.0))
    pixels = transform(image, np.random.default_rng(3))
    box = random_crop_box(*size, (0.9, 1.0), np.random.default_rng(3))
    wanted = image.resize((32, 32), transform.resample, box=box)
    assert np.array_equal(pixels.numpy(), np.asarray(wanted).transpose(2, 0, 1))


def test_train_is_deterministic_in_its_generator():
    image, transform = noise(80, 60), ImageTransform(processor(), train=True)
    first = transform(image, np.random.default_rng(1))
    assert torch.equal(first, transform(image, np.random.default_rng(1)))
    assert not torch.equal(first, transform(image, np.random.default_rng(2)))
    with pytest.raises(ValueError, match="generator"):
        transform(image)


def test_min_side_belongs_to_training_alone():
    assert ImageTransform(CLIPImageProcessorPil(), train=False).min_side is None
    assert ImageTransform(CLIPImageProcessorPil(), train=True).min_side == 317  # 224 / sqrt(0.5), rounded up
