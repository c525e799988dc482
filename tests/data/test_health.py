from __future__ import annotations

import json

import pytest

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.data.health import MAX_EXAMPLES, DataHealth, TooManyBadRecords
from ncu_hf.data.records import Skipped
from ncu_hf.errors import InputError


def batch(good: int, *bad: tuple[str, str]) -> dict:
    return {"keys": ["k"] * good, "skipped": [Skipped(key, "shard-0", reason) for key, reason in bad]}


def test_counts_by_reason_and_keeps_the_first_examples():
    health = DataHealth()
    health.update(batch(7, ("a", "truncated"), ("b", "truncated"), ("c", "empty_caption")))
    health.update(batch(3))
    assert (health.seen, health.skipped, health.reasons) == (13, 3, {"truncated": 2, "empty_caption": 1})
    assert health.bad_fraction == 3 / 13
    assert health.examples["truncated"][0] == ("a", "shard-0", "truncated")


def test_examples_are_bounded_and_not_repeated():
    health = DataHealth()
    for _ in range(2):
        health.update(batch(0, *((f"key{i}", "undecodable") for i in range(100))))
    assert health.reasons == {"undecodable": 200}
    assert [example.key for example in health.examples["undecodable"]] == [f"key{i}" for i in range(MAX_EXAMPLES)]


def test_ceiling_stops_after_100_records_or_at_the_end():
    health = DataHealth(max_bad_fraction=0.05)
    health.update(batch(89, *((str(i), "truncated") for i in range(10))))
    health.check()  # 99 records: too early
    with pytest.raises(TooManyBadRecords, match=r"10 of 99 .*truncated.*'0'.*5\.0%"):
        health.check(final=True)
    health.update(batch(1))
    with pytest.raises(TooManyBadRecords):
        health.check()


def test_ceiling_itself_is_allowed():
    health = DataHealth(max_bad_fraction=0.05)
    health.update(batch(95, *((str(i), "truncated") for i in range(5))))
    health.check()
    health.check(final=True)
    DataHealth(0).check(final=True)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_ceiling_outside_the_unit_interval_is_refused(fraction):
    with pytest.raises(InputError, match="max_bad_fraction"):
        DataHealth(fraction)


def test_state_goes_through_json_and_continues():
    health = DataHealth(problems=[Skipped("", "a.tar", "truncated_archive")])
    health.update(batch(5, ("a", "truncated")))
    state = json.loads(json.dumps(health.state_dict()))
    resumed = DataHealth(problems=health.problems)
    resumed.load_state_dict(state)
    for each in (health, resumed):
        each.update(batch(1, ("b", "too_large")))
    assert resumed.state_dict() == health.state_dict()


def test_merge_adds_the_ranks():
    ranks = [DataHealth(), DataHealth()]
    ranks[0].update(batch(3, ("a", "truncated")))
    ranks[1].update(batch(2, ("b", "truncated"), ("c", "too_large")))
    whole = DataHealth()
    whole.merge([rank.state_dict() for rank in ranks])
    assert (whole.seen, whole.reasons) == (8, {"truncated": 2, "too_large": 1})
    assert [example.key for example in whole.examples["truncated"]] == ["a", "b"]


def test_table_and_file(tmp_path):
    health = DataHealth(problems=[Skipped("", "cut.tar", "truncated_archive")])
    health.update(batch(1, ("a|b\nc", "truncated"), ("d", "too_large"), ("e", "too_large")))
    lines = health.summary_table().splitlines()
    assert lines[2:4] == ["| seen | 4 | |", "| skipped: too_large | 2 | d (shard-0) |"]
    assert lines[4] == "| skipped: truncated | 1 | a\\|b c (shard-0) |"
    assert "cut.tar" in lines[5] and len(lines) == 6
    health.save(tmp_path / "data_health.json")
    report = json.loads((tmp_path / "data_health.json").read_text())
    assert (report["seen"], report["skipped"], report["bad_fraction"]) == (4, 3, 0.75)
    assert report["problems"] == [["", "cut.tar", "truncated_archive"]]


def test_a_file_name_that_is_not_utf8(tmp_path):
    name = "caf\udce9.png"  # as os.walk gives the bytes caf\xe9
    health = DataHealth()
    health.update(batch(0, (name, "undecodable")))
    assert "caf\\udce9.png" in health.summary_table().encode("utf-8").decode("utf-8")
    write_json(tmp_path / "state.json", health.state_dict())
    restored = DataHealth()
    restored.load_state_dict(read_json(tmp_path / "state.json"))
    assert restored.examples == health.examples
