"""The layout of `clip-benchmark/wds_*` in a folder."""

from __future__ import annotations

import io
import os

import pytest
import torch
from PIL import Image

from ncu_hf.data import decode_image
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets import CaptionedSet, LabelledSet, open_set


def test_a_labelled_set(tmp_path, make_wds, classes, png):
    # Twelve tars: 10.tar comes after 9.tar, not after 1.tar.
    folder = make_wds(tmp_path / "mine", test=[[i % 3] for i in range(12)], train=[[1, "2\n"]])
    found = open_set(str(folder))
    assert isinstance(found, LabelledSet) and found.classes == classes
    assert found.labels.tolist() == [i % 3 for i in range(12)] and found.labels.dtype == torch.long
    assert list(found.images) == [png(i) for i in range(12)] and found.skipped == {}
    assert (found.origin.name, found.origin.split, found.origin.note) == ("mine", "test", None)
    train = found.train()
    assert train.labels.tolist() == [1, 2] and train.origin.split == "train" and train.train is None
    assert train.origin.stamp != found.origin.stamp and train.origin.fingerprint != found.origin.fingerprint


def test_images_of_any_format(tmp_path, make_wds, write_tar):
    folder = make_wds(tmp_path / "x", test=[[]])
    members = []
    for number, kind in enumerate(("jpeg", "png", "webp", "jpg")):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (number * 60, 0, 0)).save(buffer, "jpeg" if kind == "jpg" else kind)
        members += [(f"{number}.cls", b"1"), (f"{number}.{kind}", buffer.getvalue())]
    write_tar(folder / "test" / "0.tar", [*members, ("4.cls", b"2")])
    found = open_set(str(folder))
    reds = [decode_image(found.images[i]).getpixel((4, 4))[0] for i in range(4)]
    assert [round(red / 60) for red in reds] == [0, 1, 2, 3]
    assert found.images[4] is None  # counted when it is decoded


def test_without_training_split(tmp_path, make_wds):
    assert open_set(str(make_wds(tmp_path / "x", test=[[0]]))).train is None


def test_labels_that_are_of_no_use_are_counted(tmp_path, make_wds, png):
    found = open_set(str(make_wds(tmp_path / "x", test=[[0, None, "cat", "-1", "", "1" * 30, 2]])))
    assert found.labels.tolist() == [0, 2] and list(found.images) == [png(0), png(6)]
    assert found.skipped == {"missing_label": 1, "bad_label": 4}


def test_a_cut_tar_is_counted(tmp_path, make_wds):
    path = make_wds(tmp_path / "x", test=[[0, 1, 2], [1]]) / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[: 4 * 1024 + 600])
    found = open_set(str(tmp_path / "x"))
    assert found.labels.tolist() == [0, 1, 1] and found.skipped == {"truncated_archive": 1}


@pytest.mark.parametrize(
    ("tars", "message"),
    [
        ([[0, 3]], r"x, sample 's0000001': label 3, but the 3 classes are 0 to 2\.$"),
        ([[1], [2, 3]], "label 3, .*seem to start at 1"),
        ([["a", "b"]], r"none of its 2 samples has a label .*bad_label"),
        ([[]], "no sample in 1 tar"),
    ],
)
def test_refused(tmp_path, make_wds, tars, message):
    with pytest.raises(InputError, match=message):
        open_set(str(make_wds(tmp_path / "x", test=tars)))


def test_what_is_missing_is_named(tmp_path, make_wds, write_tar, samples):
    folder = make_wds(tmp_path / "x", test=[[0], [1]], train=[])
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(InputError, match=r"test: 1 tars, but nshards\.txt says 2"):
        open_set(str(folder))
    (folder / "test" / "0.tar").unlink()
    with pytest.raises(InputError, match="no tar in the folder 'test'"):
        open_set(str(folder))
    write_tar(folder / "test" / "0.tar", samples(0, 2))
    (folder / "test" / "nshards.txt").unlink()
    with pytest.raises(InputError, match=r"members \.cls are read, but .*Members and fields: png, txt"):
        open_set(str(folder))
    (folder / "zeroshot_classification_templates.txt").write_text("no field\n")
    with pytest.raises(InputError, match="no field"):
        open_set(str(folder))
    (folder / "zeroshot_classification_templates.txt").unlink()
    with pytest.raises(InputError, match="templates"):
        open_set(str(folder))


def test_no_training_tars_is_told_when_they_are_asked_for(tmp_path, make_wds):
    found = open_set(str(make_wds(tmp_path / "x", test=[[0]], train=[])))
    with pytest.raises(InputError, match="no tar in the folder 'train'"):
        found.train()


CAPTIONS = [["a cat\na dog\n\n \r\na cat", "one"], ["a cat", None, "\n", "last\n"]]


@pytest.mark.parametrize("told", [True, False])
def test_captions_a_line(tmp_path, make_wds, png, told):
    folder = make_wds(tmp_path / "x", retrieval=True, test=CAPTIONS)
    if not told:
        (folder / "dataset_type.txt").unlink()
    found = open_set(str(folder))
    assert isinstance(found, CaptionedSet)
    assert found.captions == ["a cat", "a dog", "a cat", "one", "a cat", "last"]
    assert list(found.images) == [png(0), png(1), png(2), png(5)]
    assert found.keys == ["s0000000", "s0000001", "s0000002", "s0000005"]
    # An equal caption of another image is a wrong one: papers count an image's own.
    assert found.image_groups.tolist() == [0, 1, 2, 3]
    assert found.caption_groups.tolist() == [0, 0, 0, 1, 2, 3]
    assert found.skipped == {"missing_caption": 2} and found.origin.note is None


def test_long_captions(tmp_path, make_wds):
    lines = [f"caption {i} " + "x" * 900 for i in range(40)]  # far more than one caption may have
    found = open_set(str(make_wds(tmp_path / "x", retrieval=True, test=[["\n".join(lines), "b", "c\n" * 2**19 + "c"]])))
    assert found.captions == [*lines, "b"] and found.skipped == {"captions_too_long": 1}


def test_neither_kind(tmp_path, make_wds):
    folder = make_wds(tmp_path / "x", test=[[0]])
    (folder / "classnames.txt").unlink()
    with pytest.raises(InputError, match=r"Neither classnames\.txt .*members \.txt are read"):
        open_set(str(folder))
    (folder / "dataset_type.txt").write_text("multilabel\n")
    with pytest.raises(InputError, match="several classes"):
        open_set(str(folder))


def test_one_image_is_no_retrieval(tmp_path, make_wds):
    with pytest.raises(InputError, match="at least two images"):
        open_set(str(make_wds(tmp_path / "x", retrieval=True, test=[["a\nb"]])))


def test_stamp(tmp_path, make_wds):
    folder = make_wds(tmp_path / "x", test=[[0, 1]])
    before = open_set(str(folder)).origin
    os.utime(folder / "test" / "0.tar", ns=(1, 1))
    after = open_set(str(folder)).origin
    assert after.fingerprint == before.fingerprint and after.stamp != before.stamp
