"""`scripts/evaluate.py` and what is behind it: any number of models on any number of sets."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from ncu_hf.comparing import ComparisonSettings, compare, model_sources
from ncu_hf.errors import InputError

SCRIPT = "scripts/evaluate.py"
CLASSES = ["red square", "blue circle", "green star"]


@pytest.fixture(scope="module")
def other_folder(clip_folder, tmp_path_factory):
    """The same CLIP with other weights."""
    folder = tmp_path_factory.mktemp("other")
    clip = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    clip.save_pretrained(folder)
    CLIPProcessor.from_pretrained(clip_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """`labels.csv` and `classes.json` of 21 noisy images, one of them broken, and a training split of 30."""
    folder = tmp_path_factory.mktemp("shapes")
    generator, lines = np.random.default_rng(0), ["image,label,split"]
    for row in range(51):
        name, label = f"{row}.png", row % 3
        pixels = generator.integers(0, 120, (24, 24, 3), dtype=np.uint8)
        pixels[..., label] += 100
        Image.fromarray(pixels).save(folder / name)
        lines.append(f"{name},{label},{'test' if row < 21 else 'train'}")
    (folder / "4.png").write_bytes(b"broken")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES, "templates": ["a {c}", "the {c}."]}))
    return folder


@pytest.fixture
def flags(clip_folder, other_folder, labelled, scenes, tmp_path):
    def build(*more):
        columns = ["--image_column", "image", "--caption_column", "caption"]
        suite = [labelled, scenes, "--probe", "--batch_size", 8, "--use_cpu"]
        return ["--models", clip_folder, other_folder, "--suite", *suite, *columns, *more]

    return build


def features_of(clip, processor, images):
    with torch.no_grad():
        pixels = [processor.image_processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        outputs = [clip.get_image_features(pixel_values=one).pooler_output[0] for one in pixels]
    return torch.nn.functional.normalize(torch.stack(outputs), dim=-1)


def text_of(clip, processor, text):
    inputs = processor.tokenizer([text], return_tensors="pt")
    with torch.no_grad():
        return torch.nn.functional.normalize(clip.get_text_features(**inputs).pooler_output[0], dim=-1)


def test_numbers_equal_a_hand_written_evaluation(clip_folder, labelled):
    found = compare(ComparisonSettings([str(clip_folder)], [str(labelled)], use_cpu=True)).numbers
    numbers = found["results"][clip_folder.name]["zero_shot"][labelled.name]
    clip, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    rows = [row for row in range(21) if row != 4]
    images = features_of(clip, processor, [Image.open(labelled / f"{row}.png").convert("RGB") for row in rows])
    weights = []
    for name in CLASSES:
        mean = torch.stack([text_of(clip, processor, template) for template in (f"a {name}", f"the {name}.")]).mean(0)
        weights.append(mean / mean.norm())
    right = (images @ torch.stack(weights).T).argmax(dim=1) == torch.tensor([row % 3 for row in rows])
    assert numbers["n"] == 20 and numbers["skipped"] == {"undecodable": 1}
    assert numbers["accuracy"] == pytest.approx(right.double().mean().item())
    low, high = numbers["interval"]["accuracy"]
    assert low < numbers["accuracy"] < high or numbers["accuracy"] in (0, 1)


def test_any_number_of_processes_gives_the_same_file(flags, tmp_path, launch):
    found = []
    for processes in (1, 2, 3):
        done = launch(processes, SCRIPT, *flags("--no_cache", "--json", tmp_path / f"{processes}.json"))
        found.append(json.loads((tmp_path / f"{processes}.json").read_text()))
        assert found[-1].pop("environment")["processes"] == processes
        found[-1].pop("command")
        assert done.stdout.count("-- Linear probe") == 1
    assert found[0] == found[1] == found[2]
    groups = {(entry["group"], entry["metric"]) for entry in found[0]["paired"]}
    assert {("zero_shot", "accuracy"), ("linear_probe", "accuracy"), ("retrieval", "mean_recall")} <= groups
    assert set(found[0]["results"][found[0]["models"][1]["name"]]) == {
        *("zero_shot", "retrieval", "linear_probe", "similarity")
    }


def test_processes_share_the_cache_and_all_files_are_written(flags, tmp_path, launch, monkeypatch):
    monkeypatch.setenv("NCU_HF_CACHE", str(tmp_path / "cache"))
    files = {name: tmp_path / f"x.{name}" for name in ("json", "csv", "markdown", "plot", "similarity_plot")}
    outputs = [word for name, path in files.items() for word in (f"--{name}", path)]
    first = launch(2, SCRIPT, *flags("--json", tmp_path / "first.json"))
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(entries) == 2 * 5  # a model: images of three sets, class names, captions
    again = launch(1, SCRIPT, *flags(*outputs))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == entries
    one, other = (json.loads(path.read_text()) for path in (tmp_path / "first.json", files["json"]))
    assert one["results"] == other["results"] and one["paired"] == other["paired"]
    assert first.stdout.split("Written")[0] == again.stdout.split("Written")[0]
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert {row["kind"] for row in rows} == {"measured", "difference"}
    assert files["markdown"].read_text().count("| --- |") >= 3
    assert all(files[name].read_bytes()[:4] == b"\x89PNG" for name in ("plot", "similarity_plot"))


def test_nothing_is_replaced_unasked(flags, tmp_path, launch):
    (tmp_path / "x.json").write_text("mine")
    done = launch(1, SCRIPT, *flags("--json", tmp_path / "x.json"), check=False)
    assert done.returncode == 2 and "exists; choose another name or add --overwrite" in done.stderr
    assert (tmp_path / "x.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "at least one model"),
        ({"models": ["CLIP", "CLIP"]}, "named twice"),
        ({"models": ["no/such-model"]}, "--models no/such-model: no model there"),
        ({"suite": ["cifar1O"]}, "cifar10"),
        ({"against": "paper/cc3n"}, "cc3m"),
        ({"probe_features": "raw"}, "unprojected"),
        ({"batch_size": 0}, "--batch_size"),
        ({"workers": -1}, "--workers"),
        ({"suite": ["PAIRS"], "probe": True}, "none of the sets has labels"),
        ({"suite": ["LABELS"], "similarities": True}, "none of the sets has captions"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_encoded(changes, message, clip_folder, labelled, scenes):
    options = {"models": [str(clip_folder)], "suite": [str(labelled)], "image_column": "image", **changes}
    names = {"CLIP": str(clip_folder), "LABELS": str(labelled), "PAIRS": str(scenes)}
    options |= {key: [names.get(word, word) for word in options[key]] for key in ("models", "suite")}
    with pytest.raises(InputError, match=message):
        compare(ComparisonSettings(**options, caption_column="caption", use_cpu=True))


def test_models_get_short_and_different_names(tmp_path):
    for name in ("a/final", "b/final", "c/best"):
        (tmp_path / name).mkdir(parents=True)
    specs = [str(tmp_path / name) for name in ("a/final", "b/final", "c/best")]
    found = model_sources([*specs, "me/clip@v2"])
    assert [model.name for model in found] == ["a/final", "b/final", "best", "me/clip@v2"]
    assert found[3].source == "me/clip" and found[3].revision == "v2"
    assert Path(found[0].source) == tmp_path / "a" / "final"
