"""What is measured with one model on one set, with an encoder whose every number can be computed by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ncu_hf.errors import InputError
from ncu_hf.evaluation import CaptionedSet, LabelledSet, Origin, measure
from ncu_hf.evaluation.encode import EncodedImages
from ncu_hf.evaluation.suites import measure_linear_probe

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
ORIGIN = Origin(name="colours", fingerprint="f", stamp="s", hub_id="me/colours", revision="abc", split="test")
BROKEN = b"broken"


class ColourEncoder:
    """Embeds an image as the colour of its first pixel and a text as the colour that it names: one-hot vectors."""

    model = SimpleNamespace(device=torch.device("cpu"))

    def encode_images(self, images, stamp=None):
        faults = {row: "undecodable" for row, image in enumerate(images) if image == BROKEN}
        rows = [(0, 0, 0) if row in faults else image.getpixel((0, 0)) for row, image in enumerate(images)]
        embeds = torch.tensor(rows).reshape(-1, 3) / 255
        return EncodedImages(embeds, torch.cat([embeds, embeds], dim=1), faults)

    def encode_texts(self, texts):
        rows = [next(colour for name, colour in COLOURS.items() if name in text) for text in texts]
        return torch.tensor(rows).float() / 255


def pictures(*names):
    return [BROKEN if name is None else Image.new("RGB", (2, 2), COLOURS[name]) for name in names]


def labelled(names, labels, **fields):
    fields = {"classes": list(COLOURS), "templates": ["a {c} thing", "{c}"], **fields}
    return LabelledSet(origin=ORIGIN, images=pictures(*names), labels=torch.tensor(labels), **fields)


def captioned(names, captions, image_groups, caption_groups):
    groups = {"image_groups": torch.tensor(image_groups), "caption_groups": torch.tensor(caption_groups)}
    return CaptionedSet(origin=ORIGIN, keys=list(map(str, names)), images=pictures(*names), captions=captions, **groups)


def test_one_hot_embeddings_are_perfect():
    found = measure(ColourEncoder(), labelled(COLOURS, [0, 1, 2], primary="mean_per_class"))
    assert (found.group, found.name) == ("zero_shot", "colours")
    assert found.numbers["accuracy"] == found.numbers["mean_per_class"] == 1.0
    assert found.numbers["primary"] == "mean_per_class"
    assert found.numbers["data"] == {
        **{"hub_id": "me/colours", "revision": "abc", "split": "test"},
        "fingerprint": "f",
    }
    assert len(found.numbers["hash"]) == 16
    assert json.loads(json.dumps(found.numbers, allow_nan=False)) == found.numbers
    assert found.distributions is None


def test_paper_metrics_name_plain_accuracy():
    found = measure(ColourEncoder(), labelled(COLOURS, [0, 1, 2], primary="mean_per_class"), paper_metrics=True)
    assert found.numbers["primary"] == "accuracy"


def test_classes_are_told_on_request():
    names = ["red", "red", "green", "green"]
    numbers = measure(ColourEncoder(), labelled(names, [0, 1, 1, 2]), per_class=True).numbers
    assert numbers["per_class"] == [
        {"class": "red", "n": 1, "accuracy": 1.0},
        {"class": "green", "n": 2, "accuracy": 0.5},
        {"class": "blue", "n": 1, "accuracy": 0.0},
    ]
    assert {(pair["true"], pair["predicted"], pair["n"]) for pair in numbers["confusions"]} == {
        ("green", "red", 1),
        ("blue", "green", 1),
    }
    assert "per_class" not in measure(ColourEncoder(), labelled(names, [0, 1, 1, 2])).numbers


def test_images_that_cannot_be_decoded_are_left_out_and_counted():
    found = measure(ColourEncoder(), labelled(["red", None, "blue", None], [0, 1, 2, 0], skipped={"missing_label": 2}))
    assert found.numbers["n"] == 2 and found.numbers["accuracy"] == 1.0
    assert found.numbers["skipped"] == {"missing_label": 2, "undecodable": 2}
    with pytest.raises(InputError, match=r"colours: none of its 2 images .*undecodable"):
        measure(ColourEncoder(), labelled([None, None], [0, 1]))


def test_vectors_that_are_not_finite_are_told(caplog):
    class Broken(ColourEncoder):
        def encode_images(self, images, stamp=None):
            encoded = super().encode_images(images)
            encoded.embeds[0, 1] = torch.nan
            return encoded

    assert measure(Broken(), labelled(COLOURS, [0, 1, 2])).numbers["accuracy"] == pytest.approx(2 / 3)
    assert "colours: the vectors of 1 of 3 images are not finite" in caplog.text
    caplog.clear()
    measure(ColourEncoder(), labelled(COLOURS, [0, 1, 2]))
    assert not caplog.records


def test_retrieval_and_similarities():
    found = measure(
        ColourEncoder(), captioned(COLOURS, ["a red dot", "red", "green", "a blue one"], [0, 1, 2], [0, 0, 1, 2])
    )
    assert found.group == "retrieval"
    assert found.numbers["mean_recall"] == 1.0 and found.numbers["n_captions"] == 4
    assert found.similarity["positives"] == {"mean": 1.0, "std": 0.0}
    assert found.similarity["negatives_top"]["mean"] == 0.0
    assert {kind: len(values) for kind, values in found.distributions.items()} == {
        "positives": 3,
        "negatives_mean": 3,
        "negatives_top": 3,
    }


def test_wrong_captions_are_not_found():
    numbers = measure(ColourEncoder(), captioned(COLOURS, ["green", "blue", "red"], [0, 1, 2], [0, 1, 2])).numbers
    assert numbers["image_to_text"]["R@1"] == numbers["text_to_image"]["R@1"] == 0.0


def test_a_caption_goes_with_its_only_image():
    found = measure(
        ColourEncoder(), captioned(["red", None, "blue"], ["red", "green", "green", "blue"], [0, 1, 2], [0, 1, 1, 2])
    )
    assert (found.numbers["n_images"], found.numbers["n_captions"]) == (2, 2)
    assert found.numbers["mean_recall"] == 1.0
    assert found.numbers["skipped"] == {"undecodable": 1}


def test_a_probe_that_cannot_be_fitted_names_its_set():
    with pytest.raises(InputError, match=r"^colours: Linear probe: none of the classes has two training items"):
        measure_linear_probe(ColourEncoder(), labelled(COLOURS, [0, 1, 2], train=lambda: labelled(COLOURS, [0, 1, 2])))


def test_a_probe_learns_from_the_training_split():
    many = ["red", "green", "blue"] * 10
    opened = []

    def train():
        opened.append(True)
        return labelled([*many, None], [0, 1, 2] * 10 + [0])

    found = measure_linear_probe(ColourEncoder(), labelled([None, *COLOURS], [0, 0, 1, 2], train=train))
    assert found.group == "linear_probe" and opened == [True]
    assert found.numbers["accuracy"] == 1.0 and found.numbers["n"] == 3
    assert found.numbers["n_train"] + found.numbers["n_validation"] == 30
    assert found.numbers["features"] == "unprojected" and "note" not in found.numbers["data"]


def test_a_set_without_training_split_is_halved_and_says_so():
    many = ["red", "green", "blue"] * 8
    found = measure_linear_probe(ColourEncoder(), labelled(many, [0, 1, 2] * 8), features="projected")
    assert found.numbers["n"] == 12
    assert "no training split" in found.numbers["data"]["note"]
    assert found.numbers["features"] == "projected"
