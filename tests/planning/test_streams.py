"""The plan of a run on a stream."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from ncu_hf.data import StreamSource
from ncu_hf.data.shards.base import Shard
from ncu_hf.planning.data import plan_data
from ncu_hf.recipe import main


class Stored(Shard):
    """A shard that only tells about itself."""

    def __init__(self, name: str, rows: int | None, size: int | None):
        self.name, self.rows, self.size = name, rows, size

    def read(self, start, first, problems):
        raise AssertionError("a plan does not read it")

    count = read

    def estimate_rows(self) -> float:
        return 50.0


def stream(rows: list[int | None], **options: Any) -> StreamSource:
    shards = [Stored(f"{i}.tar", length, 1000 * (i + 1)) for i, length in enumerate(rows)]
    return StreamSource(shards, name="shards", format="webdataset", fingerprint="abc", **options)


def test_a_stream_of_known_lengths(prepare):
    data = plan_data(prepare(stream([30, 40, 31]), method="clip"))
    assert (data.samples, data.exact, data.tail) == (101, True, 5)
    assert (data.shards, data.all_shards, data.shard_bytes, data.by_density) == (3, 3, 6000, None)
    assert data.record_bytes == pytest.approx(6000 / 101)


def test_a_stream_of_unknown_lengths(prepare):
    data = plan_data(prepare(stream([None] * 3), method="clip", max_steps=2))
    assert (data.samples, data.exact, data.tail) == (300, False, None)  # 50 in the first, the others by size
    data = plan_data(prepare(stream([None] * 3, total_rows=1000), method="clip"))
    assert (data.samples, data.exact, data.by_density) == (1000, False, 300)


def test_a_subset_of_a_stream(prepare):
    data = plan_data(prepare(stream([30, 40, 31], parts=[(0, 0, 20), (2, 5, None)]), method="clip"))
    assert (data.samples, data.shards, data.all_shards, data.shard_bytes) == (20 + 26, 2, 3, 4000)


def test_density_of_a_subset(prepare):
    data = plan_data(prepare(stream([None] * 3, total_rows=1200, parts=[(2, 0, None)]), method="clip"))
    assert (data.samples, data.by_density) == (600, 150)  # half of the bytes


def test_a_subset_is_told(plan_of):
    plan = plan_of()
    data = replace(plan.data, shards=2, all_shards=9, subset={"count": 5000, "seed": 0, "shards": 2})
    printed = replace(plan, data=data).text()
    assert "5,000 pairs, chosen by seed 0\n" in printed and "2 of 9 shards, " in printed


@pytest.mark.parametrize(
    ("shards", "processes", "readers", "told"),
    [
        (12, 2, 2, "12 shards, 3 for each"),
        (11, 2, 1, "11 shards, 5 or 6 for each"),
        (2, 7, 1, "2 shards, each shared by 3 or 4 readers"),
        (1, 3, 1, "1 shard, each shared by 3 readers"),
    ],
)
def test_shards_for_each_reader(shards, processes, readers, told, plan_of):
    plan = plan_of()
    data = replace(plan.data, shards=shards, all_shards=shards, processes=processes, readers=readers)
    assert f"): {told}\n" in replace(plan, data=data).text()


def test_a_stream_is_planned_as_it_is_read(scenes, command, tmp_path, monkeypatch, capfd):
    flags = command(tmp_path / "run", streaming="true", train_subset="0.5", subset_seed=3)
    monkeypatch.setattr(sys, "argv", ["ncu.py", *flags, "--plan"])
    main({})
    printed = capfd.readouterr().out
    assert "  subset                    0.5 of the pairs, chosen by seed 3\n" in printed
    assert "48, as the shards tell" in printed
    assert "1 (1 process x 1): 1 shard, " in printed
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
