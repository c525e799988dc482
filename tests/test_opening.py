"""Data to train and to measure on may be stored in other ways."""

from __future__ import annotations

import csv
import json
import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ncu_hf.config import DataArguments
from ncu_hf.data import usable_captions
from ncu_hf.errors import InputError
from ncu_hf.evaluation import CaptionedSet, LabelledSet
from ncu_hf.opening import open_evaluation_sets, open_training_pairs


def opened(**settings) -> list[tuple[str, list[str]]]:
    return [(one.origin.name, list(one.captions)) for one in open_evaluation_sets(DataArguments(**settings))]


@pytest.fixture(scope="module")
def rows(scenes) -> list[dict]:
    return pq.read_table(scenes, columns=["key", "image", "caption"]).to_pylist()[:6]


@pytest.fixture(scope="module")
def tar(rows, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "0000.tar"
    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(rows):
            image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            for kind, content in (("jpg", image), ("txt", row["caption"].encode())):
                member = tarfile.TarInfo(f"{number:04}.{kind}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    return path


@pytest.fixture
def table(tmp_path, rows):
    """Write a csv of the pairs: `table("picture", "title")`."""

    def write(image: str, caption: str, **more: list[str]) -> Path:
        path = tmp_path / "pairs.csv"
        for number, row in enumerate(rows):
            stored = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            (tmp_path / f"{number}.jpg").write_bytes(stored)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([image, caption, *more])
            for number, row in enumerate(rows):
                writer.writerow([f"{number}.jpg", row["caption"], *(values[number] for values in more.values())])
        return path

    return write


def test_tars_to_train_on_and_a_table_to_measure_on(tar, scenes, rows):
    """As the README's second command has it."""
    data = DataArguments(train_data=str(tar), eval_data=str(scenes))
    source = open_training_pairs(data, torch.device("cpu"))
    assert usable_captions(source) == [row["caption"] for row in rows]
    ((_, captions),) = opened(train_data=str(tar), eval_data=str(scenes))
    assert captions[:6] == [row["caption"] for row in rows]


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("picture", "title"), {"image_column": "picture", "caption_column": "title"}),  # as the training pairs
        (("image", "caption"), {"image_column": "picture", "caption_column": "title"}),  # not as these
        (("image_path", "text_content"), {}),
        (("picture", "title"), {"eval_image_column": "picture", "eval_caption_column": "title"}),
    ],
)
@pytest.mark.parametrize("flag", ["eval_data", "eval_sets"])
def test_columns_to_measure_on(flag, names, settings, table, rows):
    ((_, captions),) = opened(**{flag: str(table(*names))}, **settings)
    assert captions == [row["caption"] for row in rows]


def test_a_column_that_is_named_must_be_there(table):
    with pytest.raises(InputError, match="'title'"):
        opened(eval_data=str(table("image", "caption")), eval_caption_column="title")


def test_pairs_with_a_label_are_pairs(table):
    path = table("image", "caption", label=list("aabbcc"))
    (found,) = open_evaluation_sets(DataArguments(eval_sets=str(path)))
    assert isinstance(found, CaptionedSet)


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_the_delimiter_of_the_training_pairs_is_not_that_of_all_tables(kind, table, rows):
    """A table that it does not divide is read as its name says."""
    path = table("image", "caption") if kind == "pairs" else table("image", "label")
    if kind == "labels":
        classes = {"classes": sorted({row["caption"] for row in rows}), "templates": ["a photo of {c}"]}
        (path.parent / "classes.json").write_text(json.dumps(classes))
    (found,) = open_evaluation_sets(DataArguments(eval_sets=str(path), delimiter="\\t"))
    assert isinstance(found, CaptionedSet if kind == "pairs" else LabelledSet) and len(found.images) == 6


def test_the_first_pairs_are_said_to_be_that(scenes):
    (found,) = open_evaluation_sets(DataArguments(eval_data=str(scenes), eval_limit=20))
    assert len(found.images) <= 20 and "the first 20 of 96" in found.origin.note


def test_pairs_behind_an_address_are_not_measured_on():
    with pytest.raises(InputError, match=r"--eval_data .*: is only read as a stream"):
        opened(eval_data="http://127.0.0.1:9/x-{0000..0003}.tar")
