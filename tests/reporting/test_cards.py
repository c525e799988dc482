"""What a card tells of the settings of a run."""

import pytest

from ncu_hf.cards import _hyperparameters
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
