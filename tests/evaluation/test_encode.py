import copy
from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from ncu_hf.errors import InputError
from ncu_hf.evaluation.encode import ClipEncoder, evaluating, projected
from ncu_hf.reference import build_reference

TEXTS = ["red dot", "a small blue square on a green field", "x", "two circles and a star", "red dot"]


@pytest.fixture(scope="module")
def tiny():
    return build_reference(TEXTS, config="tiny", seed=0)


def pictures(count):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 40, 36, 3), generator=generator, dtype=torch.uint8).numpy()
    return [Image.fromarray(array) for array in pixels]


def encode_one_text(model, processor, text):
    """Oracle: one text at a time, padded to the full context with the end token."""
    context = model.config.text_config.max_position_embeddings
    ids = processor.tokenizer(text)["input_ids"]
    end = ids[-1]
    if len(ids) > context:
        ids = [*ids[: context - 1], end]
    ids = torch.tensor([ids + [end] * (context - len(ids))])
    with torch.no_grad():
        features = model.get_text_features(input_ids=ids)
    features = features.pooler_output[0]
    return features / features.norm()


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_texts_equal_one_by_one_in_their_order(tiny, batch_size):
    embeds = ClipEncoder(*tiny, batch_size=batch_size).encode_texts(TEXTS)
    expected = torch.stack([encode_one_text(*tiny, text) for text in TEXTS])
    torch.testing.assert_close(embeds, expected, rtol=0, atol=2e-6)
    assert embeds.dtype == torch.float32
    assert (embeds[0] - embeds[1]).norm() > 1e-3


