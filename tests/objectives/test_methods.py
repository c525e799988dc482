"""What every method of the registry promises: the settings that it depends on, its place in the help, its card."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ncu_hf.config import FORMULATIONS, MethodArguments
from ncu_hf.errors import InputError
from ncu_hf.objectives import METHODS, Objective, build_objectives
from ncu_hf.objectives.base import ReferenceEmbeds, SampleWeights
from ncu_hf.reporting.methods import describe
from ncu_hf.step import total_loss

# One other value of each setting.
OTHER = {
    "formulation": "paper",
    "forget_ratio": 0.45,
    "plan_weight": 0.2,
    "entropy": 0.1,
    "margin_low": -0.5,
    "margin_high": 0.3,
    "relation_weight": 2.0,
    "frozen_text_blocks": 0,
    "negative_rank": 4,
    "forget_window": 3,
    "forget_target": "none",
    "freeze_token_embedding": False,
    "label_smoothing": 0.3,
    "soft_weight": 0.9,
    "soft_temperature": 0.5,
    "sdd_clean_threshold": 0.9,
    "sdd_drop_threshold": 0.8,
}


def phases_of(method: str) -> list[Objective]:
    return build_objectives(MethodArguments(method=method))


# Settings


def batch(objective: Objective, generator: torch.Generator) -> list[Any]:
    """What the objective takes of 20 pairs."""
    image, text, negative, *guides = (
        F.normalize(torch.randn(20, 8, generator=generator, dtype=torch.float64), dim=-1) for _ in range(5)
    )
    beside: list[Any] = [ReferenceEmbeds(*guides)] if objective.needs_reference else []
    if objective.needs_sample_weights:
        beside.append(SampleWeights(*torch.rand(2, 20, generator=generator), torch.tensor(1.0)))
    return [F.normalize(image + text, dim=-1), text, negative, torch.tensor(2.0), *beside]


def learned(objective: Objective) -> tuple[Any, ...]:
    """The loss of two batches, which parameters train, and which pairs are chosen by their similarity."""
    generator, loss = torch.Generator().manual_seed(0), 0.0
    for _ in range(2):
        loss += total_loss(objective(*batch(objective, generator))).item()
    chosen: tuple[list[bool], ...] = ()
    if objective.needs_sample_weights:
        chosen = tuple(choose(torch.linspace(-1, 1, 101)).tolist() for choose in (objective.clean, objective.kept))
    embeddings = [f"clip.text_model.embeddings.{kind}_embedding.weight" for kind in ("token", "position")]
    names = ["clip.logit_scale", *embeddings, *(f"clip.text_model.encoder.layers.{i}.mlp.fc1.bias" for i in range(12))]
    return loss, tuple(objective.trains(name, 12) for name in names), chosen


KINDS = sorted({kind for kinds in METHODS.values() for kind in kinds}, key=str)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_those_that_decide_what_is_learned(kind):
    names = [field.name for field in fields(MethodArguments) if field.name != "method"]
    before = learned(kind(MethodArguments(forget_ratio=0.2)))
    changed = {name: kind(MethodArguments(**{"forget_ratio": 0.2, name: OTHER[name]})) for name in names}
    decisive = {name for name, objective in changed.items() if learned(objective) != before}
    assert decisive == set(kind.settings)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_that_is_not_a_number_is_left_to_the_trainer(kind, formulation):
    objective = kind(MethodArguments(formulation=formulation, forget_ratio=0.3))
    for branch in range(2 + objective.needs_negative_text):
        inputs = batch(objective, torch.Generator().manual_seed(0))
        inputs[branch][3, 0] = math.nan
        assert total_loss(objective(*inputs)).shape == ()


def test_help_names_every_method():
    (field,) = [field for field in fields(MethodArguments) if field.name == "method"]
    words = set(re.findall(r"\w+", field.metadata["help"]))
    assert set(METHODS) <= words
    assert {word for word in words if "_" in word} <= set(METHODS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("label_smoothing", 1.5), ("soft_weight", -0.1), ("soft_temperature", 0.0), ("soft_weight", math.nan)),
        *(("sdd_clean_threshold", 1.0), ("sdd_drop_threshold", -1.5), ("sdd_drop_threshold", math.nan)),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name}.*{value}"):
        MethodArguments(**{name: value})


# Cards


def card(method: str, formulation: str | None = "released") -> dict[str, Any]:
    base = {"name": "openai/clip-vit-base-patch32", "kind": "hub"}
    return describe({"method": method, "formulation": formulation, "base_model": base, "hyperparameters": {}})


@pytest.mark.parametrize("method", METHODS)
def test_a_card_tells_what_the_method_does_and_no_more(method):
    described = card(method)
    kinds, text = phases_of(method), f"{described['summary']} {described['procedure']}"
    assert ("negative prompt is learned" in text) == any(kind.needs_prompt for kind in kinds)
    assert ("Two phases" in text) == (len(kinds) == 2)
    if method not in ("ncu", "clip"):
        assert f"`{method}`" in text
        assert ("own confidence" in " ".join(described["limits"])) == ("forget_ratio" in kinds[-1].settings)
        assert ("optimal transport" in text) == ("entropy" in kinds[-1].settings)
    assert described["bibtex"].startswith("@") and described["tags"][0] == "clip"
    sentences = [described["summary"], described["procedure"], *described["limits"]]
    assert all(sentence.endswith(".") and "  " not in sentence for sentence in sentences)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("clip", "softclip", "sdd")])
def test_a_card_tells_the_formulation(method):
    released, paper, unknown = (card(method, name)["procedure"] for name in ("released", "paper", None))
    assert len({released, paper, unknown}) == 3
    assert "None" not in unknown
