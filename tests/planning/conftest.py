"""Runs of the recipe that stand before their first phase."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ncu_hf.cli import parse_arguments
from ncu_hf.data import StreamSource, open_pairs
from ncu_hf.loading import load_reference
from ncu_hf.objectives import build_objectives
from ncu_hf.planning import Plan, make_plan
from ncu_hf.run import Run
from ncu_hf.workspace import Workspace


@pytest.fixture
def prepare(command, tmp_path) -> Callable[..., Run]:
    """A run of the recipe that stands before its first phase: `prepare(global_batch_size=32)`."""

    def make(source: StreamSource | None = None, **changes) -> Run:
        arguments, _ = parse_arguments(command(tmp_path / "run", **changes))
        data = arguments.data
        if source is None:
            columns = {"image_column": data.image_column, "caption_column": data.caption_column}
            source = open_pairs(data.train_data, **columns)
        reference = load_reference(arguments.model, source.captions, 0, tmp_path / "initial")
        return Run(arguments, Workspace(tmp_path / "run"), source, reference)

    return make


@pytest.fixture
def plan_of(prepare) -> Callable[..., Plan]:
    def make(**changes) -> Plan:
        run = prepare(**changes)
        return make_plan(run, build_objectives(run.arguments.method))

    return make
