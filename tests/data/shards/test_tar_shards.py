"""Tars read as shards: from any sample, forwards only, cut or damaged anywhere, hostile."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from dataclasses import dataclass, field

import pytest

from ncu_hf.data.files import LocalFile
from ncu_hf.data.shards.base import Entry
from ncu_hf.data.shards.tar_samples import TarLayout
from ncu_hf.data.shards.tar_shards import TarShard
from ncu_hf.data.sources.archives import TarSource
from ncu_hf.errors import InputError, TrainingStopped

BEGIN = Entry()
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


class Forwards(io.BytesIO):
    """A handle that fails if a byte is read twice or it goes back, and remembers which bytes were read."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.ranges: list[tuple[int, int]] = []
        self.reached = 0

    def read(self, count: int = -1) -> bytes:
        begin = self.tell()
        assert begin >= self.reached, f"byte {begin} again, after {self.reached}"
        data = super().read(count)
        self.reached = begin + len(data)
        self.ranges.append((begin, self.reached))
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        assert whence == 0 and position >= self.reached, f"back to {position} from {self.reached}"
        return super().seek(position)


@dataclass
class Memory:
    """A `Location` of bytes."""

    data: bytes
    size: int | None = None
    name: str = "a.tar"
    handles: list[Forwards] = field(default_factory=list)

    def open(self) -> Forwards:
        self.handles.append(Forwards(self.data))
        return self.handles[-1]


