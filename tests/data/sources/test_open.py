from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ncu_hf.data.decoding import clean_caption, decode_image
from ncu_hf.data.shards.base import Entry
from ncu_hf.data.sources.open import check_readable, open_pairs
from ncu_hf.data.sources.stream_source import StreamSource
from ncu_hf.errors import InputError

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_csv(folder: Path, text: str | bytes, name: str = "pairs.csv") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return str(folder / name)


def texts(source) -> list[str]:
    return [clean_caption(source[i].caption) for i in range(len(source))]


# csv


def test_csv_with_quotes_relative_paths_and_numbers_as_text(tmp_path):
    text = 'image_path,text_content,id\na.png,"a dog, and ""a"" cat",007\nsub/b.png,None,8\n\n"c.png","two\nlines",9\n'
    source = open_pairs(write_csv(tmp_path, text))
    assert len(source) == 3
    assert [source[i].caption for i in range(3)] == ['a dog, and "a" cat', "None", "two\nlines"]
    assert [source[i].image for i in range(3)] == [str(tmp_path / name) for name in ("a.png", "sub/b.png", "c.png")]
    assert [source[i].key for i in range(3)] == ["0", "1", "2"] and source.shard_of(2) == "pairs.csv"
    assert source.captions() == [source[i].caption for i in range(3)]
    assert source.description == {
        "name": "pairs.csv", "format": "csv", "rows": 3, "revision": None, "fingerprint": source.fingerprint
    }  # fmt: skip


@pytest.mark.parametrize(("delimiter", "flag"), [("\t", "\\t"), ("\t", "\t"), (";", ";")])
def test_csv_delimiters(tmp_path, delimiter, flag):
    text = f"image_path{delimiter}text_content\na.png{delimiter}a dog, a cat\n"
    source = open_pairs(write_csv(tmp_path, text), delimiter=flag)
    assert source[0].caption == "a dog, a cat"


def test_csv_image_root_and_absolute_paths(tmp_path):
    spec = write_csv(tmp_path, "image_path,text_content\na.png,x\n/else/b.png,y\n")
    source = open_pairs(spec, image_root="/data/images")
    assert [source[i].image for i in range(2)] == ["/data/images/a.png", "/else/b.png"]


def test_csv_with_byte_order_mark_and_an_unnamed_index_column(tmp_path):
    spec = write_csv(tmp_path, b"\xef\xbb\xbfimage_path,,text_content\r\na.png,0,caf\xc3\xa9\r\n")
    assert open_pairs(spec)[0].caption == "café"


