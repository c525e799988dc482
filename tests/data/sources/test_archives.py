"""WebDataset tars: what is a sample, which member is what, and archives that are cut, damaged or hostile."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from ncu_hf.data.decoding import clean_caption
from ncu_hf.data.files import expand
from ncu_hf.data.sources.open import open_pairs
from ncu_hf.errors import InputError


def texts(source) -> list[str]:
    return [clean_caption(source[i].caption) for i in range(len(source))]


def test_tars_by_folder_glob_and_braces(tmp_path, png, write_tar, samples):
    write_tar(tmp_path / "shard-000.tar", samples(0, 3))
    write_tar(tmp_path / "shard-001.tar", samples(3, 5))
    for spec in (tmp_path, tmp_path / "*.tar", tmp_path / "shard-{000..001}.tar"):
        source = open_pairs(str(spec))
        assert texts(source) == [f"caption {i}" for i in range(5)] and source.problems == []
        assert [source[i].image for i in range(5)] == [png(i) for i in range(5)]
        assert [source[i].key for i in (0, 4)] == ["0000", "0004"]
        assert [source.shard_of(i) for i in (2, 3)] == ["shard-000.tar", "shard-001.tar"]
        assert [clean_caption(caption) for caption in source.captions()] == texts(source)
    assert len(open_pairs(str(tmp_path / "shard-000.tar"))) == 3


def test_tar_members_are_grouped_as_in_webdataset(tmp_path, png, write_tar):
    members = [
        ("a.b/x.1.seg.png", png(1)),  # key up to the first dot of the base name
        ("a.b/x.txt", b"one"),
        ("a.b/y.jpg", png(2)),
        ("a.b/.hidden.txt", b"no"),
        ("a.b/y.json", json.dumps({"text_content": "two", "mismatched": True}).encode()),
        ("README", b"no"),
        ("z.txt", b"three"),
    ]
    source = open_pairs(write_tar(tmp_path / "a.tar", members))
    assert [source[i].key for i in range(3)] == ["a.b/x", "a.b/y", "z"]
    assert [source[i].image for i in range(3)] == [png(1), png(2), None]
    assert [source[i].caption for i in range(3)] == [b"one", "two", b"three"]


def test_tar_columns(tmp_path, png, write_tar):
    fields = json.dumps({"alt": "from json", "mismatched": 1}).encode()
    members = [("a.png", png(0)), ("a.jpg", png(1)), ("a.txt", b"text"), ("a.cap", b"cap"), ("a.json", fields)]
    spec = write_tar(tmp_path / "a.tar", members)
    assert open_pairs(spec)[0].caption == b"text" and open_pairs(spec)[0].image == png(0)
    assert open_pairs(spec, caption_column="alt")[0].caption == "from json"
    assert open_pairs(spec, caption_column="cap", image_column="jpg")[0].caption == b"cap"
    assert open_pairs(spec, image_column="jpg")[0].image == png(1)
    assert open_pairs(spec)[0].mismatched is True
    with pytest.raises(InputError, match=r"'al' .*Did you mean 'alt'\? Members and fields: png, jpg, .*alt"):
        open_pairs(spec, caption_column="al")
    with pytest.raises(InputError, match=r"no member \.webp .*Members: png"):
        open_pairs(spec, image_column="webp")


@pytest.mark.parametrize("where", ["header", "data", "boundary"])
def test_truncated_tar_keeps_what_lies_before_the_cut(tmp_path, where, write_tar, samples):
    path = Path(write_tar(tmp_path / "a.tar", samples(0, 10)))
    blocks = 2 * 5 * 2 * 512  # 5 samples of 2 members of a header block and a data block
    path.write_bytes(path.read_bytes()[: {"header": blocks + 100, "data": blocks + 520, "boundary": blocks}[where]])
    source = open_pairs(str(path))
    assert texts(source) == [f"caption {i}" for i in range(len(source))] and len(source) == 5
    assert source.problems == [("", "a.tar", "truncated_archive")]


def test_damaged_tar_keeps_what_lies_before(tmp_path, write_tar, samples):
    path = Path(write_tar(tmp_path / "a.tar", samples(0, 4)))
    data = bytearray(path.read_bytes())
    data[2 * 2 * 2 * 512 : 2 * 2 * 2 * 512 + 512] = b"\x07" * 512
    path.write_bytes(data)
    source = open_pairs(str(path))
    assert texts(source) == ["caption 0", "caption 1"]
    assert source.problems == [("", "a.tar", "damaged_archive")]


def test_tar_that_is_none(tmp_path, write_tar, samples):
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(InputError, match=r"no sample in 1 tar\(s\); a\.tar: damaged_archive"):
        open_pairs(str(tmp_path / "a.tar"))
    write_tar(tmp_path / "b.tar", samples(0, 2))
    source = open_pairs(str(tmp_path / "*.tar"))
    assert len(source) == 2 and [problem.shard for problem in source.problems] == ["a.tar"]


def test_nothing_of_an_archive_reaches_the_disk(tmp_path, png):
    evil = "../../evil"
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, data in ((f"{evil}.png", png(0)), (f"{evil}.txt", b"x"), ("/abs.png", png(1)), ("/abs.txt", b"y")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = open_pairs(str(path))
    assert [(source[i].key, source[i].image) for i in range(2)] == [(evil, png(0)), ("abs", png(1))]
    assert len(source) == 2
    assert [entry.name for entry in folder.iterdir()] == ["a.tar"]


def test_broken_json_members_are_missing_captions(tmp_path, png, write_tar):
    bad = [b"{", b"[1]", b"\xff", b"[" * 100_000, b""]
    members = [("a.png", png()), ("a.json", b'{"text": "x"}')]
    for i, data in enumerate(bad):
        members += [(f"{i}.png", png()), (f"{i}.json", data)]
    source = open_pairs(write_tar(tmp_path / "a.tar", members), caption_column="text")
    assert [source[i].caption for i in range(len(source))] == ["x"] + [None] * len(bad)


def test_brace_pattern_with_a_hole(tmp_path, write_tar, samples):
    write_tar(tmp_path / "shard-0.tar", samples(0, 1))
    with pytest.raises(InputError, match=r"shard-1\.tar does not exist"):
        open_pairs(str(tmp_path / "shard-{0..1}.tar"))
    with pytest.raises(InputError, match="must go up"):
        open_pairs(str(tmp_path / "shard-{5..1}.tar"))
    assert expand(str(tmp_path / "none-*.tar")) == []
