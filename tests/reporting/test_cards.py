"""What a card tells of the settings of a run."""

from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from ncu_hf.cards import _base_model, _hyperparameters
from ncu_hf.cli import parse_arguments

STEPS = {"max_steps", "negative_prompt_max_steps"}
EPOCHS = {"num_train_epochs", "negative_prompt_epochs"}


@pytest.fixture
def told(tmp_path, words):
    """Names and values that a card lists: `told(max_steps=5)`."""

    def settings(**changes):
        options = {"model": "x", "train_data": "x.csv", "global_batch_size": 4, "output_dir": tmp_path / "run"}
        return _hyperparameters(parse_arguments(words({**options, "use_cpu": "true", **changes}))[0])

    return settings


def test_a_length_is_told_once(told):
    assert (STEPS | EPOCHS) & told().keys() == EPOCHS
    steps = told(max_steps=5)
    assert (STEPS | EPOCHS) & steps.keys() == {"max_steps", "negative_prompt_epochs"} and steps["max_steps"] == 5
    assert (STEPS | EPOCHS) & told(max_steps=5, negative_prompt_max_steps=3).keys() == STEPS


@pytest.mark.parametrize("method", ["clip", "softclip", "ncu_text_negation"])
def test_a_method_without_prompt_has_no_settings_of_one(told, method):
    found = told(method=method)
    assert not [name for name in found if "prompt" in name] and "num_train_epochs" in found
    assert ("forget_ratio" in found) == (method == "ncu_text_negation")


@pytest.mark.parametrize("revision", [None, "v1", "1" * 40])
def test_a_base_model_of_the_hub_is_named_with_the_commit_that_was_loaded(told, tmp_path, monkeypatch, revision):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = SimpleNamespace(arguments=SimpleNamespace(model=SimpleNamespace(model="me/clip", revision=revision)))
    assert _base_model(run) == {"name": "me/clip", "kind": "hub", "revision": revision}
    cached = tmp_path / "models--me--clip"
    for path, text in {f"snapshots/{'1' * 40}/config.json": "{}", f"refs/{revision or 'main'}": "1" * 40}.items():
        (cached / path).parent.mkdir(parents=True)
        (cached / path).write_text(text)
    assert _base_model(run)["revision"] == "1" * 40
