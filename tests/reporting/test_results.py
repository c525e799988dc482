import pytest

from ncu_hf.reporting.results import before_after, publishable


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
    ],
)
def test_text(text, expected):
    assert publishable(text) == expected
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


def test_before_after_groups_by_measure():
    before = {"retrieval": {"x": 1}, "similarity": {"y": 1}, "zero_shot": {"colour": {"z": 1}}}
    after = {"retrieval": {"x": 2}, "similarity": {"y": 2}, "zero_shot": {"colour": {"z": 2}, "shape": {"z": 3}}}
    assert before_after(before, after) == {
        "retrieval": {"before": {"x": 1}, "after": {"x": 2}},
        "similarity": {"before": {"y": 1}, "after": {"y": 2}},
        "zero_shot": {"colour": {"before": {"z": 1}, "after": {"z": 2}}, "shape": {"after": {"z": 3}}},
    }
    assert before_after(None, before)["retrieval"] == {"after": {"x": 1}}
