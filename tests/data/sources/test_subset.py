from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ncu_hf.data.shards.base import Entry, Shard, StoredRow
from ncu_hf.data.sources.open import open_pairs
from ncu_hf.data.sources.stream_source import StreamSource
from ncu_hf.data.sources.subset import Subset, take_subset_of_stream
from ncu_hf.errors import InputError


@pytest.mark.parametrize(
    ("text", "share", "count"),
    [
        ("0.5", 0.5, None),
        (".25", 0.25, None),
        ("1.0", 1.0, None),
        ("100%", 1.0, None),
        ("12.5%", 0.125, None),
        ("1e-05", 1e-5, None),
        ("1", None, 1),
        ("500000", None, 500_000),
        ("500_000", None, 500_000),
        ("2,905,954", None, 2_905_954),
    ],
)
def test_shares_and_counts(text, share, count):
    assert Subset.parse(text, 3) == Subset(share, count, 3)


@pytest.mark.parametrize(
    "text", ["0", "0.0", "1.5", "-1", "0,5", "101%", "half", "", "nan", "0%", "5.", "1e5", "50 %x"]
)
def test_what_is_neither(text):
    with pytest.raises(InputError, match=r"--train_subset .*0\.5, 50%.*500000"):
        Subset.parse(text, 0)


@pytest.fixture
def table(tmp_path, png):
    """A folder of parquet files with 7, 0, 5, 11 and 4 rows; its captions are 0 to 26."""
    number = 0
    for part, rows in enumerate((7, 0, 5, 11, 4)):
        texts = [str(number + i) for i in range(rows)]
        columns = {"image": pa.array([png()] * rows, pa.binary()), "text": pa.array(texts, pa.string())}
        pq.write_table(pa.table(columns), tmp_path / f"{part}.parquet")
        number += rows

    def open_table(**options):
        return open_pairs(str(tmp_path), image_column="image", caption_column="text", **options)

    return open_table


def captions(source) -> list[int]:
    if not isinstance(source, StreamSource):
        return [int(source[i].caption) for i in range(len(source))]
    rows = []
    for shard, first, stop in source.parts:
        found = [int(row.record.caption) for row in source.shards[shard].read(Entry(), first, source.problems)]
        assert stop is None or len(found) >= stop - first
        rows += found if stop is None else found[: stop - first]
    return rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("asked", "rows"), [("0.5", 14), ("13", 13), ("1", 1), ("100%", 27), ("27", 27), ("1e-3", 1)])
def test_exactly_as_many_as_asked_for(table, streaming, asked, rows):
    found = {seed: captions(table(streaming=streaming, subset=asked, subset_seed=seed)) for seed in range(6)}
    for numbers in found.values():
        assert len(numbers) == len(set(numbers)) == rows and numbers == sorted(numbers)
    assert found[3] == captions(table(streaming=streaming, subset=asked, subset_seed=3))
    assert (len({tuple(numbers) for numbers in found.values()}) == 1) == (rows == 27)


@pytest.mark.parametrize("streaming", [False, True])
def test_it_is_recorded(table, streaming):
    whole = table(streaming=streaming)
    source, other, twice = (table(streaming=streaming, subset="10", subset_seed=seed) for seed in (0, 1, 0))
    assert source.fingerprint == twice.fingerprint
    assert len({source.fingerprint, other.fingerprint, whole.fingerprint}) == 3
    assert source.description["rows"] == 10 and "subset" not in whole.description
    described = source.description["subset"]
    assert described.items() >= {"count": 10, "seed": 0}.items()
    assert source.description["name"] == whole.description["name"]


@pytest.mark.parametrize("streaming", [False, True])
def test_more_than_there_is(table, streaming):
    with pytest.raises(InputError, match="asks for 28 pairs, the data has 27"):
        table(streaming=streaming, subset="28")


def test_order_of_limit_subset_and_noise(table):
    source = table(limit=10, subset="6", noise_share=0.5)
    assert set(captions(source)) <= set(range(10)) and len(source) == 6
    assert sum(source[i].mismatched for i in range(6)) == 3
    assert source.description["subset"]["count"] == 6 and source.description["fingerprint"] == source.fingerprint


class Tar(Shard):
    """A shard whose length is only known to who counts it."""

    size = 100
    rows = None

    def __init__(self, name: int, length: int, counted: list[int]):
        self.name, self.length, self.counted = str(name), length, counted

    def read(self, start, first, problems):
        yield from (StoredRow(i, None, Entry(i + 1)) for i in range(first, self.length))

    def count(self, start, problems):
        self.counted.append(int(self.name))
        return self.length

    def estimate_rows(self):
        return 50.0


def stream(lengths: list[int], total: int | None = None) -> tuple[StreamSource, list[int]]:
    counted: list[int] = []
    shards = [Tar(i, length, counted) for i, length in enumerate(lengths)]
    return StreamSource(shards, name="x", format="x", fingerprint="x", total_rows=total), counted


@pytest.mark.parametrize("asked", ["0.25", "2500"])
def test_whole_shards_where_that_is_near_enough(asked):
    source, counted = stream([100] * 100, total=10_000)
    subset = take_subset_of_stream(source, Subset.parse(asked, 7))
    assert len(subset.parts) == 25 and not counted and subset.rows is None and subset.expected_rows == 2500
    assert all(part[1:] == (0, None) for part in subset.parts)
    near = take_subset_of_stream(source, Subset.parse("2510", 7))
    assert near.parts == subset.parts and near.fingerprint != subset.fingerprint


def test_else_the_last_shard_is_counted_and_cut():
    source, counted = stream([100] * 10, total=1000)
    subset = take_subset_of_stream(source, Subset.parse("250", 7))
    assert len(counted) == 1 and len(subset.parts) == 3
    assert [stop for shard, _, stop in subset.parts if shard in counted] == [50]
    # Estimates may be far off: nothing behind the end of a shard is asked for.
    source, counted = stream([10] * 10, total=1000)
    subset = take_subset_of_stream(source, Subset.parse("250", 7))
    assert [stop for shard, _, stop in subset.parts if shard in counted] == [10]
    source, counted = stream([30] * 4)
    subset = take_subset_of_stream(source, Subset.parse("0.1", 7))
    assert len(subset.parts) == 1 and subset.rows == 20 and len(counted) == 1


def test_more_than_is_stated_is_refused():
    source, counted = stream([100] * 3, total=300)
    with pytest.raises(InputError, match=r"asks for 301 pairs, the data has about 300.*--train_pairs"):
        take_subset_of_stream(source, Subset.parse("301", 0))
    assert len(take_subset_of_stream(source, Subset.parse("300", 0)).parts) == 3 and not counted


def test_more_than_the_first_shard_lets_expect_takes_all(caplog):
    source, counted = stream([100] * 3)
    source.first_rows = 100.0
    assert len(take_subset_of_stream(source, Subset.parse("500", 0)).parts) == 3 and not counted
    assert "the data has about 300" in caplog.text


def test_shards_outside_of_the_subset_are_never_opened(tmp_path, write_tar, samples):
    for part in range(8):
        write_tar(tmp_path / f"{part}.tar", samples(part * 4, part * 4 + 4))
    source = open_pairs(str(tmp_path / "*.tar"), streaming=True, total_rows=32, subset="0.25", subset_seed=1)
    used = {shard for shard, _, _ in source.parts}
    assert len(used) == 2
    for shard in set(range(8)) - used:
        (tmp_path / f"{shard}.tar").unlink()
    assert sum(1 for shard in used for _ in source.shards[shard].read(Entry(), 0, [])) == 8
