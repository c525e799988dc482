"""The model that a run starts from is pinned: to a commit, if it comes from the Hub."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from ncu_hf.loading import loaded_commit

COMMIT = "1" * 40


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_model_of_the_hub_is_pinned_to_the_commit_that_was_loaded(revision, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert loaded_commit("me/clip", revision) == revision
    cached = tmp_path / "models--me--clip"
    for path, text in {f"snapshots/{COMMIT}/config.json": "{}", f"refs/{revision or 'main'}": COMMIT}.items():
        (cached / path).parent.mkdir(parents=True)
        (cached / path).write_text(text)
    assert loaded_commit("me/clip", revision) == COMMIT


def test_a_folder_has_no_commit(tmp_path):
    assert loaded_commit(tmp_path, None) is None
