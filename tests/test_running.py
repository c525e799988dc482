"""docs/running.md: its files are ones that accelerate reads, its flags are ones that a recipe or a launcher has."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import CLIPModel

from ncu_hf.config import NCUTrainingArguments
from ncu_hf.loading import load_clip

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/running.md").read_text(encoding="utf-8")
CONFIGS = [ROOT / "accelerate_config.yaml", *sorted((ROOT / "accelerate_configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_every_configuration(path):
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(written) <= {field.name for field in dataclasses.fields(ClusterConfig)}
    assert config.num_processes == written["num_processes"] >= config.num_machines
    assert str(path.relative_to(ROOT)) in PAGE


def test_files_exist():
    named = re.findall(r"`([\w/]+\.(?:yaml|py))`", PAGE) + re.findall(r"(recipes/\w+\.py|\S+\.yaml)\b", PAGE)
    assert named
    assert [name for name in named if not (ROOT / name.strip("`")).is_file()] == []


@pytest.mark.slow
def test_flags_exist():
    shown = subprocess.run(
        [sys.executable, "recipes/ncu_cc3m.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    known |= set(re.findall(r"--\w+", shown))
    flags = set(re.findall(r"--\w+", PAGE))
    assert len(flags) > 10
    assert flags <= known


# Defaults that the page relies on


def test_the_default_optimizer_is_fused(trainers_of):
    for trainer in trainers_of("ncu"):
        optimizer = trainer.create_optimizer()
        assert type(optimizer) is torch.optim.AdamW
        assert all(group["fused"] for group in optimizer.param_groups)
    assert NCUTrainingArguments.optim == "adamw_torch_fused"


def test_attention_is_fused(clip_folder):
    clip = load_clip(clip_folder)
    assert isinstance(clip, CLIPModel)
    towers = (clip.text_model.config, clip.vision_model.config)
    assert [config._attn_implementation for config in towers] == ["sdpa", "sdpa"]
