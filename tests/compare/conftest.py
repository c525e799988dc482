"""A small comparison of methods, what it plans, and the folder `scripts` to import from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SMALL: dict[str, Any] = {
    "noise_shares": [0.4],
    "seeds": [0, 1],
    "steps": 8,
    "common": {"global_batch_size": 32, "random_crop": False, "warmup_steps": 1, "use_cpu": True},
    "reference": {"model_config": "tiny", "vocab_size": 600, "num_train_epochs": 2, "learning_rate": 1e-3},
    "fine_tuning": {"learning_rate": 1e-3, "forget_ratio": "noise"},
    "methods": {"clip": {"method": "clip"}, "ncu": {"method": "ncu"}},
    "baseline": "clip",
}


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.fixture
def small() -> dict[str, Any]:
    """What a comparison file says."""
    return SMALL


@pytest.fixture
def config():
    return importlib.import_module("compare_config")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "scenes"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        sources, writer = importlib.import_module("study_sources"), importlib.import_module("study_writer")
        folder.mkdir()
        writer.write_study(sources.scenes(160, 40, 32, 0), folder)
    return folder


@pytest.fixture
def make_units(config, study, tmp_path):
    units, writer = importlib.import_module("compare_units"), importlib.import_module("study_writer")

    def plan(**changes):
        comparison = config.parse_comparison(SMALL | changes)
        return units.plan(comparison, writer.StudyFiles.open(study), tmp_path / "out")

    return plan


@pytest.fixture
def write_config(tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump(SMALL | changes))
        return path

    return write


@pytest.fixture
def row():
    """The one row of a table of numbers that has these values."""

    def find(rows: list[dict], **wanted) -> dict:
        found = [one for one in rows if all(one[key] == value for key, value in wanted.items())]
        assert len(found) == 1, (wanted, found)
        return found[0]

    return find
