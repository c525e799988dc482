"""Noise in a source: classes from every format, keys, originals, fingerprints."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ncu_hf.data.noise import NOISE_KINDS
from ncu_hf.data.sources.open import open_pairs
from ncu_hf.errors import InputError

CAPTIONS = [f"the {i}th of all" for i in range(24)]
# Of 24 pairs: classes of 8 and 7, one of a single pair, and 8 without.
CLASSES = [("red", "blue", None)[i % 3] if i != 4 else "alone" for i in range(24)]


def as_csv(folder: Path) -> str:
    rows = [f"{i}.png,{CAPTIONS[i]},{CLASSES[i] or ''}" for i in range(24)]
    (folder / "pairs.csv").write_text("image_path,text_content,label\n" + "\n".join(rows) + "\n")
    return str(folder / "pairs.csv")


def as_parquet(folder: Path) -> str:
    columns = {"image_path": [b"x"] * 24, "text_content": CAPTIONS, "label": CLASSES}
    pq.write_table(pa.table(columns | {"key": [f"k{i}" for i in range(24)]}), folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def as_tar(folder: Path) -> str:
    with tarfile.open(folder / "pairs.tar", "w") as archive:
        for i, (caption, label) in enumerate(zip(CAPTIONS, CLASSES, strict=True)):
            fields = {} if label is None and i else {"label": label}
            for ending, data in (("jpg", b"x"), ("txt", caption.encode()), ("json", json.dumps(fields).encode())):
                info = tarfile.TarInfo(f"{i:02d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return str(folder / "pairs.tar")


def as_folder(folder: Path) -> str:
    rows = zip(range(24), CAPTIONS, CLASSES, strict=True)
    lines = [json.dumps({"file_name": f"{i}.png", "text_content": text, "label": label}) for i, text, label in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


FORMATS = {"csv": as_csv, "parquet": as_parquet, "tar": as_tar, "folder": as_folder}


def class_of(caption: str) -> str | None:
    return CLASSES[CAPTIONS.index(caption)]


@pytest.mark.parametrize("name", FORMATS)
def test_classes_of_every_format(name, tmp_path):
    spec = FORMATS[name](tmp_path)
    source = open_pairs(spec, noise_share=1.0, noise_kind="hard", noise_class_column="label")
    found = [source[i].caption for i in range(24)]
    assert [class_of(caption) for caption in found] == CLASSES
    assert [source[i].mismatched for i in range(24)] == [i != 4 for i in range(24)]
    assert [new != old for new, old in zip(found, CAPTIONS, strict=True)] == [i != 4 for i in range(24)]
    plain = open_pairs(spec)
    assert source.keys() == plain.keys() == [plain[i].key for i in range(24)]
    assert source.description["noise"] == {
        "share": 1.0, "kind": "hard", "class_column": "label", "seed": 0, "chosen": 24, "mismatched": 23
    }  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_class_column_that_is_not_there(name, tmp_path):
    spec = FORMATS[name](tmp_path)
    with pytest.raises(InputError, match=r"'lable' .*--noise_class_column.*Did you mean 'label'\?"):
        open_pairs(spec, noise_share=0.5, noise_kind="hard", noise_class_column="lable")


def test_a_folder_of_texts_has_no_columns(tmp_path, png):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        (tmp_path / f"{i}.txt").write_text(f"caption {i}")
    source = open_pairs(str(tmp_path), noise_share=1.0, noise_kind="hard")
    assert source.keys() == [f"{i}.png" for i in range(4)]
    with pytest.raises(InputError, match=r"--noise_class_column: .* \(folder\) has no columns"):
        open_pairs(str(tmp_path), noise_share=1.0, noise_kind="hard", noise_class_column="label")


def test_classes_follow_limit_and_subset(tmp_path):
    options = {"limit": 20, "subset": "13", "noise_share": 1.0, "noise_kind": "hard", "noise_class_column": "label"}
    source, plain = open_pairs(as_parquet(tmp_path), **options), open_pairs(as_parquet(tmp_path), limit=20, subset="13")
    assert len(source) == 13 and source.keys() == [plain[i].key for i in range(13)]
    assert [class_of(source[i].caption) for i in range(13)] == [class_of(plain[i].caption) for i in range(13)]


def test_all_kinds_of_a_source_change_the_same_pairs(tmp_path):
    spec = as_csv(tmp_path)
    sources = [open_pairs(spec, noise_share=0.25, noise_seed=3, noise_kind=kind) for kind in NOISE_KINDS]
    truths = [[source[i].mismatched for i in range(24)] for source in sources]
    assert all(truth == truths[0] for truth in truths) and sum(truths[0]) == 6
    for source in sources:
        assert [source.original_caption(i) for i in range(24)] == CAPTIONS
        assert [pair.row for pair in source.chosen()] == [i for i in range(24) if truths[0][i]]
        for pair in source.chosen():
            record = source[pair.row]
            assert (pair.key, pair.mismatched, pair.caption) == (record.key, record.mismatched, record.caption)
            assert pair.original_caption == CAPTIONS[pair.row]


def test_fingerprints(tmp_path):
    spec = as_csv(tmp_path)
    plain = open_pairs(spec).fingerprint
    options = [{"noise_kind": kind} for kind in NOISE_KINDS] + [{"noise_kind": "hard", "noise_class_column": "label"}]
    found = [open_pairs(spec, noise_share=0.25, **more).fingerprint for more in options]
    assert len({plain, *found}) == 6
    assert found[0] == open_pairs(spec, noise_share=0.25).fingerprint


def test_records_without_a_caption_take_no_part(tmp_path):
    captions = ["a dog", None, "a cat", " ", "a bird", "", "a fish"]
    labels = ["x", "x", "x", "x", "x", "y", "y"]
    pq.write_table(
        pa.table({"image_path": [b"x"] * 7, "text_content": captions, "label": labels}), tmp_path / "a.parquet"
    )
    for kind in NOISE_KINDS:
        source = open_pairs(str(tmp_path), noise_share=1.0, noise_kind=kind)
        assert [source[i].mismatched for i in range(7)] == [i % 2 == 0 for i in range(7)]
        assert [source[i].caption for i in (1, 3, 5)] == [None, " ", ""]
        assert [source.original_caption(i) for i in (1, 3, 5)] == [None] * 3
    source = open_pairs(str(tmp_path), noise_share=1.0, noise_kind="hard", noise_class_column="label")
    assert [source[i].mismatched for i in range(7)] == [True, False, True, False, True, False, False]


# Without the pairs that the noise made wrong


@pytest.mark.parametrize("name", FORMATS)
def test_matched_pairs_are_those_that_kept_their_caption(tmp_path, name):
    spec, noise = FORMATS[name](tmp_path), {"noise_share": 0.5, "noise_seed": 3}
    columns = {} if name == "tar" else {"image_column": "image_path", "caption_column": "text_content"}
    whole = open_pairs(spec, **columns, **noise)
    kept = open_pairs(spec, **columns, **noise, drop_mismatched=True)
    expected = [whole[i] for i in range(24) if not whole[i].mismatched]
    assert [kept[i] for i in range(len(kept))] == expected
    assert 0 < len(kept) < 24
    assert kept.captions() == [record.caption for record in expected]
    assert kept.fingerprint != whole.fingerprint
    assert kept.description["noise"] == whole.description["noise"] | {"dropped": True}
    assert kept.description["rows"] == len(kept)


def test_no_matched_pair_is_told(tmp_path):
    with pytest.raises(InputError, match="--drop_mismatched: the noise made every pair wrong"):
        open_pairs(as_csv(tmp_path), noise_share=1.0, drop_mismatched=True)
