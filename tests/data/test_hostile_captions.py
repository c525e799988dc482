"""Captions of the web: each is either usable in a defined way or left out for a defined reason."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from transformers import CLIPProcessor

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.decoding import MAX_CAPTION_CHARACTERS, clean_caption
from ncu_hf.data.records import BadRecord, Located, Record
from ncu_hf.data.transforms import ImageTransform

CAPTIONS = {
    "control_characters": ("a\x00dog\x07 \x1b[31mruns\x7f", "a dog [31mruns"),
    "padded": (b"a dog\0\0\0\0\0\0\0\0\0", "a dog"),
    "byte_order_mark": ("\ufeffa dog".encode(), "a dog"),
    "right_to_left": ("\u202eכלב רץ", "\u202eכלב רץ"),
    "arabic_with_joiner": ("می\u200cخواهم", "می\u200cخواهم"),
    "emoji": ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
    "one_letter": ("犬", "犬"),
    "integer": (7, "7"),
    "fraction": (1.5, "1.5"),
    "zero": (0, "0"),
    "special_tokens": ("<|endoftext|> a <|startoftext|> dog", "<|endoftext|> a <|startoftext|> dog"),
    "markup": ("<b>a</b> {0} %s ${x}", "<b>a</b> {0} %s ${x}"),
    "10_000_characters": ("x" * 10_000, "x" * MAX_CAPTION_CHARACTERS),
    "a_megabyte": (b"word " * 200_000, ("word " * 400).strip()),
    "blanks_inside": ("a" + " " * 3_000 + "dog", "a dog"),
    "bytes_behind_the_limit": (b"a " * 5_000 + b"\xff" * 10, ("a " * 1_000).strip()),
}
NO_CAPTIONS = {
    "missing": (None, "missing_caption"),
    "nan": (math.nan, "missing_caption"),
    "numpy_nan": (np.float64("nan"), "missing_caption"),
    "empty": ("", "empty_caption"),
    "blanks": (" \t\r\n\u00a0\u2003\u3000", "empty_caption"),
    "a_megabyte_of_blanks": (" " * 2**20, "empty_caption"),
    "zero_bytes": (b"\0" * 100, "empty_caption"),
    "controls_alone": ("\x01\x02\x1b", "empty_caption"),
    "zero_width_alone": ("\u200b\u200d\u2060\ufeff", "empty_caption"),
    "directions_alone": ("\u202e\u200f", "empty_caption"),
    "accents_alone": ("\u0301\ufe0f", "empty_caption"),
    "latin_1": ("café".encode("latin-1"), "caption_not_utf8"),
    "utf_16": ("a dog".encode("utf-16"), "caption_not_utf8"),
    "utf_16_without_mark": ("a dog".encode("utf-16-le"), "caption_not_utf8"),
    "utf_32": ("a dog".encode("utf-32-be"), "caption_not_utf8"),
    "overlong": (b"\xc0\xaf", "caption_not_utf8"),
    "lone_surrogate": ("a \ud83d dog", "caption_not_utf8"),
    "true": (True, "caption_not_text"),
    "false": (False, "caption_not_text"),
    "list": (["a dog"], "caption_not_text"),
    "dict": ({"caption": "a dog"}, "caption_not_text"),
    "array": (np.array([1, 2]), "caption_not_text"),
    "infinite": (math.inf, "caption_not_text"),
    "endless_integer": (10**5_000, "caption_not_text"),
    "object": (object(), "caption_not_text"),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_usable(name):
    stored, wanted = CAPTIONS[name]
    assert clean_caption(stored) == wanted


@pytest.mark.parametrize("name", NO_CAPTIONS)
def test_left_out(name):
    stored, wanted = NO_CAPTIONS[name]
    started = time.perf_counter()
    with pytest.raises(BadRecord) as caught:
        clean_caption(stored)
    assert caught.value.reason == wanted
    assert time.perf_counter() - started < 0.5


def test_in_a_batch(clip_folder, png):
    processor = CLIPProcessor.from_pretrained(clip_folder)
    transform = ImageTransform(processor.image_processor, train=True)
    collate = PairCollator(processor.tokenizer, transform, context_length=20)
    image = png()
    bad = [Record(name, image, stored) for name, (stored, _) in NO_CAPTIONS.items()]
    good = [Record(name, image, stored) for name, (stored, _) in CAPTIONS.items()]
    batch = collate([Located(record, "s", 0, (i,)) for i, record in enumerate(bad + good)], seed=0)
    assert batch["keys"] == [record.key for record in good]
    assert [(s.key, s.reason) for s in batch["skipped"]] == [(name, why) for name, (_, why) in NO_CAPTIONS.items()]
    assert batch["input_ids"].shape[0] == len(good) and batch["input_ids"].shape[1] <= 20
    end = batch["input_ids"][:, -1]
    first = (batch["input_ids"] == end[:, None]).int().argmax(1)
    assert (first > 0).all() and (batch["input_ids"][:, 0] == batch["input_ids"][0, 0]).all()
    for row, place in zip(batch["input_ids"], first, strict=True):
        assert (row[place:] == end[0]).all()  # nothing but end tokens behind the first: special tokens were dropped
