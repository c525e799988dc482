import json
import math

import pytest

from ncu_hf.reporting.results import before_after, finite, publishable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/data/train.csv", "train.csv"),
        ("/home/my name/data/train.csv", "train.csv"),
        ("pairs of /home/me/data/train.csv, shuffled", "pairs of train.csv, shuffled"),
        ("--model=/mnt/a/b --x '/c/d'", "--model=b --x 'd'"),
        ("file:///mnt/a/b.parquet", "b.parquet"),
        ("path:/mnt/a/b.parquet", "path:b.parquet"),
        ("~/data/x.csv", "x.csv"),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("hf://datasets/a/b", "hf://datasets/a/b"),
        (
            "--train_data 'https://me:pw@host/a-{0..9}.tar?sig=x&t=1' --x 2",
            "--train_data 'https://host/a-{0..9}.tar' --x 2",
        ),
        ("R@1/5/10 and 3 / 4", "R@1/5/10 and 3 / 4"),
        ("outputs/run/model", "outputs/run/model"),
        ("use hf_abcdefghijklmnopQRST now", "use  now"),
        ("api_org_abcdefghijklmnopQRST", ""),
        ("file \udcff.png", "file ?.png"),
    ],
)
def test_text(text, expected):
    assert publishable(text) == expected
    if expected:
        assert publishable({"a": [text]}) == {"a": [expected]}


def test_empty_values_and_secrets_are_dropped():
    run = {
        "a": None,
        "b": {"c": None},
        "d": "",
        "hub_token": "x",
        "token": "x",
        "api_key": "x",
        "zero": 0,
        "no": False,
        "freeze_token_embedding": True,
        "list": [None, 1],
    }
    assert publishable(run) == {"zero": 0, "no": False, "freeze_token_embedding": True, "list": [1]}


def test_numbers_that_are_not_finite_are_dropped_and_an_interval_is_whole_or_not_there():
    run = {"a": math.nan, "b": {"c": math.inf}, "interval": {"x": [0.1, math.nan], "y": [0.1, 0.2]}, "d": -1e300}
    kept = publishable(run)
    assert kept == {"interval": {"y": [0.1, 0.2]}, "d": -1e300}
    json.dumps(kept, allow_nan=False)


def test_folders_in_keys_are_shortened_and_no_set_is_lost():
    sets = {"/home/me/a/test": 1, "/home/you/b/test": 2, "held-out pairs": 3, 4: 5}
    assert publishable(sets) == {"test": 1, "test (2)": 2, "held-out pairs": 3, 4: 5}


def test_a_copy_for_publication_can_be_made_twice(run):
    once = publishable(run)
    assert publishable(once) == once != run


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (math.nan, None), (-math.inf, None), (None, None), ("0.5", None), (True, None)],
)
def test_finite(value, expected):
    assert finite(value) == expected
    assert expected is None or type(finite(value)) is float


def test_before_after_groups_by_set():
    before = {
        "retrieval": {"pairs": {"x": 1}},
        "similarity": {"y": 1},
        "zero_shot": {"colour": {"z": 1}, "gone": {"z": 9}},
    }
    after = {
        "retrieval": {"pairs": {"x": 2}},
        "similarity": {"y": 2},
        "zero_shot": {"colour": {"z": 2}, "shape": {"z": 3}},
        "linear_probe": {"colour": {"p": 1}},
    }
    assert before_after(before, after) == {
        "retrieval": {"pairs": {"before": {"x": 1}, "after": {"x": 2}}},
        "similarity": {"before": {"y": 1}, "after": {"y": 2}},
        "zero_shot": {"colour": {"before": {"z": 1}, "after": {"z": 2}}, "shape": {"after": {"z": 3}}},
        "linear_probe": {"colour": {"after": {"p": 1}}},
    }
    assert before_after(None, after)["retrieval"] == {"pairs": {"after": {"x": 2}}}
    assert before_after(None, {}) == {}
