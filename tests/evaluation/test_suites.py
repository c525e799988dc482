import json

import pytest
import torch
from PIL import Image

from ncu_hf.errors import InputError
from ncu_hf.evaluation import ZeroShotSet, evaluate_pairs

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourEncoder:
    """Embeds an image as the colour of its first pixel and a text as the colour that it names: one-hot vectors."""

    def encode_images(self, images):
        return torch.tensor([[value / 255 for value in image.getpixel((0, 0))] for image in images])

    def encode_texts(self, texts):
        rows = [next(colour for name, colour in COLOURS.items() if name in text) for text in texts]
        return torch.tensor(rows).float() / 255


def pictures():
    return (Image.new("RGB", (2, 2), colour) for colour in COLOURS.values())


def test_one_hot_embeddings_are_perfect():
    captions = ["a red dot", "red", "green", "a blue one"]
    task = ZeroShotSet(torch.tensor([0, 1, 2]), list(COLOURS), ["a {c} thing", "{c}"])
    result = evaluate_pairs(
        ColourEncoder(), pictures(), captions, caption_image=torch.tensor([0, 0, 1, 2]), zero_shot={"colour": task}
    )
    numbers = result.numbers
    assert numbers["retrieval"]["mean_recall"] == 1.0
    assert numbers["retrieval"]["n_captions"] == 4
    assert numbers["zero_shot"]["colour"]["accuracy"] == 1.0
    assert numbers["similarity"]["positives"] == {"mean": 1.0, "std": 0.0}
    assert numbers["similarity"]["negatives_top"]["mean"] == 0.0
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert {kind: len(values) for kind, values in result.distributions.items()} == {
        "positives": 3,
        "negatives_mean": 3,
        "negatives_top": 3,
    }


def test_wrong_captions_are_not():
    numbers = evaluate_pairs(ColourEncoder(), pictures(), ["green", "blue", "red"]).numbers
    assert numbers["retrieval"]["image_to_text"]["R@1"] == 0.0
    assert numbers["similarity"]["positives"]["mean"] == 0.0
    assert numbers["zero_shot"] == {}


def test_groups_make_other_pairs_right():
    captions = ["green", "red", "blue"]
    groups = {"image_groups": torch.tensor([7, 7, 9]), "caption_groups": torch.tensor([7, 7, 9])}
    assert evaluate_pairs(ColourEncoder(), pictures(), captions, **groups).numbers["retrieval"]["mean_recall"] == 1.0


def test_an_image_without_caption_is_refused():
    with pytest.raises(InputError, match="1 images have no caption"):
        evaluate_pairs(ColourEncoder(), pictures(), ["red", "green"], caption_image=torch.tensor([0, 1]))
