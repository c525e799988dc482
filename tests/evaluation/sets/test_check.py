"""Whether anything can be measured is found out early, and by reading as little as it takes."""

from __future__ import annotations

import pytest
import torch

from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.base import CaptionedSet, LabelledSet, Origin
from ncu_hf.evaluation.sets.check import check_usable

ORIGIN = Origin(name="mine", fingerprint="f", stamp="s")


class Counted(list):
    reads = 0

    def __getitem__(self, row):
        self.reads += 1
        return super().__getitem__(row)


def labelled(images):
    labels = torch.zeros(len(images), dtype=torch.long)
    return LabelledSet(origin=ORIGIN, images=images, labels=labels, classes=["a"], templates=["{c}"])


def captioned(images, groups):
    return CaptionedSet(
        origin=ORIGIN,
        keys=[str(row) for row in range(len(images))],
        images=images,
        captions=["caption"] * len(images),
        image_groups=torch.tensor(groups),
        caption_groups=torch.tensor(groups),
    )


def test_good_sets_cost_an_image_or_two(png):
    images = Counted(png(row) for row in range(5))
    check_usable(labelled(images))
    assert images.reads == 1
    check_usable(captioned(images, [0, 0, 0, 3, 4]))
    assert images.reads == 1 + 2


def test_broken_images_are_passed_over(png):
    check_usable(labelled([b"broken", b"", png(0)]))
    check_usable(captioned([b"broken", png(0), b"broken", png(1)], [0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("images", "groups", "message"),
    [
        (["no/such.png", b"x"], None, r"mine: an image .* 0 of 2 .*'missing_file': 1, 'undecodable': 1"),
        (["PNG", b"x"], [0, 1], r"mine: two images of different captions .* 1 of 2 .*undecodable"),
        (["PNG", "PNG"], [4, 4], r"belong to the same captions"),
    ],
)
def test_what_cannot_be_measured_is_told(images, groups, message, png):
    images = [png(0) if image == "PNG" else image for image in images]
    with pytest.raises(InputError, match=message):
        check_usable(labelled(images) if groups is None else captioned(images, groups))
