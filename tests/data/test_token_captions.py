"""Captions stored as token ids, as in YFCC15M-R: columns `images` (bytes) and `texts` (ids, padded with 0)."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import CLIPProcessor

from ncu_hf.data import open_pairs
from ncu_hf.data.shards.base import Entry
from ncu_hf.errors import InputError


@pytest.fixture
def stored(tmp_path, clip_folder):
    tokenizer = CLIPProcessor.from_pretrained(clip_folder).tokenizer
    captions = ["a large red circle", "two stars, far away", "snow"]
    ids = [tokenizer(text)["input_ids"] for text in captions]
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    rows = {"images": [buffer.getvalue()] * 3, "texts": [row + [0] * (20 - len(row)) for row in ids]}
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table(rows), path)
    return path, captions


@pytest.mark.parametrize("streaming", [False, True])
def test_ids_become_the_text_that_was_stored(stored, clip_folder, streaming):
    path, captions = stored
    columns = {"image_column": "images", "caption_column": "texts", "streaming": streaming}
    source = open_pairs(str(path), caption_tokenizer=str(clip_folder), **columns)
    rows = source.shards[0].read(Entry(), 0, []) if streaming else []
    records = [row.record for row in rows] if streaming else [source[i] for i in range(3)]
    # CLIP's tokenizer separates punctuation
    assert [record.caption.replace(" ,", ",") for record in records] == captions
    if not streaming:
        assert [caption.replace(" ,", ",") for caption in source.captions()] == captions


def test_ids_without_a_tokenizer_are_no_caption(stored):
    source = open_pairs(str(stored[0]), image_column="images", caption_column="texts")
    assert not isinstance(source[0].caption, str)


def test_what_is_no_list_of_known_ids_stays_as_it_is(clip_folder):
    from ncu_hf.data.token_captions import caption_decoder

    decode = caption_decoder(str(clip_folder))
    for caption in ("text", None, [10**9], [-1], ["a"], 3):
        assert decode(caption) == caption


def test_wrong_use(stored, clip_folder, tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        open_pairs(
            str(stored[0]), image_column="images", caption_column="texts", caption_tokenizer=str(tmp_path / "absent")
        )
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_text("a picture")
    with pytest.raises(InputError, match="holds captions as text"):
        open_pairs(str(folder), caption_tokenizer=str(clip_folder))
