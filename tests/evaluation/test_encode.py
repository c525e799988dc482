import pytest
import torch
from PIL import Image

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
    embeds = ClipEncoder(model, processor, batch_size=batch_size).encode_images(images)
    with torch.no_grad():
        pixels = [processor.image_processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        expected = torch.cat([model.get_image_features(pixel_values=one).pooler_output for one in pixels])
    torch.testing.assert_close(embeds, torch.nn.functional.normalize(expected, dim=-1), rtol=0, atol=2e-6)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(5))


def test_a_generator_is_read_a_batch_at_a_time(tiny, monkeypatch):
    model, processor = tiny
    yielded, seen = [], []
    original = model.get_image_features

    def recorded(**inputs):
        seen.append(len(yielded))
        return original(**inputs)

    def images():
        for image in pictures(5):
            yielded.append(1)
            yield image

    monkeypatch.setattr(model, "get_image_features", recorded)
    assert ClipEncoder(model, processor, batch_size=2).encode_images(images()).shape == (5, 32)
    assert seen == [2, 4, 5]


def test_nothing_gives_empty_embeddings(tiny):
    encoder = ClipEncoder(*tiny)
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 32)


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

    def broken():
        yield from pictures(1)
        raise ValueError("broken source")

    with pytest.raises(ValueError, match="broken source"):
        ClipEncoder(model, processor).encode_images(broken())
    assert model.training and model.text_model.training
    model.eval()


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
    assert embeds.dtype == encoder.encode_images(pictures(2)).dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(5), rtol=0, atol=1e-6)
    assert (embeds - exact).abs().max() < 0.05


def test_scale_is_the_exponential(tiny):
    assert ClipEncoder(*tiny).scale == pytest.approx(tiny[0].logit_scale.exp().item())


def test_batch_size_below_one_is_refused(tiny):
    with pytest.raises(ValueError, match="batch_size"):
        ClipEncoder(*tiny, batch_size=0)
