"""`scripts/evaluate.py` and what is behind it: any number of models on any number of sets."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from ncu_hf.comparing import ComparisonSettings, compare, model_sources
from ncu_hf.errors import InputError
from ncu_hf.evaluation import ClipEncoder
from ncu_hf.reporting.results import publishable

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
    """`labels.csv` and `classes.json` of 21 noisy images, one of them broken, and a training split of 30.

    In batches of 8 the broken one is in the second, which the second process decodes.
    """
    folder = tmp_path_factory.mktemp("shapes")
    generator, lines = np.random.default_rng(0), ["image,label,split"]
    for row in range(51):
        name, label = f"{row}.png", row % 3
        pixels = generator.integers(0, 120, (24, 24, 3), dtype=np.uint8)
        pixels[..., label] += 100
        Image.fromarray(pixels).save(folder / name)
        lines.append(f"{name},{label},{'test' if row < 21 else 'train'}")
    (folder / "12.png").write_bytes(b"broken")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES, "templates": ["a {c}", "the {c}."]}))
    return folder


@pytest.fixture(scope="module")
def two_pairs(scenes, tmp_path_factory):
    """A set that is smaller than a batch, and than three processes."""
    path = tmp_path_factory.mktemp("two") / "two.parquet"
    pq.write_table(pq.read_table(scenes).slice(0, 2), path)
    return path


@pytest.fixture
def asked(clip_folder, other_folder, labelled, scenes, two_pairs):
    """Two models, three sets and a probe; eight images a batch."""
    return ComparisonSettings(
        models=[str(clip_folder), str(other_folder)],
        suite=[str(labelled), str(scenes), str(two_pairs)],
        probe=True,
        image_column="image",
        caption_column="caption",
        batch_size=8,
        use_cpu=True,
    )


@pytest.fixture
def flags(asked):
    """The same as flags of the script."""

    def build(*more):
        columns = ["--image_column", "image", "--caption_column", "caption"]
        options = ["--probe", "--batch_size", 8, "--use_cpu", *columns]
        return ["--models", *asked.models, "--suite", *asked.suite, *options, *more]

    return build


@pytest.fixture(scope="module")
def script():
    """`scripts/evaluate.py` as a module."""
    spec = importlib.util.spec_from_file_location("evaluate_script", Path(__file__).parent.parent / SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread():
    """As in the processes that tests start: a product over several threads may differ in its last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    rows = [row for row in range(21) if row != 12]
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


def plain(numbers):
    """What may not depend on how many processes measured it; numbers, or the file that holds them."""
    found = json.loads(numbers.read_text() if isinstance(numbers, Path) else json.dumps(publishable(numbers)))
    return {key: value for key, value in found.items() if key not in ("environment", "command")}


@pytest.mark.slow
def test_processes_give_the_same_numbers_and_share_the_cache(
    asked, flags, script, tmp_path, launch, monkeypatch, capsys, one_thread
):
    monkeypatch.setenv("NCU_HF_CACHE", str(tmp_path / "cache"))
    done = launch(2, SCRIPT, *flags("--json", tmp_path / "two.json"))
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(entries) == 2 * 7  # a model: images of four sets, class names, captions of two sets
    assert json.loads((tmp_path / "two.json").read_text())["environment"]["processes"] == 2
    alone = compare(replace(asked, use_cache=False))
    assert plain(tmp_path / "two.json") == plain(alone.numbers)
    assert plain(compare(asked).numbers) == plain(alone.numbers)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == entries
    capsys.readouterr()
    script.write(alone, {}, per_class=False)
    assert done.stdout.split("Written")[0].strip() == capsys.readouterr().out.strip()
    groups = {(entry["group"], entry["metric"]) for entry in alone.numbers["paired"]}
    assert {("zero_shot", "accuracy"), ("linear_probe", "accuracy"), ("retrieval", "mean_recall")} <= groups
    assert set(alone.numbers["results"][alone.numbers["models"][1]["name"]]) == {
        *("zero_shot", "retrieval", "linear_probe", "similarity")
    }


@pytest.mark.slow
def test_three_processes_and_their_workers_give_the_same_numbers(asked, flags, tmp_path, launch, one_thread):
    launch(3, SCRIPT, *flags("--no_cache", "--workers", 2, "--json", tmp_path / "three.json"))
    assert plain(tmp_path / "three.json") == plain(compare(replace(asked, use_cache=False)).numbers)


