"""What study_data.py writes is what a run trains on and measures, with no further code."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ncu_hf.data import open_pairs
from ncu_hf.data.scenes import ATTRIBUTES, draw_scene
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.captioned import captioned_set
from ncu_hf.evaluation.sets.open import open_suite

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Run study_data.py in this process; returns the folder."""
    script = importlib.import_module("study_data")

    def call(kind: str, *flags: object) -> Path:
        folder = tmp_path / f"study-{kind}"
        monkeypatch.setattr(sys, "argv", ["study_data.py", kind, str(folder), *map(str, flags)])
        script.main()
        return folder

    return call


def pairs_of(path: Path):
    return open_pairs(str(path), image_column="image", caption_column="caption", streaming=False)


def sets_of(folder: Path):
    names = json.loads((folder / "study.json").read_text())["sets"]
    return {one.origin.name: one for one in open_suite([str(folder / "sets" / name) for name in names])}


def test_scenes(write):
    folder = write("scenes", "--train_scenes", 12, "--eval_scenes", 9, "--size", 32)
    train, evaluation = pairs_of(folder / "train.parquet"), pairs_of(folder / "eval.parquet")
    assert (len(train), len(evaluation)) == (12, 9)
    assert [record.caption for record in train] == [draw_scene(0, index, 32).caption for index in range(12)]
    assert not {record.image for record in train} & {record.image for record in evaluation}
    sets = sets_of(folder)
    assert list(sets) == list(ATTRIBUTES)
    drawn = [draw_scene(1_000_003, index, 32) for index in range(9)]
    for name, found in sets.items():
        assert [found.classes[label] for label in found.labels] == [scene.attributes[name] for scene in drawn]
        assert found.templates == ATTRIBUTES[name][1]
    # Its images are those of the clean pairs in order, and one entry of the cache serves all sets.
    assert [Path(image).read_bytes() for image in sets["color"].images] == [record.image for record in evaluation]
    assert len({found.origin.stamp for found in sets.values()}) == 1


def drawing(colour: tuple[int, ...], palette: bool) -> bytes:
    image = Image.new("RGBA", (8, 8), colour)
    buffer = io.BytesIO()
    (image.quantize(4) if palette else image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def emoji(tmp_path) -> Path:
    rows = [
        {
            "key": f"{vendor}{concept}",
            "png": drawing((40 * concept, ord(vendor), 200, 255), palette=vendor == "a"),
            "name": f"thing {concept}",
            # Concept 1 has two of the frequent words, concept 3 none.
            "keywords": [["cat"], ["cat", "lamp"], ["lamp", "a", "b", "c", "d"], []][concept],
            "vendor": vendor,
        }
        for vendor in ("a", "b", "c")
        for concept in range(4)
    ]
    # A vendor that has no drawing of a concept.
    rows = [row for row in rows if row["key"] != "c3"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "emoji.parquet")
    return tmp_path / "emoji.parquet"


def test_emoji_leave_a_vendor_out(write, emoji):
    folder = write("emoji", "--emoji", emoji, "--held_out_vendor", "c")
    train, evaluation = pairs_of(folder / "train.parquet"), pairs_of(folder / "eval.parquet")
    assert [record.key for record in evaluation] == ["c0", "c1", "c2"]
    assert len(train) == 8 and all(record.key[0] in "ab" for record in train)
    for record in (*train, *evaluation):
        with Image.open(io.BytesIO(record.image)) as image:
            assert image.mode == "RGB"
    captions = ["thing 0: cat", "thing 1: cat, lamp", "thing 2: lamp, a, b, c"]
    assert [record.caption for record in evaluation] == captions
    assert train[3].caption == "thing 3"
    sets = sets_of(folder)
    assert sets["keyword"].classes == ["cat", "lamp", "a", "b", "c", "d"]  # the most frequent first
    assert sets["keyword"].labels.tolist() == [0]  # of the drawing that has exactly one of them
    assert Path(sets["keyword"].images[0]).resolve() == Path(sets["name"].images[0]).resolve()
    assert sets["name"].classes == [f"thing {concept}" for concept in range(4)]
    assert sets["name"].templates == ["{c}"]


def test_drawings_of_one_caption_count_many_to_many(write, emoji):
    folder = write("emoji", "--emoji", emoji, "--held_out_vendor", "c")
    found = captioned_set(pairs_of(folder / "train.parquet"))
    assert len(found.images) == 8
    _, counts = torch.unique(found.image_groups, return_counts=True)
    assert counts.tolist() == [2, 2, 2, 2]


def test_transparent_drawings_lie_on_white(monkeypatch):
    sources = importlib.import_module("study_sources")
    with Image.open(io.BytesIO(sources.flattened(drawing((255, 0, 0, 0), palette=False)))) as image:
        assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)


