"""Texts that the web puts beside images and that say nothing about them."""

from __future__ import annotations

import numpy as np

# `{number}` and `{date}` are drawn for each use.
GENERIC_CAPTIONS = (
    "image",
    "photo",
    "picture",
    "photograph",
    "untitled",
    "no description",
    "no caption available",
    "image not available",
    "placeholder",
    "thumbnail",
    "banner",
    "logo",
    "icon",
    "featured image",
    "product image",
    "product photo {number}",
    "main image",
    "preview",
    "gallery image {number}",
    "slide {number}",
    "figure {number}",
    "page {number}",
    "item no. {number}",
    "image {number} of the gallery",
    "click here to enlarge",
    "click to view full size",
    "click for more information",
    "view larger image",
    "open in a new window",
    "zoom in",
    "read more",
    "learn more",
    "buy now",
    "add to cart",
    "free shipping",
    "sign up for our newsletter",
    "share this on social media",
    "download",
    "free download",
    "stock photo",
    "stock photo {number}",
    "royalty free image",
    "all rights reserved",
    "photo credit: unknown",
    "photo taken on {date}",
    "uploaded on {date}",
    "posted on {date}",
    "screenshot {date}",
    "IMG {number}.jpg",
    "DSC {number}.jpg",
    "image{number}.png",
    "photo {number}.jpeg",
    "scan {number}",
    "file {number}",
)


def generic_caption(rng: np.random.Generator, other_than: str) -> str:
    """One of `GENERIC_CAPTIONS`, its number or date drawn.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        other_than (`str`): The text that it may not be.

    Returns:
        `str`: differs from `other_than`.
    """
    while True:
        number = f"{rng.integers(10_000):04d}"
        date = f"{rng.integers(2000, 2025)}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
        text = GENERIC_CAPTIONS[rng.integers(len(GENERIC_CAPTIONS))].format(number=number, date=date)
        if text != other_than:
            return text
