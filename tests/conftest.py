"""Tiny models and data that every test can use; nothing is fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from ncu_hf.data.scenes import draw_scene, write_scenes
from ncu_hf.reference import build_reference

ROOT = Path(__file__).resolve().parent.parent
# For this process and all that tests start: one thread each, the checkout first, no network.
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
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