@pytest.fixture
def photos(tmp_path, png) -> Path:
    rows = [
        {
            "key": f"{row:03d}",
            "jpg": png(row),
            "txt": f"picture {row}",
            "book": f"book {row % 8}",
            "kind": "diagram" if row % 5 == 0 else "picture",
        }
        for row in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    return tmp_path / "photos.parquet"


@pytest.mark.parametrize("by", ["key", "book"])
def test_photos_hold_out_by_a_hash(write, photos, by):
    folder = write("photos", "--photos", photos, "--held_out_share", 0.4, "--held_out_by", by)
    sides = [{record.key for record in pairs_of(folder / name)} for name in ("train.parquet", "eval.parquet")]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {f"{row:03d}" for row in range(60) if row % 5}
    books = [{int(key) % 8 for key in side} for side in sides]
    assert bool(books[0] & books[1]) == (by == "key")


def test_photos_take_a_labelled_set_with_them(write, photos, tmp_path, png):
    own = tmp_path / "waste"
    own.mkdir()
    for row in range(3):
        (own / f"{row}.png").write_bytes(png(100 + row))
    (own / "labels.csv").write_text("image,label,split\n0.png,1,train\n1.png,0,test\n2.png,1,test\n")
    (own / "classes.json").write_text(json.dumps({"classes": ["glass", "metal"], "templates": ["a photo of {}."]}))
    found = sets_of(write("photos", "--photos", photos, "--labels_csv", own / "labels.csv"))["waste"]
    assert found.labels.tolist() == [0, 1] and found.classes == ["glass", "metal"]
    assert [Path(image).read_bytes() for image in found.images] == [png(101), png(102)]


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("scenes", ["--eval_scenes", 1], "--eval_scenes must be at least 2"),
        ("scenes", ["--size", 4], "scene size"),
        ("emoji", [], "name the parquet file with --emoji"),
        ("emoji", ["--emoji", "missing.parquet"], "not a readable parquet file"),
        ("emoji", ["--emoji", "EMOJI", "--held_out_vendor", "d"], "--held_out_vendor: unknown value 'd'"),
        ("photos", ["--photos", "EMOJI"], "no column 'jpg'"),
        ("photos", ["--photos", "PHOTOS", "--held_out_share", 1], "--held_out_share is a share"),
        ("photos", ["--photos", "PHOTOS", "--held_out_share", 0.0001], "0 to measure on"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(write, emoji, photos, tmp_path, kind, flags, message):
    files = {"EMOJI": emoji, "PHOTOS": photos}
    with pytest.raises(InputError, match=message) as error:
        write(kind, *(files.get(flag, flag) for flag in flags))
    assert "\n" not in str(error.value)
    assert not (tmp_path / f"study-{kind}").exists()


def test_a_folder_that_exists_is_kept(write, tmp_path):
    (tmp_path / "study-scenes").mkdir()
    with pytest.raises(InputError, match="exists; give a new folder"):
        write("scenes")
    assert not list((tmp_path / "study-scenes").iterdir())
