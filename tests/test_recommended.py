"""The recommended settings: those of the studies, and those of the recipe for any data."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from ncu_hf.cli import parse_arguments
from ncu_hf.config import MethodArguments, NCUTrainingArguments
from ncu_hf.recommended import RECOMMENDED

ROOT = Path(__file__).resolve().parent.parent


def defaults_of(recipe: str) -> dict:
    spec = importlib.util.spec_from_file_location(recipe, ROOT / "recipes" / f"{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DEFAULTS


@pytest.mark.parametrize("study", sorted(path.stem for path in (ROOT / "scripts/studies").glob("*.yaml")))
def test_studies_recommend_what_the_recipe_does(study):
    content = yaml.safe_load((ROOT / f"scripts/studies/{study}.yaml").read_text(encoding="utf-8"))
    used = content["fine_tuning"] | content["methods"][content["recommended"]]
    assert {name: used[name] for name in RECOMMENDED} == RECOMMENDED


def test_the_recipe_for_any_data_has_them_and_flags_win(tmp_path):
    defaults = defaults_of("ncu")
    arguments, _ = parse_arguments(["--output_dir", str(tmp_path), "--plan_weight", "0.7"], defaults=defaults)
    found = {**vars(arguments.method), **vars(arguments.training)}
    assert {name: found[name] for name in RECOMMENDED} == RECOMMENDED | {"plan_weight": 0.7}


@pytest.mark.parametrize("recipe", ["ncu_cc3m", "ncu_cc12m", "ncu_yfcc15m"])
def test_recipes_of_the_paper_keep_the_papers_settings(recipe):
    assert not set(defaults_of(recipe)) & set(RECOMMENDED)


def test_they_differ_from_the_papers():
    defaults = {one.name: one.default for cls in (MethodArguments, NCUTrainingArguments) for one in fields(cls)}
    assert all(defaults[name] != value for name, value in RECOMMENDED.items())
