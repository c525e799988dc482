"""Tiny models and data that every test can use; nothing is fetched."""

from __future__ import annotations

# ruff: noqa: E402 (libraries read these variables when they are imported)
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# For this process and all that tests start: one thread each, the checkout first, no network.
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}

import importlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, set_seed

from ncu_hf.cli import parse_arguments
from ncu_hf.data import open_pairs
from ncu_hf.data.scenes import draw_scene, write_scenes
from ncu_hf.loading import load_reference
from ncu_hf.objectives import build_objectives
from ncu_hf.phases import make_trainer
from ncu_hf.recipe import run
from ncu_hf.reference import build_reference
from ncu_hf.run import Run
from ncu_hf.trainer import NCUTrainer
from ncu_hf.workspace import Workspace

_EMBEDDINGS = tempfile.TemporaryDirectory(prefix="ncu_hf_embeddings_")  # removed when the tests end
os.environ["NCU_HF_CACHE"] = _EMBEDDINGS.name
START, END, VOCABULARY, CONTEXT = 118, 119, 120, 20


def tiny_clip(eos_token_id: int = END, text_layers: int = 3, seed: int = 0) -> CLIPModel:
    """A random CLIP with other widths in each tower; end token `END` whatever its config says."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": text_layers, "num_attention_heads": 4}
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": START, "eos_token_id": eos_token_id, "pad_token_id": END, "vocab_size": VOCABULARY}
    config = CLIPConfig(
        text_config={**text, **ids, "max_position_embeddings": CONTEXT, "projection_dim": 24},
        vision_config={**vision, "image_size": 32, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(config).eval()


@pytest.fixture
def make_clip() -> Callable[..., CLIPModel]:
    return tiny_clip


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet of 96 pairs (columns `image`, `caption`, `mismatched`, attributes), a quarter of them mismatched."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), 96, seed=5, size=32, noise_share=0.25)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random CLIP with its processor, whose tokenizer knows the words of the scenes."""
    folder = tmp_path_factory.mktemp("clip")
    captions = [draw_scene(5, index, 32).caption for index in range(96)]
    clip, processor = build_reference(captions, config="tiny", seed=0, vocab_size=600)
    clip.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def launch() -> Callable[..., subprocess.CompletedProcess]:
    """Run a script with its arguments on W processes, one thread each: `launch(2, "tests/workers/x.py", "a")`."""

    def run(processes: int, script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        if processes == 1:
            command = [sys.executable]
        done = subprocess.run(
            [*command, str(ROOT / script), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        if check and done.returncode:
            pytest.fail(f"{script} on {processes} processes: exit code {done.returncode}\n{done.stderr[-4000:]}")
        return done

    return run


@pytest.fixture
def benchmark(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Run `scripts/benchmark.py` with these arguments; returns what it prints and what it writes."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("benchmark")

    def run(*arguments: object) -> tuple[str, dict[str, Any]]:
        report = tmp_path / "report.json"
        script.main([*map(str, arguments), "--json", str(report), "--overwrite"])
        return capsys.readouterr().out, json.loads(report.read_text())

    return run


# Runs of a recipe


@pytest.fixture(scope="session")
def words() -> Callable[[dict[str, Any]], list[str]]:
    """Options -> flags of a command; an option that is `None` is left out."""

    def flags(options: dict[str, Any]) -> list[str]:
        return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]

    return flags


@pytest.fixture(scope="session")
def scene_options(scenes, clip_folder) -> dict[str, Any]:
    """What every run of the tiny CLIP on the scenes is told: 6 batches an epoch, on the CPU."""
    return {
        "model": clip_folder,
        "train_data": scenes,
        "image_column": "image",
        "caption_column": "caption",
        "global_batch_size": 16,
        "use_cpu": "true",
    }


@pytest.fixture(scope="session")
def command(scene_options, words) -> Callable[..., list[str]]:
    """Flags of a run of 6 steps in each phase, with a checkpoint every 2: `command(output, lora_rank=4)`."""

    def flags(output: Path, **changes) -> list[str]:
        lengths = {"negative_prompt_epochs": 1, "num_train_epochs": 1, "warmup_steps": 1}
        reports = {"logging_steps": 1, "save_steps": 2, "disable_tqdm": "true"}
        return words({**scene_options, **lengths, **reports, "output_dir": output, **changes})

    return flags


@pytest.fixture
def recipe(command, tmp_path) -> Callable[..., Path]:
    """Run the recipe in this process, with some flags changed, into a folder of that name."""

    def start(name: str = "run", **changes) -> Path:
        arguments, _ = parse_arguments(command(tmp_path / name, **changes))
        run(arguments)
        return tmp_path / name

    return start


@pytest.fixture(scope="session")
def distance() -> Callable[[Path, Path], float]:
    """Largest difference of a weight, of model or prompt, between two output folders."""

    def weights(output: Path) -> dict[str, torch.Tensor]:
        prompt = output / "negative_prompt" / "model.safetensors"
        vectors = load_file(prompt) if prompt.exists() else {}
        return {**load_file(output / "model.safetensors"), **{f"prompt.{name}": v for name, v in vectors.items()}}

    def largest(found: Path, expected: Path) -> float:
        a, b = weights(found), weights(expected)
        assert a.keys() == b.keys()
        return torch.stack([(a[name] - b[name]).abs().max() for name in b]).max().item()

    return largest


@pytest.fixture(scope="session")
def load_plain() -> Callable[[Path], CLIPModel]:
    """Load a folder as a stock `CLIPModel` that takes every weight from there, and leaves none there."""

    def load(folder: Path) -> CLIPModel:
        clip, report = CLIPModel.from_pretrained(folder, output_loading_info=True)
        assert type(clip) is CLIPModel
        assert {key: list(found) for key, found in report.items() if found} == {}
        return clip

    return load


@pytest.fixture(scope="session")
def embed() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Features of two images (2, D) and two texts (2, D): `embed(clip, processor)`."""

    def features(clip: CLIPModel, processor) -> tuple[torch.Tensor, torch.Tensor]:
        images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
        texts = ["a red circle", "two small squares"]
        inputs = processor(images=images, text=texts, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            outputs = clip.eval()(**inputs)
        return outputs.image_embeds, outputs.text_embeds

    return features


@pytest.fixture
def trainers_of(scene_options, words, tmp_path) -> Callable[..., list[NCUTrainer]]:
    """The trainers of a method's phases, each from the reference, as a run makes them: 2 steps of 16 pairs."""

    def make(method: str, **changes) -> list[NCUTrainer]:
        lengths = {"max_steps": 2, "negative_prompt_max_steps": 2, "warmup_steps": 0, "save_strategy": "no"}
        options = {**scene_options, **lengths, "method": method, "forget_ratio": 0.25, "output_dir": tmp_path / "run"}
        arguments, _ = parse_arguments(words({**options, "disable_tqdm": "true", **changes}))
        data = arguments.data
        source = open_pairs(data.train_data, image_column=data.image_column, caption_column=data.caption_column)
        trainers = []
        for objective in build_objectives(arguments.method):
            reference = load_reference(arguments.model, list, 0, tmp_path / "initial")
            set_seed(0)
            run = Run(arguments, Workspace(tmp_path / "run"), source, reference)
            folder = tmp_path / "phases" / objective.phase
            trainers.append(make_trainer(run, objective, reference.clip, None, folder))
        return trainers

    return make


# Files of pairs


def noise_png(seed: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """A small image, another one for each seed: `png(3)`."""
    return noise_png


@pytest.fixture(scope="session")
def samples() -> Callable[[int, int], list[tuple[str, bytes]]]:
    """Members of the WebDataset samples `first` to `last` - 1: an image and `caption <i>` each."""

    def members(first: int, last: int) -> list[tuple[str, bytes]]:
        images = [(f"{i:04d}.png", noise_png(i)) for i in range(first, last)]
        texts = [(f"{i:04d}.txt", f"caption {i}".encode()) for i in range(first, last)]
        return [member for pair in zip(images, texts, strict=True) for member in pair]

    return members


@pytest.fixture(scope="session")
def write_tar() -> Callable[[Path, list[tuple[str, bytes]]], str]:
    """Write (name, data) members to a tar; returns its path as text."""

    def write(path: Path, members: list[tuple[str, bytes]]) -> str:
        with tarfile.open(path, "w") as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return str(path)

    return write