def test_csv_ground_truth(tmp_path):
    spec = write_csv(tmp_path, "image_path,text_content,mismatched\na,x,True\nb,y,0\nc,z,\n")
    assert [open_pairs(spec)[i].mismatched for i in range(3)] == [True, False, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"image_path,text_content\na,x\nb,caf\xe9\n", r"pairs\.csv, line 3: not UTF-8 \(byte 0xe9\)"),
        ("image_path,text_content\na,x\nb,y,z\n", r"pairs\.csv, line 3: 3 fields, the header has 2"),
        ("image_path,text_content\na,x\nb\n", r"pairs\.csv, line 3: 1 fields, the header has 2"),
        ('image_path,text_content\na,"x\nb,y\n', r"pairs\.csv, line 3: .*end of data"),
        ("image_path,image_path\na,x\n", "more than one column is called 'image_path'"),
        ("", r"pairs\.csv: the file is empty"),
        ("image_path,text_content\n", "0 rows"),
        ("image,text_content\na,x\n", r"no column 'image_path' \(--image_column\)\. Did you mean 'image'\?.*Columns: "),
        ("image_path,texts\na,x\n", r"no column 'text_content' \(--caption_column\).*Columns: image_path, texts"),
        ("image_path\ttext_content\na\tx\n", r"Give --delimiter '\\t'"),
    ],
)
def test_broken_csv_is_one_line_that_says_where(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        open_pairs(write_csv(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_delimiter_must_be_one_character(tmp_path):
    with pytest.raises(InputError, match="--delimiter"):
        open_pairs(write_csv(tmp_path, "a,b\n"), delimiter="||")


def test_an_edited_csv_is_read_anew(tmp_path):
    spec = write_csv(tmp_path, "image_path,text_content\na,one\n")
    first = open_pairs(spec)
    write_csv(tmp_path, "image_path,text_content\na,three\n")
    second = open_pairs(spec)
    assert (first[0].caption, second[0].caption) == ("one", "three")
    assert first.fingerprint != second.fingerprint


def test_fingerprint_depends_on_content_and_not_on_the_folder(tmp_path):
    text = "image_path,text_content\na,one\n"
    first, second = (open_pairs(write_csv(tmp_path / name, text)) for name in ("a", "b"))
    assert first.fingerprint == second.fingerprint
    assert open_pairs(write_csv(tmp_path / "a", text), caption_column="image_path").fingerprint != first.fingerprint


# parquet


def write_parquet(path: Path, images: list, **columns: list) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": images, **columns}), path)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_folder_in_the_order_of_names(tmp_path, streaming, png):
    for part in range(3):
        rows = range(part * 2, part * 2 + 2)
        columns = {"text": [f"caption {i}" for i in rows], "key": [f"k{i}" for i in rows], "other": [1, 2]}
        write_parquet(tmp_path / "data" / f"part-{part}.parquet", [png(i) for i in rows], **columns)
    options = {"image_column": "image", "caption_column": "text", "streaming": streaming}
    for spec in (tmp_path / "data", tmp_path / "data" / "*.parquet", tmp_path / "data" / "part-{0..2}.parquet"):
        source = open_pairs(str(spec), **options)
        if streaming:
            assert isinstance(source, StreamSource) and len(source.shards) == 3
            assert source.rows == 6 and [shard.rows for shard in source.shards] == [2, 2, 2]
            records = [row.record for shard in source.shards for row in shard.read(Entry(), 0, source.problems)]
        else:
            records = [source[i] for i in range(len(source))]
            assert [source.shard_of(i) for i in (0, 1, 2, 5)] == [f"part-{i}.parquet" for i in (0, 0, 1, 2)]
        assert [(record.key, record.caption) for record in records] == [(f"k{i}", f"caption {i}") for i in range(6)]
        assert [record.image for record in records] == [png(i) for i in range(6)]


def test_parquet_of_the_datasets_library_is_not_decoded(tmp_path, png):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no image", "path": None}, {"bytes": png(1), "path": "b.png"}], "text": ["x", "y"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    for streaming in (False, True):
        source = open_pairs(
            str(tmp_path / "a.parquet"), image_column="image", caption_column="text", streaming=streaming
        )
        rows = source.shards[0].read(Entry(), 0, source.problems) if streaming else ()
        records = [row.record for row in rows] or [source[0], source[1]]
        assert [record.image for record in records] == [b"no image", png(1)]


def test_parquet_images_as_structs_and_paths(tmp_path, png):
    structs = [{"bytes": png(0), "path": "gone.png"}, {"bytes": None, "path": "a.png"}]
    write_parquet(tmp_path / "structs.parquet", structs, text=["x", "y"], mismatched=[True, False])
    source = open_pairs(str(tmp_path / "structs.parquet"), image_column="image", caption_column="text")
    assert [source[i].image for i in range(2)] == [png(0), str(tmp_path / "a.png")]
    assert [source[i].mismatched for i in range(2)] == [True, False]


def test_broken_parquet(tmp_path, png):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"a\.parquet: not a readable parquet file"):
        open_pairs(str(tmp_path / "a.parquet"))
    write_parquet(tmp_path / "b.parquet", [png()], text=["x"])
    with pytest.raises(InputError, match=r"no column 'image_path'.*Columns: image, text"):
        open_pairs(str(tmp_path / "b.parquet"))
    write_parquet(tmp_path / "c.parquet", pa.array([], pa.binary()), text=pa.array([], pa.string()))
    with pytest.raises(InputError, match="empty"):
        open_pairs(str(tmp_path / "c.parquet"), image_column="image", caption_column="text")


def test_parquet_shards_must_agree(tmp_path, png):
    write_parquet(tmp_path / "data" / "a.parquet", [png()], text=["x"])
    write_parquet(tmp_path / "data" / "b.parquet", [png()], caption=["x"])
    with pytest.raises(InputError, match=r"b\.parquet: no column 'text'"):
        open_pairs(str(tmp_path / "data"), image_column="image", caption_column="text")


# image folders


def test_folder_with_captions_of_the_same_name(tmp_path, png):
    (tmp_path / "sub").mkdir()
    for name, caption in (("b", "second"), ("sub/c", None), ("a", "first")):
        (tmp_path / f"{name}.png").write_bytes(png())
        if caption:
            (tmp_path / f"{name}.txt").write_text(caption)
    source = open_pairs(str(tmp_path))
    assert [(source[i].key, source[i].caption) for i in range(3)] == [
        ("a.png", b"first"), ("b.png", b"second"), ("sub/c.png", None)
    ]  # fmt: skip
    assert decode_image(source[2].image).size == (4, 4)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_folder_with_metadata(tmp_path, kind, png):
    rows = [{"file_name": "b.png", "text": "one, two"}, {"file_name": "gone.png", "text": "three"}]
    if kind == "jsonl":
        text = "\n".join(json.dumps(row) for row in rows)
    else:
        text = "file_name,text\n" + "\n".join(f'{row["file_name"]},"{row["text"]}"' for row in rows)
    (tmp_path / f"metadata.{kind}").write_text(text)
    (tmp_path / "b.png").write_bytes(png())
    (tmp_path / "not_named.png").write_bytes(png())
    source = open_pairs(str(tmp_path))
    assert [(source[i].key, source[i].caption) for i in range(len(source))] == [
        ("b.png", "one, two"), ("gone.png", "three")
    ]  # fmt: skip
    assert source[0].image == str(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"no column 'txt' .*Did you mean 'text'"):
        open_pairs(str(tmp_path), caption_column="txt")


def test_folders_without_what_is_needed(tmp_path, png):
    with pytest.raises(InputError, match="is of no known format"):
        open_pairs(str(tmp_path))
    with pytest.raises(InputError, match="empty"):
        open_pairs(str(tmp_path), data_format="folder")
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(InputError, match="1 images, but neither metadata"):
        open_pairs(str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"\n')
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 1: not JSON"):
        open_pairs(str(tmp_path))


# specifications


def test_unknown_places(tmp_path):
    with pytest.raises(InputError, match=re.escape(f"no such file or folder ({tmp_path} exists)")):
        open_pairs(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match=re.escape(f"({tmp_path} exists)")):
        open_pairs(str(tmp_path / "none" / "deeper" / "*.tar"))
    with pytest.raises(InputError, match=r"unknown value 'parqet'.*'parquet'"):
        open_pairs(str(tmp_path), data_format="parqet")
    with pytest.raises(InputError, match=r"no \.tar file in this folder"):
        open_pairs(str(tmp_path), data_format="webdataset")


def test_hub_id_that_cannot_be_reached_is_one_line():
    with pytest.raises(InputError) as caught:
        open_pairs("nobody/no-such-data-set")
    assert "nobody/no-such-data-set" in str(caught.value) and "\n" not in str(caught.value)


def test_several_formats_need_a_word(tmp_path, write_tar, samples):
    write_csv(tmp_path, "image_path,text_content\na,x\n")
    write_tar(tmp_path / "a.tar", samples(0, 2))
    with pytest.raises(InputError, match=r"holds several formats \(csv, webdataset\).*--data_format"):
        open_pairs(str(tmp_path))
    assert len(open_pairs(str(tmp_path), data_format="webdataset")) == 2
    assert len(open_pairs(str(tmp_path), data_format="csv")) == 1


def test_limit(tmp_path, write_tar, samples):
    spec = write_tar(tmp_path / "a.tar", samples(0, 5))
    source = open_pairs(spec, limit=2)
    assert texts(source) == ["caption 0", "caption 1"] and len(source.captions()) == 2
    assert source.description["rows"] == 2 and source.fingerprint != open_pairs(spec).fingerprint
    assert len(open_pairs(spec, limit=99)) == 5
    with pytest.raises(InputError, match="limit: 0"):
        open_pairs(spec, limit=0)


def test_noise_has_ground_truth(tmp_path, png, write_tar, samples):
    members = [*samples(0, 40), ("empty.png", png()), ("empty.txt", b" ")]
    spec = write_tar(tmp_path / "a.tar", members)
    source = open_pairs(spec, noise_share=0.25, noise_seed=3)
    truth = [source[i].mismatched for i in range(40)]
    assert sum(truth) == 10
    assert [source[i].caption != f"caption {i}" for i in range(40)] == truth
    assert sorted(texts(open_pairs(spec, limit=40))) == sorted(source[i].caption for i in range(40))
    assert source[40].caption == b" " and source[40].mismatched is False
    again, other = (open_pairs(spec, noise_share=0.25, noise_seed=seed) for seed in (3, 4))
    assert [again[i] for i in range(41)] == [source[i] for i in range(41)]
    assert [other[i].caption for i in range(40)] != [source[i].caption for i in range(40)]
    assert len({source.fingerprint, other.fingerprint, open_pairs(spec).fingerprint}) == 3
    assert open_pairs(spec)[0].mismatched is None


def test_flags_without_effect_are_told(tmp_path, png, caplog):
    spec = write_csv(tmp_path, "image_path,text_content\na.png,x\n")
    open_pairs(spec)
    assert not caplog.text
    open_pairs(spec, streaming=True, total_rows=5, revision="v2")
    assert "pairs.csv (csv) is indexed; not used for it: --train_pairs, --data_revision, --streaming." in caplog.text


def test_streams_refuse_what_needs_a_length(tmp_path, png):
    write_parquet(tmp_path / "a.parquet", [png()], text=["x"])
    options = {"image_column": "image", "caption_column": "text", "streaming": True}
    for wrong, message in (({"limit": 5}, "--train_subset"), ({"noise_share": 0.5}, "without streaming")):
        with pytest.raises(InputError, match=message):
            open_pairs(str(tmp_path / "a.parquet"), **options, **wrong)


def test_check_readable(tmp_path, png):
    (tmp_path / "good.png").write_bytes(png())
    rows = "".join(f"gone{i}.png,a dog\n" for i in range(5))
    source = open_pairs(write_csv(tmp_path, "image_path,text_content\n" + rows + "good.png,a cat\n"))
    check_readable(source)
    with pytest.raises(InputError, match=r"no readable image in the first 5 rows \(first: missing_file: '.*gone0\.png"):
        check_readable(source, rows=5)
    blank = open_pairs(write_csv(tmp_path, "image_path,text_content\ngood.png, \n", "blank.csv"))
    with pytest.raises(InputError, match=r"no readable caption .*empty_caption: '0'"):
        check_readable(blank)
    write_parquet(tmp_path / "a.parquet", [b"no image"], text=["x"])
    options = {"image_column": "image", "caption_column": "text", "streaming": True}
    with pytest.raises(InputError, match="undecodable"):
        check_readable(open_pairs(str(tmp_path / "a.parquet"), **options))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder ../shared/data of real pairs beside the clone")
@pytest.mark.parametrize(
    ("spec", "options", "rows", "caption"),
    [
        ("emoji/emoji.parquet", {"image_column": "png", "caption_column": "txt"}, 8198, "camera"),
        ("emoji/wds_small", {}, 500, "camera"),
        (
            "photos/coco_cc_mini/captions.csv",
            {"image_column": "image", "caption_column": "caption"},
            255,
            "A man is in a kitchen making pizzas.",
        ),
    ],
)
def test_real_data(spec, options, rows, caption):
    if spec.endswith("captions.csv"):
        options = {**options, "image_root": SHARED / "photos/coco_cc_mini/images"}
    source = open_pairs(str(SHARED / spec), **options)
    assert len(source) == rows and source.problems == []
    assert clean_caption(source[0].caption) == caption
    for index in (0, rows // 2, rows - 1):
        assert decode_image(source[index].image).mode == "RGB"
    check_readable(source)
