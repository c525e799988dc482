"""How a number was made: the command, and the software that it depends on."""

from __future__ import annotations

import platform
import shlex
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


def command() -> str:
    """The command line, without an access token or the signature of a URL."""
    words = sys.argv[1:]
    kept = [
        public_address(word)
        for before, word in zip(["", *words], words, strict=False)
        if before != "--hub_token" and not word.startswith("--hub_token")
    ]
    return shlex.join([Path(sys.argv[0]).name, *kept])
