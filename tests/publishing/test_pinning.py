"""A model of the Hub is loaded from one commit, from that of its converted weights where its own are pickled."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import constants

from ncu_hf.errors import InputError
from ncu_hf.loading import load_clip, load_model

REPO = "them/clip"
BOT, TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
PICKLED = {"pytorch_model.bin": (b"pickled", True)}


@pytest.fixture
def files(clip_folder) -> dict[str, tuple[bytes, bool]]:
    return {path.name: (path.read_bytes(), path.suffix == ".safetensors") for path in clip_folder.iterdir()}


@pytest.fixture
def repo(hub, make_repository):
    hub.repos[REPO] = make_repository(private=False)
    return hub.repos[REPO]


def without_weights(files: dict) -> dict:
    return {name: file for name, file in files.items() if name != "model.safetensors"}


def propose(repo, author: str, title: str, files: dict) -> str:
    repo.proposals.append((author, title))
    return repo.add(f"refs/pr/{len(repo.proposals)}", files, f"{title} by {author}, {len(repo.proposals)}")


def same(found, expected) -> bool:
    states = found.state_dict(), expected.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_a_branch_is_pinned(revision, repo, files, clip_folder):
    repo.tags["v1"] = commit = repo.add("main", files, "model")
    loaded = load_model(REPO, revision)
    assert loaded.revision == commit and same(loaded.clip, load_clip(clip_folder))
    repo.add("main", without_weights(files), "no model")
    assert same(load_clip(REPO, loaded.revision), loaded.clip)


def test_pickled_weights_come_from_the_converter(repo, files, clip_folder):
    """Not from whoever else proposes some, nor from a conversion of what the weights were once."""
    repo.add("main", without_weights(files) | PICKLED, "model")
    other = {"model.safetensors": (b"no safetensors", True)}
    propose(repo, "mallory", TITLE, files | PICKLED | other)
    propose(repo, BOT, "Adding ONNX file of this model", files | PICKLED | other)
    propose(repo, BOT, TITLE, files | {"pytorch_model.bin": (b"older", True)} | other)
    commit = propose(repo, BOT, TITLE, files | PICKLED)
    loaded = load_model(REPO)
    assert loaded.revision == commit and same(loaded.clip, load_clip(clip_folder))
    assert same(load_clip(REPO, commit), loaded.clip)


@pytest.mark.parametrize("proposed", [False, True])
def test_pickled_weights_are_not_read(proposed, repo, files):
    repo.add("main", without_weights(files) | PICKLED, "model")
    if proposed:
        propose(repo, "mallory", TITLE, files | PICKLED)
    with pytest.raises(InputError, match=f"--model {REPO}: its weights are pickled, and only safetensors are read"):
        load_model(REPO)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_hub_that_does_not_answer_leaves_the_cache(pickled, repo, files, monkeypatch):
    commit = repo.add("main", without_weights(files) | PICKLED if pickled else files, "model")
    if pickled:
        commit = propose(repo, BOT, TITLE, files | PICKLED)
    expected = load_model(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = load_model(REPO)
    assert loaded.revision == commit and same(loaded.clip, expected.clip)
