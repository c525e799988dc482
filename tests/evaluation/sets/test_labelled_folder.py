"""`labels.csv`: what is read of it, what is left out and counted, what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ncu_hf.data import BadRecord, decode_image
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets import open_set

ROWS = "image,label\n0.png,2\n1.png,0\n2.png,0\n"


def test_a_folder_and_its_csv_are_one_set(tmp_path, make_labelled, classes, png):
    folder = make_labelled(tmp_path / "pets", ROWS)
    found = open_set(str(folder))
    assert found.labels.tolist() == [2, 0, 0] and found.classes == classes and found.primary == "accuracy"
    assert [Path(path).read_bytes() for path in found.images] == [png(i) for i in range(3)]
    assert found.origin.name == "pets" and found.origin.split == "test" and found.train is None
    assert found.skipped == {} and found.origin.note is None
    assert open_set(str(folder / "labels.csv")).origin == found.origin
    os.rename(folder / "labels.csv", folder / "mine.csv")
    assert open_set(str(folder / "mine.csv")).labels.tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (b"\xef\xbb\xbfimage,label\r\n0.png,1\r\n", [1]),
        (b"label,extra,image\n1,x,0.png\n\n2,y,1.png\n", [1, 2]),
        (b"image,label\n0.png,2.0\n1.png, 1 \n", [2, 1]),
        (b"image,label\n0.png,cat\n1.png,hot dog\n2.png,dog\n", [0, 2, 1]),
        (b'image,label\n"0.png","hot dog"\n', [2]),
        (b"image,label,split\n0.png,0,train\n1.png,1,Test\n2.png,2,val\n", [1]),
        (b"image,label,split\n0.png,0,train\n1.png,1,\n2.png,2,val\n", [2]),
    ],
)
def test_spellings(tmp_path, make_labelled, labels, expected):
    assert open_set(str(make_labelled(tmp_path / "x", labels))).labels.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", "the file is empty"),
        ("image,label\n", "0 rows"),
        ("image;label\n0.png;1\n", "no column 'image'"),
        ("img,label\n0.png,1\n", r"no column 'image'\. Did you mean 'img'"),
        ("image,lable\n0.png,1\n", "no column 'label'. Did you mean 'lable'"),
        ("image,label\n0.png,3\n", r"line 2: label 3, but the 3 classes are 0 to 2\.$"),
        ("image,label\n0.png,1\n1.png,2\n2.png,3\n", "line 4: label 3, .* seem to start at 1"),
        ("image,label\n0.png,0\n1.png,-1\n", "line 3: label -1"),
        ("image,label\n0.png,cat\n1.png,hotdog\n", "line 3: no class is called 'hotdog'. Did you mean 'hot dog'"),
        ("image,label\n0.png,1\n1.png,x\n", "line 2: no class is called '1'"),
        ("image,label\n0.png,1\n1.png,0\n./0.png,2\n", r"line 4: '\./0\.png' has label 2, but 1 before"),
        ("image,label\n0.png,1,5\n", "line 2: 3 fields"),
        ("image,label,split\n0.png,1,train\n", r"no row of the split 'test' .*Splits: 'train'"),
        ("image,label\nnone.png,1\n", "none of its 1 images exists; the first is .*none.png"),
        ("image,label\n,1\n0.png,\n", r"none of its 0 images exists \(skipped: .*missing_label"),
    ],
)
def test_refused(tmp_path, make_labelled, labels, message):
    with pytest.raises(InputError, match=message) as caught:
        open_set(str(make_labelled(tmp_path / "x", labels)))
    assert "labels.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_rows_that_are_of_no_use_are_counted(tmp_path, make_labelled):
    labels = "image,label\n0.png,1\n0.png,1\n,2\n1.png,\nnone.png,0\nlabels.csv,0\n"
    found = open_set(str(make_labelled(tmp_path / "x", labels)))
    assert found.skipped == {"duplicate_row": 1, "missing_image": 1, "missing_label": 1}
    # What cannot be read or decoded shows when it is read.
    assert found.labels.tolist() == [1, 0, 0] and len(found.images) == 3
    for image, reason in ((found.images[1], "missing_file"), (found.images[2], "undecodable")):
        with pytest.raises(BadRecord, match=reason):
            decode_image(image)


def test_two_classes_of_one_name_need_integers(tmp_path, make_labelled):
    names = {"classes": ["a", "b", "a"], "templates": ["{c}"]}
    found = open_set(str(make_labelled(tmp_path / "x", ROWS, names)))
    assert found.labels.tolist() == [2, 0, 0] and "'a'" in found.origin.note
    with pytest.raises(InputError, match="'a' is the name of two classes"):
        open_set(str(make_labelled(tmp_path / "x", "image,label\n0.png,b\n", names)))


def test_the_released_classes_file(tmp_path, make_labelled):
    folder = make_labelled(tmp_path / "x", ROWS, "{'classes': ['a', 'b', 'c'], 'templates': [lambda c: f'a {c}']}")
    assert open_set(str(folder)).templates == ["a {c}"]


def test_training_rows(tmp_path, make_labelled):
    rows = ["0.png,0,test", "1.png,1,train", "2.png,2,val", "3.png,1,validation", "4.png,0,extra", "5.png,2,train"]
    found = open_set(str(make_labelled(tmp_path / "x", "\n".join(["image,label,split", *rows]))))
    train = found.train()
    assert found.labels.tolist() == [0] and train.labels.tolist() == [1, 2, 1, 2]
    assert [os.path.basename(path) for path in train.images] == ["1.png", "5.png", "3.png", "2.png"]
    assert train.origin.split == "train" and train.origin.name == "x" and train.train is None
    assert len({found.origin.fingerprint, train.origin.fingerprint}) == 2


def test_split_folders_as_released(tmp_path, make_labelled):
    for split, labels in (("test", ROWS), ("train", "image,label\n3.png,1\n")):
        make_labelled(tmp_path / "eurosat" / split, labels)
    for spec in (tmp_path / "eurosat", tmp_path / "eurosat" / "test"):
        found = open_set(str(spec))
        assert found.origin.name == "eurosat" and found.labels.tolist() == [2, 0, 0]
        assert found.train().labels.tolist() == [1]


def test_fingerprint_and_stamp(tmp_path, make_labelled):
    folder = make_labelled(tmp_path / "x", ROWS)
    before = open_set(str(folder)).origin
    assert open_set(str(folder)).origin == before
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "x")
    there = open_set(str(copy)).origin
    assert there.fingerprint == before.fingerprint and there.stamp != before.stamp
    os.utime(folder / "0.png", ns=(1, 1))
    touched = open_set(str(folder)).origin
    assert touched.fingerprint == before.fingerprint and touched.stamp != before.stamp
    os.utime(folder / "7.png", ns=(1, 1))  # of no row
    assert open_set(str(folder)).origin == touched
    (folder / "labels.csv").write_text(ROWS.replace("1.png,0", "1.png,1"))
    relabelled = open_set(str(folder)).origin
    assert relabelled.fingerprint != touched.fingerprint and relabelled.stamp == touched.stamp