def test_all_files_are_written(asked, script, tmp_path, capsys):
    files = {name: tmp_path / f"x.{name}.png" for name in script.OUTPUTS}
    comparison = compare(replace(asked, per_class=True))
    script.write(comparison, files, per_class=True)
    assert plain(files["json"]) == plain(comparison.numbers)
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert {row["kind"] for row in rows} == {"measured", "difference"}
    assert files["markdown"].read_text().count("| --- |") >= 3
    assert all(files[name].read_bytes()[:4] == b"\x89PNG" for name in ("plot", "similarity_plot"))
    assert capsys.readouterr().out.count("Written: ") == 5


def test_a_file_that_cannot_be_written_costs_no_other(asked, script, tmp_path, capsys):
    comparison = compare(replace(asked, models=asked.models[:1], suite=asked.suite[:1], probe=False))
    with pytest.raises(InputError, match=r"--json: .*gone.* cannot be written"):
        script.write(comparison, {"json": tmp_path / "gone" / "x.json", "csv": tmp_path / "x.csv"}, per_class=False)
    assert (tmp_path / "x.csv").stat().st_size and "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"json": "mine.json"}, r"--json: .*mine\.json exists; choose another name or add --overwrite"),
        ({"json": "new.json", "csv": "./new.json"}, r"--csv: .*new\.json is the file of --json too"),
        ({"csv": "."}, "--csv: .* is a folder"),
        ({"plot": "x.pdf"}, r"--plot: .*\.png, got .*x\.pdf"),
        ({"markdown": "no/x.md"}, "make it first"),
    ],
)
def test_output_that_could_not_be_written_is_refused_before_the_work(paths, message, script, tmp_path):
    (tmp_path / "mine.json").write_text("mine")
    with pytest.raises(InputError, match=message):
        script.check_outputs({name: tmp_path / path for name, path in paths.items()}, overwrite=False)
    script.check_outputs({"json": tmp_path / "mine.json", "plot": tmp_path / "x.PNG"}, overwrite=True)
    assert (tmp_path / "mine.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--suite", "x"], "--models"), (["--models", "a", "--suite", "b", "--paper_metric"], "--paper_metric")],
)
def test_wrong_flags_are_told_in_a_line(words, message, script, monkeypatch):
    monkeypatch.setattr("sys.argv", ["evaluate.py", *words])
    with pytest.raises(InputError, match=message) as caught:
        script.parse()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "at least one model"),
        ({"models": ["CLIP", "CLIP"]}, "named twice"),
        ({"models": ["no/such-model"]}, "--models no/such-model: no model there"),
        ({"models": ["CLIP", "NO_WEIGHTS"]}, "its weights cannot be loaded"),
        ({"models": ["CLIP@v2"]}, "is a folder on this machine"),
        ({"suite": ["cifar1O"]}, "cifar10"),
        ({"against": "paper/cc3n"}, "cc3m"),
        ({"probe_features": "raw"}, "unprojected"),
        ({"batch_size": 0}, "--batch_size"),
        ({"workers": -1}, "--workers"),
        ({"suite": ["PAIRS"], "probe": True}, "none of the sets has labels"),
        ({"suite": ["LABELS"], "similarities": True}, "none of the sets has captions"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_encoded(
    changes, message, clip_folder, labelled, scenes, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(ClipEncoder, "encode_images", None)
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(clip_folder / name, tmp_path)
    options = {"models": [str(clip_folder)], "suite": [str(labelled)], "image_column": "image", **changes}
    names = {"CLIP": str(clip_folder), "LABELS": str(labelled), "PAIRS": str(scenes)}
    names |= {"CLIP@v2": f"{clip_folder}@v2", "NO_WEIGHTS": str(tmp_path)}
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


def test_published_numbers_that_stand_beside_nothing_are_told(asked, caplog):
    few = replace(asked, models=asked.models[:1], suite=asked.suite[:1], probe=False)
    found = compare(replace(few, against="paper/cc3m/vit-b-16"))
    assert "no number is published for the sets of --suite, only for caltech101, " in caplog.text
    assert found.numbers["published"]
    caplog.clear()
    compare(few)
    assert "published" not in caplog.text


def test_processes_wait_for_the_one_that_fetches_or_fits(asked, monkeypatch):
    seen = {}

    def recorded(**options):
        seen.update(options)
        raise InterruptedError

    monkeypatch.setattr("ncu_hf.comparing.PartialState", recorded)
    with pytest.raises(InterruptedError):
        compare(asked)
    assert seen["cpu"] is True and seen["timeout"] >= timedelta(hours=12)  # by default minutes
