"""Whole commands on a device that is not the CPU, as a GPU is not: no tensor is left on the other side.

The device (`workers/other_device.cpp`) is made of host memory, so that this needs no GPU. What only a GPU has (streams,
pinned memory, its own kernels) is in `test_gpu.py`.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("other_device")


@pytest.fixture
def start(library, launch) -> Callable[..., str]:
    """Run a script on the other device, or on the CPU; returns what it prints."""

    def run(on_cpu: bool, script: str, *arguments: object) -> str:
        if on_cpu:
            return launch(1, script, *arguments).stdout
        return launch(1, "tests/workers/other_device.py", library, script, *arguments).stdout

    return run


def test_an_operation_refuses_tensors_of_both_devices(library, launch, tmp_path):
    script = tmp_path / "both.py"
    script.write_text("import torch\ntorch.ones(2, 2, device='other') @ torch.ones(2, 2)")
    done = launch(1, "tests/workers/other_device.py", library, script, check=False)
    assert done.returncode == 1
    assert "`mat2` lies on the CPU" in done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_data": True},
        {"formulation": "paper", "chunk_size": 4, "estimate_forget_ratio": "true", "forget_window": 3},
        {"gradient_checkpointing": "true", "negative_rank": 2},
        {"lora_rank": 4, "forget_target": "none"},
        {"method": "sdd", "sdd_drop_threshold": -1.0, "sdd_clean_threshold": 0.1},
        {"method": "softclip"},
    ],
    ids=str,
)
def test_a_run_gives_the_model_of_the_cpu(changes, start, command, scenes, distance, tmp_path):
    changes = {name: scenes if value is True else value for name, value in changes.items()}
    changes |= {"adam_epsilon": 1e-2, "learning_rate": 1e-3, "negative_prompt_learning_rate": 1e-3}
    here, there = tmp_path / "cpu", tmp_path / "other"
    start(True, "recipes/ncu.py", *command(here, **changes))
    start(False, "recipes/ncu.py", *command(there, use_cpu=None, **changes))
    assert distance(there, here) < 1e-5


def test_half_precision(start, command, load_plain, tmp_path):
    start(False, "recipes/ncu.py", *command(tmp_path / "run", use_cpu=None, bf16="true", chunk_size=4))
    assert all(weight.isfinite().all() for weight in load_plain(tmp_path / "run").parameters())


def test_the_losses_read_nothing_before_their_iterations_are_queued(start):
    """A GPU can then be at work on the towers while the host is there already."""
    found = json.loads(start(False, "tests/workers/reads.py"))
    assert len(found["products"]) >= 200
    assert min(found["reads"]) > max(found["products"])
    assert len(found["reads"]) <= 3


def test_a_killed_run_goes_on(start, command, distance, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    start(False, "recipes/ncu.py", *command(whole, use_cpu=None, save_total_limit=9))
    shutil.copytree(whole / "phases" / "negative_prompt", resumed / "phases" / "negative_prompt")
    shutil.copytree(
        whole / "phases" / "unlearning" / "checkpoint-4", resumed / "phases" / "unlearning" / "checkpoint-4"
    )
    shutil.copy(whole / "run.json", resumed)
    start(False, "recipes/ncu.py", *command(resumed, use_cpu=None, resume_from_checkpoint="true"))
    assert distance(resumed, whole) == 0


def test_the_plan_is_that_of_the_cpu(start, command, tmp_path):
    def memory(plan: str) -> str:
        return plan[plan.index("  weights ") : plan.index("  host, ")]

    flags = command(tmp_path / "run", use_cpu=None, chunk_size=4)
    here, there = (start(on_cpu, "recipes/ncu.py", *flags, "--plan") for on_cpu in (True, False))
    assert "Memory of a process, estimated, on other" in there
    assert memory(there) == memory(here)


def test_evaluation_and_audit_find_what_the_cpu_finds(start, clip_folder, scenes, tmp_path):
    columns = ("--image_column", "image", "--caption_column", "caption")
    recalls, doubtful = [], []
    for on_cpu in (True, False):
        report, audit = tmp_path / f"{on_cpu}.json", tmp_path / f"{on_cpu}.csv"
        start(
            on_cpu,
            *("scripts/evaluate.py", "--models", clip_folder, "--suite", scenes, *columns),
            *("--no_cache", "--json", report),
        )
        start(
            on_cpu,
            *("scripts/audit_pairs.py", "--model", clip_folder, "--data", scenes, *columns, "--output", audit),
            *("--device", "cpu" if on_cpu else "other"),
        )
        (found,) = json.loads(report.read_text())["results"].values()
        recalls.append(found["retrieval"])
        doubtful.append([row["key"] for row in csv.DictReader(audit.open())])
    assert recalls[0] == recalls[1]
    assert doubtful[0] == doubtful[1]
