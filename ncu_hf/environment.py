"""How a number was made: the command, and the software that it depends on."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from ncu_hf._version import __version__
from ncu_hf.data.files import public_address
from ncu_hf.distributed import world


def environment() -> dict[str, Any]:
    """Versions, and the number of processes."""
    return {
        "ncu_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processes": world()[1],
    }


def machine() -> dict[str, Any]:
    """What the numbers of a study were computed on: processor, cores, GPUs, and the commit of this code."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "commit": commit(),
    }


def _processor() -> str:
    """Name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def commit() -> str | None:
    """Commit of the checkout that this code runs from, `-dirty` behind it if files differ; `None` without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def command() -> str:
    """The command line, without an access token or the signature of a URL."""
    words = sys.argv[1:]
    kept = [
        public_address(word)
        for before, word in zip(["", *words], words, strict=False)
        if before != "--hub_token" and not word.startswith("--hub_token")
    ]
    return shlex.join([Path(sys.argv[0]).name, *kept])
