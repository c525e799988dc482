from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import ByteLevel
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ncu_hf.data.augmentation import augment_caption
from ncu_hf.data.collator import PairCollator
from ncu_hf.data.order import AUGMENTATION, CROP, keyed_generator
from ncu_hf.data.records import Located, Record
from ncu_hf.data.transforms import ImageTransform
from ncu_hf.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BOS, EOS = 52, 53


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """One token a letter: ids 0-25 inside a word, 26-51 at its end."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def located(number: int, caption="a dog", image: bytes | None = b"", mismatched=None, epoch: int = 0) -> Located:
    image = png(number) if image == b"" else image
    return Located(Record(f"key{number}", image, caption, mismatched), "shard-0", epoch, (number,))


def test_batch_of_good_records(tokenizer, processor):
    transform = ImageTransform(processor, train=True)
    collator = PairCollator(tokenizer, transform, context_length=16)
    batch = collator([located(i, "ab" * (i + 1), epoch=2) for i in range(3)], seed=7)
    assert batch["pixel_values"].shape == (3, 3, 8, 8) and batch["pixel_values"].dtype == torch.uint8
    assert batch["input_ids"].shape == (3, 8) and batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"][0].tolist() == [BOS, 0, 27, EOS, EOS, EOS, EOS, EOS]
    assert (batch["keys"], batch["epoch"], batch["skipped"]) == (["key0", "key1", "key2"], 2, [])
    assert "mismatched" not in batch and "negative_input_ids" not in batch
    with Image.open(BytesIO(png(1))) as image:
        assert torch.equal(batch["pixel_values"][1], transform(image, keyed_generator(7, CROP, 2, 1)))


def test_bad_records_are_left_out_and_named(tokenizer, processor):
    collator = PairCollator(tokenizer, ImageTransform(processor, train=False), context_length=16)
    records = [
        located(0, mismatched=True),
        located(1, image=b"no image", mismatched=False),
        located(2, "  ", mismatched=False),
        located(3, mismatched=False),
        located(4, image=None, mismatched=True),
    ]
    batch = collator(records, seed=0)
    assert batch["keys"] == ["key0", "key3"] and len(batch["pixel_values"]) == len(batch["input_ids"]) == 2
    assert batch["mismatched"].tolist() == [True, False]
    assert batch["skipped"] == [
        ("key1", "shard-0", "undecodable"),
        ("key2", "shard-0", "empty_caption"),
        ("key4", "shard-0", "missing_image"),
    ]


def test_a_batch_of_bad_records_alone_is_empty_but_well_formed(tokenizer, processor):
    collator = PairCollator(
        tokenizer, ImageTransform(processor, train=False), context_length=16, augment_negative_captions=True
    )
    batch = collator([located(0, None, mismatched=False)], seed=0)
    assert batch["pixel_values"].shape == (0, 3, 8, 8)
    assert batch["input_ids"].shape == batch["negative_input_ids"].shape == (0, 2)
    assert batch["mismatched"].shape == (0,) and len(batch["skipped"]) == 1


def test_mismatched_needs_to_be_known_for_all(tokenizer, processor):
    collator = PairCollator(tokenizer, ImageTransform(processor, train=False), context_length=16)
    assert "mismatched" not in collator([located(0, mismatched=True), located(1)], seed=0)


def test_long_captions_keep_their_end_token(tokenizer, processor):
    collator = PairCollator(tokenizer, ImageTransform(processor, train=False), context_length=6)
    assert collator.tokenize(["abcdefghij", "a"]).tolist() == [[BOS, 0, 1, 2, 3, EOS], [BOS, 26, EOS, EOS, EOS, EOS]]


def test_end_tokens_inside_a_caption_are_removed(tokenizer, processor):
    collator = PairCollator(tokenizer, ImageTransform(processor, train=False), context_length=16)
    plain = collator.tokenize(["ab c"])
    assert torch.equal(collator.tokenize(["ab <|endoftext|> c"]), plain)
    assert torch.equal(collator.tokenize(["ab <|startoftext|> c"]), plain)
    assert torch.equal(collator.tokenize(["ab é7 c"]), plain)  # unknown here, hence the end token


def test_negative_captions_are_augmented_by_seed_epoch_and_position(tokenizer, processor):
    collator = PairCollator(
        tokenizer, ImageTransform(processor, train=False), context_length=16, augment_negative_captions=True
    )
    caption = "a b c d e f"
    batch = collator([located(i, caption, epoch=1) for i in range(4)], seed=3)
    wanted = [augment_caption(caption, keyed_generator(3, AUGMENTATION, 1, i)) for i in range(4)]
    assert torch.equal(batch["negative_input_ids"], collator.tokenize(wanted))
    assert torch.equal(batch["input_ids"], collator.tokenize([caption] * 4))
    other = collator([located(i, caption, epoch=2) for i in range(4)], seed=3)
    assert other["negative_input_ids"].tolist() != batch["negative_input_ids"].tolist()


def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer, processor):
    transform = ImageTransform(processor, train=False)
    with pytest.raises(InputError, match="model_max_length is 16, the text tower's context 77"):
        PairCollator(tokenizer, transform, context_length=77)
    with pytest.raises(InputError, match="Context length 2"):
        PairCollator(tokenizer, transform, context_length=2)
    bare = CLIPTokenizer(vocab=tokenizer.get_vocab(), merges=[], model_max_length=16)
    bare.backend_tokenizer.post_processor = ByteLevel()  # adds no token
    with pytest.raises(InputError, match="start token"):
        PairCollator(bare, transform, context_length=16)
