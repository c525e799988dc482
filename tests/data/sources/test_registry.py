from __future__ import annotations

import dataclasses
import re

import pytest

from ncu_hf.config import DataArguments
from ncu_hf.data.sources import open as sources
from ncu_hf.data.sources.hub import HubSplit
from ncu_hf.data.sources.open import open_pairs
from ncu_hf.data.sources.registry import KNOWN_SETS, known_set
from ncu_hf.data.sources.remote import RemoteData
from ncu_hf.errors import InputError


@pytest.fixture
def asked(monkeypatch):
    """Answers for the Hub with 4 tars, or parquet files for YFCC15M-R; what it was asked."""
    questions = []

    def find(spec, **place):
        questions.append((spec, place))
        kind = "parquet" if "YFCC" in spec else "webdataset"
        urls = [f"http://localhost/{i}" for i in range(4)]
        return RemoteData(
            spec, kind, urls, [100] * 4, ["images", "texts"], hub=HubSplit(spec, place["split"], "c" * 40)
        )

    monkeypatch.setattr(sources, "find_remote", find)
    return questions


@pytest.mark.parametrize(
    ("name", "repo", "pairs"),
    [("cc3m", "pixparse/cc3m-wds", 2_905_954), ("CC12M", "pixparse/cc12m-wds", 10_968_539)],
)
def test_a_name_is_enough(asked, name, repo, pairs):
    source = open_pairs(name)
    assert asked[0][0] == repo and asked[0][1]["streaming"] and source.name == repo
    assert source.expected_rows == pairs and source.estimated_rows(3) == pytest.approx(pairs / 4)
    layout = source.shards[0].layout
    assert (layout.image_column, layout.caption_column) == ("jpg", "txt")
    other = open_pairs(name, caption_column="json", total_rows=100, revision="v2", split="validation")
    assert other.shards[0].layout.caption_column == "json" and other.expected_rows == 100
    assert asked[1][1]["revision"] == "v2" and asked[1][1]["split"] == "validation"
    assert open_pairs(name, split="validation").expected_rows is None


def test_captions_of_yfcc_are_decoded(asked, monkeypatch):
    tokenizers = []
    monkeypatch.setattr("ncu_hf.data.sources.stored.caption_decoder", lambda name: tokenizers.append(name) or str)
    source = open_pairs("yfcc15m-r")
    open_pairs("yfcc15m-r", caption_tokenizer="./other")
    columns = source.shards[0].columns
    assert (columns.image, columns.caption, columns.decode_caption) == ("images", "texts", str)
    assert tokenizers == ["openai/clip-vit-base-patch32", "./other"] and source.expected_rows == 15_000_000


def test_a_file_of_that_name_wins(asked, tmp_path, monkeypatch, write_tar, samples):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cc3m").mkdir()
    write_tar(tmp_path / "cc3m" / "a.tar", samples(0, 3))
    assert len(open_pairs("cc3m")) == 3 and not asked
    assert known_set("cc3m") is None and known_set("cc12m") is KNOWN_SETS["cc12m"]


@pytest.mark.parametrize(("wrong", "right"), [("cc3", "cc3m"), ("yfcc15m", "yfcc15m-r"), ("CC-12M", "cc12m")])
def test_a_near_miss_gets_a_hint(wrong, right):
    with pytest.raises(InputError, match=re.escape(f"Did you mean '{right}'?")):
        open_pairs(wrong)


def test_a_name_takes_no_other_format(asked):
    with pytest.raises(InputError, match="leave --data_format csv out"):
        open_pairs("cc3m", data_format="csv")
    assert open_pairs("cc3m", data_format="hub").name == "pixparse/cc3m-wds" and len(asked) == 1


def test_the_help_names_all_known_sets():
    text = next(f.metadata["help"] for f in dataclasses.fields(DataArguments) if f.name == "train_data")
    assert all(name in text for name in KNOWN_SETS)
