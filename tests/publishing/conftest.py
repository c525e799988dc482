"""A Hub on this machine, and a finished run to publish there."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
import torch
import transformers
from PIL import Image

from ncu_hf.modeling import NegativePrompt, NegativePromptConfig
from ncu_hf.publishing import attempts
from ncu_hf.publishing.card import write_results
from ncu_hf.reporting.model_card import render_model_card


def _load(name: str) -> ModuleType:
    """A helper file of this folder, which is not on the path of imports."""
    spec = importlib.util.spec_from_file_location(f"publishing_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


rules = _load("rules")
hub_server = _load("hub_server")


@pytest.fixture(scope="session")
def hub_rules() -> ModuleType:
    return rules


@pytest.fixture(scope="session")
def make_repository() -> type:
    return hub_server.Repository


@pytest.fixture(scope="session")
def make_fault() -> type:
    return hub_server.Fault


@pytest.fixture(scope="session")
def tokens() -> dict[str, str]:
    return {"write": hub_server.TOKEN, "read": hub_server.READ_TOKEN}


def _serve(patch: pytest.MonkeyPatch, home: Path) -> Iterator[hub_server.HubServer]:
    server = hub_server.HubServer(rules)
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        patch.setattr(huggingface_hub.constants, name, value)
    patch.setenv("HF_TOKEN", hub_server.TOKEN)
    # transformers keeps a client that knows the address it was made with.
    patch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    yield server
    huggingface_hub.close_session()
    server.close()
    assert server.problems == []


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[hub_server.HubServer]:
    """An empty Hub that this process talks to; what is sent to it has to obey the protocol."""
    yield from _serve(monkeypatch, tmp_path / "home")


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory) -> Iterator[hub_server.HubServer]:
    """The same for a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield from _serve(patch, tmp_path_factory.mktemp("home"))


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Waits between attempts, which are not waited."""
    found: list[float] = []
    monkeypatch.setattr(attempts, "_sleep", found.append)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return found


def _describe() -> dict:
    numbers = {"accuracy": 0.5, "top5": 0.75, "mean_per_class": 0.4, "n": 40, "n_classes": 4, "primary": "accuracy"}
    interval = {key: [0.25, 0.75] for key in ("accuracy", "top5", "mean_per_class")}
    return {
        "model_name": "clip-ncu",
        "method": "ncu",
        "formulation": "released",
        "base_model": {"name": "openai/clip-vit-base-patch32", "kind": "hub"},
        "data": {"description": "Captioned scenes.", "n_pairs": 96},
        "hyperparameters": {"forget_ratio": 0.1},
        "phases": [{"name": "unlearning", "steps": 6, "epochs": 1, "seconds": 3.5}],
        "zero_shot": {"colour": {"after": {**numbers, "interval": interval, "hash": "0a1b"}}},
        "plots": {"losses": "plots/losses.png"},
        "prompt": {"folder": "negative_prompt", "length": 3},
    }


@pytest.fixture(scope="session")
def make_run(clip_folder) -> Callable[[Path], Path]:
    """Write the output folder of a finished run: `make_run(tmp_path / "clip-ncu")`."""

    def make(folder: Path) -> Path:
        shutil.copytree(clip_folder, folder)
        width = json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]
        with torch.random.fork_rng():
            torch.manual_seed(3)
            NegativePrompt(NegativePromptConfig(length=3, width=width)).save_pretrained(folder / "negative_prompt")
        results = _describe()
        for name in (".eval_results", "plots", "phases/unlearning/final", "initial", ".cache"):
            (folder / name).mkdir(parents=True)
        (folder / "README.md").write_text(render_model_card(results))
        write_results(folder, results)
        Image.new("RGB", (4, 4)).save(folder / "plots" / "losses.png")
        entry = "- dataset: {id: clip-benchmark/wds_cifar10, task_id: zero_shot}\n  value: 50.0\n"
        (folder / ".eval_results" / "cifar10.yaml").write_text(entry)
        (folder / "data_health.json").write_text("{}")
        for name in (
            "run.json",
            "outcomes.safetensors",
            ".hidden",
            ".cache/x",
            ".eval_results/.x.yaml",
            "plots/.x.png",
            "initial/config.json",
        ):
            (folder / name).write_text("{}")
        shutil.copy(folder / "config.json", folder / "phases/unlearning/final")
        return folder

    return make


@pytest.fixture
def run_folder(make_run, tmp_path) -> Path:
    return make_run(tmp_path / "clip-ncu")
