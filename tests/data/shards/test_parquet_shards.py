"""Parquet files read as shards: by row group, damaged pages, other schemas, errors of the network."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ncu_hf.data.files import LocalFile
from ncu_hf.data.shards.base import Entry
from ncu_hf.data.shards.parquet_shards import ParquetShard
from ncu_hf.data.sources.tables import Columns
from ncu_hf.errors import InputError, TrainingStopped

BEGIN = Entry()
PAIRS = Columns("image", "text")


class Recorded(io.BytesIO):
    """A handle that remembers which bytes were read, and can fail at a read."""

    def __init__(self, data: bytes, error: Exception | None, fail_at: int):
        super().__init__(data)
        self.ranges: list[tuple[int, int]] = []
        self._error, self._fail_at = error, fail_at

    def read(self, count: int = -1) -> bytes:
        if self._error is not None and len(self.ranges) == self._fail_at:
            raise self._error
        begin = self.tell()
        data = super().read(count)
        self.ranges.append((begin, begin + len(data)))
        return data


@dataclass
class Memory:
    """A `Location` of bytes."""

    data: bytes
    name: str = "a.parquet"
    error: Exception | None = None
    fail_at: int = 0
    handles: list[Recorded] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self) -> Recorded:
        self.handles.append(Recorded(self.data, self.error, self.fail_at))
        return self.handles[-1]


def stored(table: pa.Table, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def pairs(count: int, size: int = 300) -> pa.Table:
    images = [random.Random(i).randbytes(size) for i in range(count)]
    return pa.table({"image": images, "text": [f"caption {i}" for i in range(count)]})


def shard(data: bytes, columns: Columns = PAIRS) -> ParquetShard:
    return ParquetShard(Memory(data), columns)


def rows(opened: ParquetShard, first: int = 0, problems: list | None = None) -> list:
    return list(opened.read(BEGIN, first, [] if problems is None else problems))


def faults(found: list) -> list[str | None]:
    return [row.record.fault for row in found]


@pytest.mark.parametrize("group", [1, 7, 70, 1000])
def test_reading_from_any_row_gives_the_tail(group):
    table, problems = pairs(150), []
    opened = shard(stored(table, row_group_size=group))
    everything = rows(opened, problems=problems)
    assert [row.number for row in everything] == list(range(150)) and problems == []
    assert [row.record.image for row in everything] == table["image"].to_pylist()
    assert [row.record.caption for row in everything] == table["text"].to_pylist()
    assert [row.record.key for row in everything] == [f"a.parquet:{i}" for i in range(150)]
    assert set(faults(everything)) == {None}
    for first in (0, 1, 6, 7, 8, 63, 64, 65, 70, 149, 150, 200):
        assert rows(opened, first) == everything[first:]
    for i in (0, 64, 149):
        entry = everything[i].following
        assert entry == (i + 1, 0)
        assert list(opened.read(entry, i + 1, [])) == everything[i + 1 :]
        assert opened.count(entry, []) == 150
    assert opened.estimate_rows() == 150 and opened.rows is None


def test_row_groups_before_the_first_row_are_not_read():
    data = stored(pairs(300, size=2000), row_group_size=50, compression="none")
    opened = shard(data)
    assert len(rows(opened, 210)) == 90
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(4)
    ranges = sorted(opened.location.handles[-1].ranges[2:])  # behind the footer
    assert ranges[0][0] >= group.column(0).dictionary_page_offset
    assert sum(end - begin for begin, end in ranges) < len(data) / 2
    opened.count(BEGIN, [])
    assert sum(end - begin for begin, end in opened.location.handles[-1].ranges) < 70_000


def test_known_rows_open_nothing():
    opened = ParquetShard(Memory(b""), PAIRS, rows=7)
    assert (opened.count(BEGIN, []), opened.estimate_rows(), opened.location.handles) == (7, 7, [])


def test_rows_of_the_datasets_writer(tmp_path, png):
    columns = {
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(30)],
        "texts": [[49406, i, 49407] for i in range(30)],
        "key": [f"k{i}" for i in range(30)],
        "mismatched": [i % 3 == 0 for i in range(30)],
        "other": ["x"] * 30,
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=True))
    table.to_parquet(tmp_path / "a.parquet", batch_size=8)
    shared = Columns("image", "texts", "key", "mismatched", decode_caption=lambda ids: f"caption {ids[1]}")
    found = rows(ParquetShard(LocalFile(tmp_path / "a.parquet"), shared))
    for i, row in enumerate(found):
        record = row.record
        assert (record.key, record.image, record.caption) == (f"k{i}", png(i), f"caption {i}")
        assert record.mismatched is (i % 3 == 0) and record.fault is None
    assert len(found) == 30


@pytest.mark.parametrize(
    "image",
    [
        pa.array([b"x", None]),
        pa.array([b"x", None], pa.large_binary()),
        pa.array([b"x", None], pa.binary(1)),
        pa.array([b"x", None]).dictionary_encode(),
        pa.array([{"bytes": b"x", "path": None}, None]),
        pa.array([{"path": "p", "bytes": b"x"}, {"path": None, "bytes": None}]),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        pa.array(["t", None]),
        pa.array(["t", None], pa.large_string()),
        pa.array(["t", None]).dictionary_encode(),
    ],
)
def test_types_that_mean_the_same(image, text):
    found = rows(shard(stored(pa.table({"image": image, "text": text}))))
    assert [(row.record.image, row.record.caption, row.record.fault) for row in found] == [
        (b"x", "t", None), (None, None, None)
    ]  # fmt: skip


def test_paths_are_taken_from_the_root():
    data = stored(pa.table({"image": ["a.jpg", "/b.jpg"], "text": ["x", "y"]}))
    opened = ParquetShard(Memory(data), PAIRS, Path("/folder"))
    assert [row.record.image for row in rows(opened)] == ["/folder/a.jpg", "/b.jpg"]


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [b"x"] * 3},
        {"text": ["t"] * 3},
        {"image": [1, 2, 3], "text": ["t"] * 3},
        {"image": [[1]] * 3, "text": ["t"] * 3},
        {"image": [{"url": "x"}] * 3, "text": ["t"] * 3},
        {"image": [b"x"] * 3, "text": [{"en": "t"}] * 3},
        {"image": [b"x"] * 3, "text": [["t"]] * 3},
        {"image": [b"x"] * 3, "text": [True] * 3},
        {"other": [1, 2, 3]},
    ],
)
def test_a_changed_schema_is_a_fault_of_every_row(columns):
    opened, problems = shard(stored(pa.table(columns), row_group_size=2)), []
    found = rows(opened, problems=problems)
    assert faults(found) == ["schema_changed"] * 3 and problems == [] and opened.count(BEGIN, []) == 3
    assert [row.record.key for row in found] == [f"a.parquet:{i}" for i in range(3)]
    assert rows(opened, 2) == found[2:]


def test_two_columns_of_one_name_are_a_changed_schema():
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array(["a"]), pa.array(["b"])], ["image", "text", "text"])
    assert faults(rows(shard(stored(table)))) == ["schema_changed"]


def test_key_and_truth_may_be_missing_or_of_no_use():
    columns = Columns("image", "text", "key", "mismatched")
    without = {"image": [b"x"], "text": ["t"]}
    useless = {**without, "key": [[1]], "mismatched": [{"a": 1}]}
    for table in (without, useless):
        record = rows(shard(stored(pa.table(table)), columns))[0].record
        assert (record.key, record.mismatched, record.fault) == ("a.parquet:0", None, None)
    extra = rows(shard(stored(pa.table({**without, "key": ["k"], "mismatched": [True]}))))[0].record
    assert (extra.key, extra.mismatched) == ("a.parquet:0", None)


def test_text_that_is_not_utf8_costs_one_row():
    raw = pa.array([b"a", b"\xff\xfe", None, b"d"]).cast(pa.large_binary())
    text = pa.Array.from_buffers(pa.large_string(), 4, raw.buffers())
    found = rows(shard(stored(pa.table({"image": [b"x"] * 4, "text": text}))))
    assert faults(found) == [None, "caption_not_utf8", None, None]
    assert [row.record.caption for row in found] == ["a", None, None, "d"]


def damage(data: bytes, group: int, column: int, share: float) -> bytes:
    """The file with 20 bytes of a column of a row group overwritten, at this share of its length."""
    chunk = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(group).column(column)
    begin = chunk.data_page_offset + int(share * chunk.total_compressed_size)
    broken = bytearray(data)
    broken[begin : begin + 20] = random.Random(0).randbytes(20)
    return bytes(broken)


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"compression": "zstd"}, 0),
        ({"compression": "snappy"}, 0),
        ({"compression": "none", "write_page_checksum": True}, 0.8),
        ({"compression": "zstd", "write_page_checksum": True}, 0.8),
    ],
)
def test_a_corrupt_page_costs_the_rest_of_its_row_group(column, options, share):
    options["use_dictionary"] = False
    whole = stored(pairs(90), row_group_size=30, **options)
    opened, problems = shard(damage(whole, 1, column, share)), []
    found = rows(opened, problems=problems)
    assert faults(found) == [None] * 30 + ["corrupt_page"] * 30 + [None] * 30 and problems == []
    assert [row.number for row in found] == list(range(90)) and opened.count(BEGIN, []) == 90
    assert found[:30] + found[60:] == rows(shard(whole))[:30] + rows(shard(whole))[60:]
    assert found[45].record.key == "a.parquet:45" and found[45].record.image is None
    for first in (10, 40, 60, 75):
        assert rows(opened, first) == found[first:]


def test_rows_before_a_corrupt_page_are_kept():
    options = {"use_dictionary": False, "data_page_size": 4000, "write_batch_size": 8, "write_page_checksum": True}
    data = bytearray(stored(pairs(300), compression="none", **options))
    last = data.rfind(pairs(300)["image"][299].as_py())
    data[last : last + 100] = bytes(100)
    found = rows(shard(bytes(data)))
    assert faults(found) == [None] * 256 + ["corrupt_page"] * 44  # batches of 64
    assert rows(shard(bytes(data)), 270) == found[270:]


def test_flipped_bytes_keep_the_number_of_rows():
    data = stored(pairs(60), row_group_size=20)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    generator = random.Random(0)
    seen = set()
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(generator.choice([1, 5, 50])):
            broken[generator.randrange(4, footer)] = generator.randrange(256)
        opened, problems = shard(bytes(broken)), []
        found = rows(opened, problems=problems)
        assert [row.number for row in found] == list(range(60)) and problems == []
        assert rows(opened, 33) == found[33:]
        seen |= set(faults(found))
    assert "corrupt_page" in seen and None in seen


def test_a_file_that_is_none_has_no_rows():
    data = stored(pairs(20))
    for broken in (b"", b"hello" * 100, data[:-1], data[:1000], data[:-200] + bytes(192) + data[-8:]):
        opened, problems = shard(broken), []
        assert rows(opened, problems=problems) == [] and problems == [("", "a.parquet", "damaged_file")]
        assert opened.count(BEGIN, []) == 0


def test_damaged_footers_are_never_errors():
    data = stored(pairs(20), row_group_size=5)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    generator, damaged = random.Random(0), 0
    for _ in range(200):
        broken = bytearray(data)
        broken[generator.randrange(footer, len(data))] = generator.randrange(256)
        opened, problems = shard(bytes(broken)), []
        found = rows(opened, problems=problems)
        assert [row.number for row in found] == list(range(20)) or (found == [] and problems)
        assert len(found) == opened.count(BEGIN, [])
        damaged += bool(problems)
    assert damaged > 10


def test_an_empty_file_has_no_rows():
    problems = []
    assert rows(shard(stored(pairs(0))), problems=problems) == [] and problems == []


@pytest.mark.parametrize("error", [InputError("no answer"), TrainingStopped("no answer")])
def test_errors_of_the_network_come_through(error):
    data, problems = stored(pairs(300, size=20_000), row_group_size=100), []
    reads = len(shard_reads(data))
    assert reads > 6
    for fail_at in range(reads):
        opened = ParquetShard(Memory(data, error=error, fail_at=fail_at), PAIRS)
        with pytest.raises(type(error), match="no answer"):
            rows(opened, problems=problems)
    assert problems == []
    with pytest.raises(type(error), match="no answer"):
        ParquetShard(Memory(data, error=error), PAIRS).count(BEGIN, [])


def shard_reads(data: bytes) -> list[tuple[int, int]]:
    opened = shard(data)
    rows(opened)
    return opened.location.handles[-1].ranges