def test_a_padding_token_above_the_end_token_changes_nothing(tiny):
    """Old configurations say `eos_token_id` 2 and pool at the highest id."""
    model, processor = copy.deepcopy(tiny[0]), copy.deepcopy(tiny[1])
    model.config.text_config.eos_token_id = model.text_model.eos_token_id = 2
    expected = ClipEncoder(model, processor).encode_texts(TEXTS)
    processor.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    words = model.text_model.embeddings.token_embedding
    more = words.weight.new_zeros(len(processor.tokenizer) - len(words.weight), words.weight.shape[1])
    words.weight = torch.nn.Parameter(torch.cat([words.weight, more]))
    assert processor.tokenizer.pad_token_id > processor.tokenizer.eos_token_id
    found = ClipEncoder(model, processor).encode_texts(TEXTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_long_text_keeps_its_end_token(tiny):
    context = tiny[0].config.text_config.max_position_embeddings
    long = "blue star " * 100
    assert len(tiny[1].tokenizer(long)["input_ids"]) > context
    embeds = ClipEncoder(*tiny).encode_texts([long, "x"])
    torch.testing.assert_close(embeds[0], encode_one_text(*tiny, long), rtol=0, atol=2e-6)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_images_equal_one_by_one(tiny, batch_size):
    model, processor = tiny
    images = pictures(5)
    encoded = ClipEncoder(model, processor, batch_size=batch_size).encode_images(images)
    with torch.no_grad():
        pixels = [processor.image_processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        expected = torch.cat([model.get_image_features(pixel_values=one).pooler_output for one in pixels])
        pooled = torch.cat([model.vision_model(pixel_values=one).pooler_output for one in pixels])
    torch.testing.assert_close(encoded.embeds, torch.nn.functional.normalize(expected, dim=-1), rtol=0, atol=2e-6)
    torch.testing.assert_close(encoded.embeds.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(encoded.pooled, pooled, rtol=1e-5, atol=2e-6)
    assert encoded.faults == {} and encoded.usable.tolist() == list(range(5))


class Stored(Sequence):
    """Images that count how often they are read."""

    def __init__(self, images):
        self.images, self.reads = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        self.reads.append(row)
        return self.images[row]


def test_images_are_read_once_and_a_batch_at_a_time(tiny, monkeypatch):
    model, processor = tiny
    stored, seen = Stored(pictures(5)), []
    original = model.vision_model.forward

    def recorded(*args, **inputs):
        seen.append(len(stored.reads))
        return original(*args, **inputs)

    monkeypatch.setattr(model.vision_model, "forward", recorded)
    assert ClipEncoder(model, processor, batch_size=2).encode_images(stored).embeds.shape == (5, 32)
    assert stored.reads == [0, 1, 2, 3, 4]
    assert seen == [2, 4, 5]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_an_image_that_cannot_be_decoded_is_told_and_leaves_the_others_alone(tiny, png, batch_size, workers):
    images = [png(0), b"broken", png(1), "no/such/file.png", png(2), png(3)[:60], png(4)]
    encoder = ClipEncoder(*tiny, batch_size=batch_size, workers=workers)
    encoded = encoder.encode_images(images)
    assert encoded.faults == {1: "undecodable", 3: "missing_file", 5: "truncated"}
    assert encoded.usable.tolist() == [0, 2, 4, 6]
    assert encoded.embeds[[1, 3, 5]].abs().max() == encoded.pooled[[1, 3, 5]].abs().max() == 0
    alone = encoder.encode_images([png(seed) for seed in (0, 1, 2, 4)])
    torch.testing.assert_close(encoded.embeds[encoded.usable], alone.embeds, rtol=0, atol=2e-6)


def test_nothing_gives_empty_embeddings(tiny):
    encoder = ClipEncoder(*tiny)
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).embeds.shape == (0, 32)
    assert encoder.encode_images([]).usable.shape == (0,)


def test_training_modes_are_restored_and_no_gradient_is_kept(tiny):
    model, processor = tiny
    model.train()
    model.vision_model.eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    embeds = ClipEncoder(model, processor).encode_texts(TEXTS)
    assert [module.training for module in model.modules()] == before
    assert not embeds.requires_grad
    model.eval()


def test_training_modes_are_restored_after_an_error(tiny):
    model, processor = tiny
    model.train()

    class Broken(Stored):
        def __getitem__(self, row):
            raise ValueError("broken source")

    with pytest.raises(ValueError, match="broken source"):
        ClipEncoder(model, processor).encode_images(Broken(pictures(1)))
    assert model.training and model.text_model.training
    model.eval()


def test_published_numbers_are_computed_in_full_precision(tiny):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        with evaluating(tiny[0]):
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before[1]
    finally:
        torch.set_float32_matmul_precision(before[0])


def test_both_kinds_of_output_are_read(tiny, monkeypatch):
    model, processor = tiny
    expected = ClipEncoder(model, processor).encode_texts(TEXTS)
    original = model.get_text_features
    monkeypatch.setattr(model, "get_text_features", lambda **inputs: projected(original(**inputs)))
    torch.testing.assert_close(ClipEncoder(model, processor).encode_texts(TEXTS), expected, rtol=0, atol=0)


def test_half_precision_model_gives_float32_units(tiny):
    model, processor = build_reference(TEXTS, config="tiny", seed=0)
    exact = ClipEncoder(model, processor).encode_texts(TEXTS)
    encoder = ClipEncoder(model.to(torch.bfloat16), processor)
    embeds = encoder.encode_texts(TEXTS)
    assert embeds.dtype == encoder.encode_images(pictures(2)).embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(5), rtol=0, atol=1e-6)
    assert (embeds - exact).abs().max() < 0.05


def test_scale_is_the_exponential(tiny):
    assert ClipEncoder(*tiny).scale == pytest.approx(tiny[0].logit_scale.exp().item())


def test_images_of_another_size_than_the_model_reads_are_refused(tiny):
    model, processor = tiny
    other = copy.deepcopy(processor)
    other.image_processor.crop_size = {"height": 24, "width": 24}
    with pytest.raises(InputError, match=r"reads images of (\d+) x \1 pixels, its image processor makes them 24 x 24"):
        ClipEncoder(model, other)
    other.image_processor.do_center_crop = False  # what is not square stays so
    with pytest.raises(InputError, match="image processor makes them"):
        ClipEncoder(model, other)


def test_batch_size_below_one_is_refused(tiny):
    with pytest.raises(ValueError, match="batch_size"):
        ClipEncoder(*tiny, batch_size=0)
