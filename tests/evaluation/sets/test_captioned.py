"""Image-text pairs as a retrieval set: what belongs together, what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ncu_hf.data import PairSource, Record, open_pairs
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets import captioned_set, open_set
from ncu_hf.evaluation.sets.pair_columns import Pairs


class Rows(PairSource):
    format = fingerprint = name = "rows"

    def __init__(self, rows: list[tuple], faults: dict[int, str] | None = None):
        self.rows, self.problems, self.faults = rows, [], faults or {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return Record(str(index), *self.rows[index], fault=self.faults.get(index))

    def shard_of(self, index: int) -> str:
        return "rows"


def test_rows_of_one_image_or_one_caption_belong_together():
    rows = [(b"red", "a"), (b"red", "b"), (b"blue", "c"), (b"green", "b"), (b"black", "d"), (b"broken", "e")]
    found = captioned_set(Rows([*rows, (b"blue", ""), (None, "f"), (b"", "g"), (3, "h")]))
    assert found.captions == ["a", "b", "c", "b", "d", "e", "g"]
    assert found.keys == ["0", "2", "3", "4", "5", "8"]
    # Nothing is decoded here; b"" counts as an image that cannot be.
    assert list(found.images) == [b"red", b"blue", b"green", b"black", b"broken", b""]
    groups = found.image_groups.tolist()
    assert groups[0] == groups[2] and len(set(groups)) == 5
    image_of = [0, 0, 1, 2, 3, 4, 5]
    assert found.caption_groups.tolist() == [groups[image] for image in image_of]
    assert found.skipped == {"empty_caption": 1, "missing_image": 1, "undecodable": 1}
    assert "6 images, of which those that share a caption count as one: 5" in found.origin.note


def test_groups_are_connected_through_others():
    """Against a naive closure, on chains and cycles."""
    rows = [(bytes([65 + image]), caption) for image, caption in [(0, "a"), (1, "b"), (2, "a"), (2, "c"), (3, "c")]]
    found = captioned_set(Rows([*rows, (b"E", "e"), (b"F", "b"), (b"F", "g")]))
    groups = found.image_groups.tolist()
    same = [[groups[i] == groups[j] for j in range(6)] for i in range(6)]
    expected = [{0, 2, 3}, {1, 5}, {0, 2, 3}, {0, 2, 3}, {4}, {1, 5}]
    assert [{j for j in range(6) if same[i][j]} for i in range(6)] == expected


def test_lists_of_captions_and_faults():
    rows = [(b"a", ["one", "two", ""]), (b"b", "three"), (b"c", []), (b"d", ["x"]), (b"a", ["four"])]
    found = captioned_set(Rows(rows, faults={3: "unreadable_file"}))
    assert found.captions == ["one", "two", "three", "four"] and found.keys == ["0", "1"]
    assert found.caption_groups.tolist() == found.image_groups[[0, 0, 1, 0]].tolist()
    assert found.skipped == {"empty_caption": 1, "missing_caption": 1, "unreadable_file": 1}
    assert found.origin.note is None


def test_limit():
    source = Rows([(bytes([i]), f"caption {i}") for i in range(65, 75)])
    found = captioned_set(source, limit=4, name="mine")
    assert found.keys == ["0", "1", "2", "3"] and found.origin.note == "the first 4 of 10 records"
    assert found.origin.name == "mine" and captioned_set(source).origin.note is None
    assert len(captioned_set(source, limit=99).keys) == 10


@pytest.mark.parametrize("rows", [[(b"a", "x")], [(b"a", "x"), (b"b", "x")], [(b"a", "x"), (b"a", "y")], [(None, "x")]])
def test_nothing_to_tell_apart(rows):
    with pytest.raises(InputError, match=r"rows: .* at least two images of different captions"):
        captioned_set(Rows(rows))


def test_the_released_csv(tmp_path, png):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    text = "".join(f"{path},caption {i}\n" for i, path in enumerate(["0.png", "0.png", "1.png", "./0.png", "2.png"]))
    (tmp_path / "flickr.csv").write_text("image,caption\n" + text)
    found = open_set(str(tmp_path / "flickr.csv"))
    assert [Path(path).read_bytes() for path in found.images] == [png(i) for i in range(3)]
    assert found.caption_groups.tolist() == found.image_groups[[0, 0, 1, 0, 2]].tolist()
    assert found.origin.name == "flickr.csv"
    (tmp_path / "flickr.tsv").write_text("image_path\ttext_content\n0.png\ta\n1.png\tb\n")
    assert open_set(str(tmp_path / "flickr.tsv")).captions == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "delimiter", "column"),
    [("x.csv", ",", "image"), ("x.tsv", "\t", "image"), ("metadata.csv", ",", "file_name")],
)
def test_a_folder_with_one_table(name, delimiter, column, tmp_path, png):
    rows = [(column, "caption"), ("0.png", "a"), ("1.png", "b")]
    (tmp_path / name).write_text("\n".join(map(delimiter.join, rows)))
    for row in range(2):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    assert open_set(str(tmp_path)).captions == ["a", "b"]
    (tmp_path / "other.csv").write_text("image,label,words\n0.png,1,a\n1.png,1,b\n")
    assert open_set(str(tmp_path / "other.csv"), Pairs(caption_column="words")).captions == ["a", "b"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.csv").write_text("image,caption\n0.png,a\n1.png,b\n")
    with pytest.raises(InputError, match=r"none of its 2 images exists; the first is .*0\.png"):
        open_set(str(tmp_path / "sub" / "x.csv"))
    assert len(open_set(str(tmp_path / "sub" / "x.csv"), Pairs(image_root=tmp_path)).images) == 2


@pytest.mark.parametrize("image", ["image", "png"])
def test_parquet_with_lists(tmp_path, png, image):
    table = {image: [png(0), png(1), png(0)], "captions": [["a", "b"], ["c"], ["d"]]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    for spec in (tmp_path / "x.parquet", tmp_path):
        found = open_set(str(spec))
        assert found.captions == ["a", "b", "c", "d"] and list(found.images) == [png(0), png(1)]
        assert found.caption_groups.tolist() == found.image_groups[[0, 0, 1, 0]].tolist()
    pq.write_table(pa.table({"picture": [png(0)], "caption": ["a"]}), tmp_path / "y.parquet")
    with pytest.raises(InputError, match="no column 'image'"):
        open_set(str(tmp_path / "y.parquet"))
    (tmp_path / "z.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a readable parquet file"):
        open_set(str(tmp_path / "z.parquet"))


def test_tars_and_folders_of_pairs(tmp_path, write_tar, samples, png):
    spec = write_tar(tmp_path / "pairs-0.tar", samples(0, 3))
    assert open_set(spec).captions == ["caption 0", "caption 1", "caption 2"]
    assert len(open_set(str(tmp_path / "pairs-{0..0}.tar")).images) == 3
    for name, data in samples(0, 2):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    assert open_set(str(tmp_path / "folder")).captions == ["caption 0", "caption 1"]


def test_stamp_follows_images_and_fingerprint_the_captions_too(tmp_path, png):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    path = tmp_path / "x.csv"
    path.write_text("image,caption\n0.png,a\n1.png,b\n")
    before = open_set(str(path)).origin
    assert open_set(str(path)).origin == before
    path.write_text("image,caption\n0.png,a\n1.png,c\n")
    after = open_set(str(path)).origin
    assert after.stamp == before.stamp and after.fingerprint != before.fingerprint
    os.utime(tmp_path / "1.png", ns=(1, 1))
    touched = open_set(str(path)).origin
    assert touched.stamp != after.stamp and touched.fingerprint == after.fingerprint


def test_a_source_that_is_open_already(scenes):
    source = open_pairs(str(scenes), image_column="image", caption_column="caption")
    found = captioned_set(source)
    assert len(found.captions) == 96 and found.images[0] == source[0].image