def tar(members: list[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.GNU_FORMAT, **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape", **options) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def webdataset(count: int, prefix: str = "") -> list[tuple[str, bytes]]:
    """Members as `webdataset.TarWriter` stores samples of cc3m-wds: sorted by extension."""
    members = []
    for i in range(count):
        fields = {"key": f"{i:09d}", "url": f"http://x/{i}", "caption": f"caption {i}", "mismatched": i % 2}
        members.append((f"{prefix}{i:09d}.jpg", bytes([i]) * (600 + 100 * i)))
        members.append((f"{prefix}{i:09d}.json", json.dumps(fields).encode()))
        members.append((f"{prefix}{i:09d}.txt", f"caption {i}".encode()))
    return members


def shard(data: bytes, layout: TarLayout | None = None, known: bool = True) -> TarShard:
    return TarShard(Memory(data, len(data) if known else None), layout or TarLayout())


def rows(opened: TarShard, start: Entry = BEGIN, first: int = 0, problems: list | None = None) -> list:
    return list(opened.read(start, first, [] if problems is None else problems))


LONG = {"": "", "long": "folder/" + "x" * 80 + "/" + "y" * 60 + "/", "ü": "ordner-ü/"}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prefix", LONG)
@pytest.mark.parametrize("known", [True, False])
def test_reading_from_any_sample_gives_the_tail(format, prefix, known):
    opened = shard(tar(webdataset(7, LONG[prefix]), FORMATS[format]), known=known)
    problems = []
    everything = rows(opened, problems=problems)
    assert [row.number for row in everything] == list(range(7)) and problems == []
    for i, row in enumerate(everything):
        assert row.record.key == f"{LONG[prefix]}{i:09d}" and row.record.image == bytes([i]) * (600 + 100 * i)
        assert row.record.caption == f"caption {i}".encode() and row.record.mismatched is bool(i % 2)
        assert row.record.fault is None
        assert rows(opened, row.following, i + 1) == everything[i + 1 :]
        assert rows(opened, row.following, i + 3) == everything[i + 3 :]
        assert rows(opened, BEGIN, i) == everything[i:]
        assert opened.count(row.following, []) == 7
    assert opened.count(BEGIN, []) == 7 and opened.estimate_rows() == (7 if known else None)
    assert opened.rows is None and opened.name == "a.tar"


@pytest.mark.parametrize(("format", "extended"), [("gnu", b"L"), ("pax", b"x")])
def test_entries_lie_before_the_header_of_a_long_name(format, extended):
    data = tar(webdataset(3, LONG["long"] + "z" * 120), FORMATS[format])
    for row in rows(shard(data))[:-1]:
        assert data[row.following.offset + 156 : row.following.offset + 157] == extended


@pytest.mark.parametrize("known", [True, False])
def test_payloads_of_skipped_rows_are_not_read(known):
    opened = shard(tar(webdataset(12)), known=known)
    assert [row.number for row in rows(opened, first=9)] == [9, 10, 11]
    read = opened.location.handles[-1].ranges
    opened.count(BEGIN, [])
    counted = opened.location.handles[-1].ranges
    everything = rows(opened)
    for ranges, stop in ((read, everything[8].following.offset), (counted, everything[11].following.offset)):
        assert max(end - begin for begin, end in ranges if begin < stop) == 512  # headers only


def test_nothing_before_the_entry_is_read():
    opened = shard(tar(webdataset(6)))
    entry = rows(opened)[3].following
    assert rows(opened, entry, 4)
    assert opened.location.handles[-1].ranges[0][0] == entry.offset


def test_estimate_reads_only_the_beginning():
    data = tar([(f"{i:04d}.{ext}", b"x" * 700) for i in range(500) for ext in ("jpg", "txt")])
    opened = shard(data)
    assert opened.estimate_rows() == pytest.approx(500, rel=0.02)
    assert opened.location.handles[-1].reached < len(data) / 6


def test_records_are_those_of_the_indexed_source(tmp_path):
    odd = [
        ("a.b/x.1.seg.png", b"one"),
        ("a.b/x.txt", b"1"),
        ("a.b/y.JPG", b"two"),
        ("a.b/.hidden.txt", b"no"),
        ("a.b/y.json", b'{"text_content": "2", "mismatched": true}'),
        ("README", b"no"),
        ("z.txt", b"3"),
        ("z.txt", b"4"),
        ("w.json", b"{"),
        ("v.png", b""),
        ("v.txt", b""),
        ("../../u.png", b"five"),
        ("/u.txt", b"absolute"),
        ("t\udcff.png", b"name"),
        ("t\udcff.txt", b"x" * 10_000),
    ]
    for members in (odd, webdataset(3)):
        for caption in ("text_content", "caption", "json"):
            path = tmp_path / f"{caption}{len(members)}.tar"
            path.write_bytes(tar([("0.jpg", b"i"), ("0.json", b'{"caption": "c", "mismatched": 0}'), *members]))
            source = TarSource([path], "x", "image_path", caption)
            opened = TarShard(LocalFile(path), TarLayout("image_path", caption))
            assert [row.record for row in rows(opened)] == [source[i] for i in range(len(source))]
    assert len(source) == 4


def test_first_sample_can_be_checked():
    opened = shard(tar(webdataset(2)))
    sample = opened.first_sample()
    assert list(sample.members) == ["jpg", "json", "txt"] and sample.contents["txt"] == b"caption 0"
    with pytest.raises(InputError, match=r"a\.tar: no member \.jpeg .*Did you mean 'jpg'\?"):
        TarLayout("jpeg").check("a.tar", sample.members, {})
    TarLayout("jpg", "txt").check("a.tar", sample.members, {})
    assert shard(tar([])).first_sample() is None


@pytest.mark.parametrize("known", [True, False])
def test_a_cut_at_any_byte_leaves_a_prefix_of_whole_samples(known):
    members = [(f"{i}.{ext}", b"x" * size) for i in range(3) for ext, size in (("jpg", 600), ("txt", 512))]
    data = tar(members)
    whole = [(row.number, row.record) for row in rows(shard(data))]
    ends = [2560, 5120, 7680]  # two headers, two blocks and one a sample
    for cut in range(0, 7680 + 1024, 1 if known else 7):
        opened, problems = shard(data[:cut], known=known), []
        found = rows(opened, problems=problems)
        assert [(row.number, row.record) for row in found] == whole[: sum(end <= cut for end in ends)], cut
        assert problems == ([("", "a.tar", "truncated_archive")] if cut < 7680 + 512 else []), cut
        if cut % 40 == 0:
            assert opened.count(BEGIN, []) == len(found)
            for row in found:
                assert rows(opened, row.following, row.number + 1) == found[row.number + 1 :]
                assert opened.count(row.following, []) == len(found)


@pytest.mark.parametrize("format", FORMATS)
def test_flipped_bytes_are_faults_and_never_errors(format):
    data = tar(webdataset(4, "x" * 120 + "/" if format != "ustar" else ""), FORMATS[format])
    generator = random.Random(0)
    damaged = 0
    for trial in range(300):
        broken = bytearray(data)
        for _ in range(generator.choice([1, 3, 30])):
            broken[generator.randrange(len(data) - 8000)] = generator.randrange(256)
        opened, problems = shard(bytes(broken), known=trial % 2 == 0), []
        found = rows(opened, problems=problems)
        assert [row.number for row in found] == list(range(len(found)))
        assert opened.count(BEGIN, []) == len(found)
        assert {problem.reason for problem in problems} <= {"damaged_archive", "truncated_archive"}
        assert len(problems) == 1 or len(found) >= 4
        damaged += bool(problems)
        for row in found:
            assert rows(opened, row.following, row.number + 1) == found[row.number + 1 :]
    assert damaged > 100


def header(name: str, kind: bytes, size: int, format: int = tarfile.GNU_FORMAT) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(format)


def pax_header(kind: bytes, **fields: str) -> bytes:
    lines = b""
    for name, value in fields.items():
        body = f" {name}={value}\n".encode()
        length = len(body) + 2
        length = len(body) + len(str(length))
        lines += str(length).encode() + body
    return header("pax", kind, len(lines)) + lines.ljust(512, b"\0")


@pytest.mark.parametrize(
    "hostile",
    [
        header("././@LongLink", b"L", 2**40),
        header("././@LongLink", b"L", 2**70),
        header("1.jpg", b"0", 2**86),
        header("1.jpg", b"0", -5),
        header("pax", b"x", -600),
        header("folder", b"5", 2**86) + header("device", b"3", 0) + header("odd", b"Q", 2**80),
        pax_header(b"x", size="-700") + header("1.jpg", b"0", 3),
        pax_header(b"x", size="9" * 60) + header("1.jpg", b"0", 3),
        pax_header(b"g", path="same.jpg"),
        pax_header(b"g", size="0"),
        pax_header(b"g", comment="x") * 3000,
        header("x", b"S", 10)[:482] + b"\1" + b"\0" * 29,
        b"\xff" * 512,
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_hostile_headers_end_the_archive_there(hostile, known):
    before = tar(webdataset(2))[: 2 * 3 * 1024 + 2 * 512]
    opened, problems = shard(before + hostile + tar(webdataset(1)), known=known), []
    assert opened.count(BEGIN, []) == len(rows(opened, problems=problems)) == 2
    assert len(problems) == 1 and problems[0].reason in ("damaged_archive", "truncated_archive")


def test_global_headers_that_move_nothing_are_passed_over():
    data = tar(webdataset(3), tarfile.PAX_FORMAT, pax_headers={"comment": "made by x"})
    assert data[156:157] == b"g"
    everything = rows(shard(data))
    assert len(everything) == 3 and rows(shard(data), everything[0].following, 1) == everything[1:]


def test_links_sparse_files_and_folders_are_no_members():
    link, folder = tarfile.TarInfo("0.png"), tarfile.TarInfo("f.jpg")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
    hard = tarfile.TarInfo("0.jpeg")
    hard.type, hard.linkname = tarfile.LNKTYPE, "0.jpg"
    everything = rows(shard(tar([(link, b""), (hard, b""), ("0.jpg", b"i"), (folder, b""), ("0.txt", b"t")])))
    assert [(row.record.image, row.record.caption) for row in everything] == [(b"i", b"t")]


def test_what_follows_the_end_is_not_lost_silently():
    data, problems = tar(webdataset(5)), []
    second = rows(shard(data))[1].following.offset
    hole = data[:second] + bytes(4096) + data[second + 4096 :]
    assert len(rows(shard(hole), problems=problems)) == 2
    assert len(rows(shard(data + data), problems=problems)) == 5
    assert problems == [("", "a.tar", "damaged_archive")] * 2
    assert len(rows(shard(data + bytes(100_000)), problems=problems)) == 5 and len(problems) == 2


def test_an_empty_tar_has_no_rows():
    problems = []
    opened = shard(tar([]))
    assert rows(opened, problems=problems) == [] and opened.count(BEGIN, []) == 0 and opened.estimate_rows() == 0
    assert problems == []
    assert rows(shard(b""), problems=problems) == [] and problems == [("", "a.tar", "truncated_archive")]


def test_a_compressed_tar_says_what_to_do(tmp_path):
    data = gzip.compress(tar(webdataset(2)))
    with pytest.raises(InputError, match=r"a\.tar: compressed with gzip\. Store the tar uncompressed"):
        rows(shard(data))
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"b\.tar: compressed with gzip"):
        TarSource([tmp_path / "b.tar"], "b", "image_path", "text_content")


def test_a_huge_image_is_not_loaded(tmp_path):
    size = 2**28 + 512  # 256 MiB are allowed
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(header("0.jpg", b"0", size))
        file.seek(size, 1)  # a hole: takes no room
        file.write(tar([("0.txt", b"text"), ("1.jpg", b"i"), ("1.txt", b"t")]))
    found = rows(TarShard(LocalFile(tmp_path / "a.tar"), TarLayout()))
    assert [(row.record.fault, row.record.image) for row in found] == [("too_large", None), (None, b"i")]


@pytest.mark.parametrize("error", [InputError, TrainingStopped, OSError])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_errors_of_the_handle_come_through(monkeypatch, error, after):
    reads = iter(range(100))

    def read(self, count=-1):
        if next(reads) == after:
            raise error("x: no answer")
        return io.BytesIO.read(self, count)

    monkeypatch.setattr(Forwards, "read", read)
    problems = []
    with pytest.raises(error, match="no answer"):
        rows(shard(tar(webdataset(3))), problems=problems)
    assert problems == []
