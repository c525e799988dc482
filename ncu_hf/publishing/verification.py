"""A published model compared with the local one, by a process that has nothing but the Hub's answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from ncu_hf.errors import InputError, TrainingStopped
from ncu_hf.publishing.settings import HubSettings
from ncu_hf.publishing.upload import Published

# What a launcher tells its processes (the fresh one belongs to no group), and where caches and tokens lie.
_DROPPED_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_")
_DROPPED = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HUGGINGFACE_ASSETS_CACHE", "HF_XET_CACHE"),
    *("HF_MODULES_CACHE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
}
_SECONDS = 2 * 3600
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Verification:
    """What a fresh process found.

    Attributes:
        commit (`str`): The commit that it loaded.
        embedding_digest (`str`): SHA-256 of its embeddings of fixed images and texts. Another processor or release of
            torch may round otherwise, and give another digest.
        weights_sha256 (`str`): SHA-256 of `model.safetensors`, the same as that of the local file.
        max_difference (`float`): Largest difference from the embeddings of the local model: 0.
        torch, transformers (`str`): Versions.
    """

    commit: str
    embedding_digest: str
    weights_sha256: str
    max_difference: float
    torch: str
    transformers: str

    def to_dict(self) -> dict[str, Any]:
        """As it is stored in `results.json`."""
        return asdict(self)


def verify(folder: Path, published: Published, settings: HubSettings) -> Verification:
    """Load a commit in a fresh process with an empty cache, and compare it with the model in `folder`.

    Args:
        folder (`Path`): What was published.
        published (`Published`): As what.
        settings (`HubSettings`): For the token.

    Raises:
        InputError: the Hub does not give it back, or its files cannot be loaded.
        TrainingStopped: what it gives is something else, or it does not answer.
    """
    words = ["--revision", published.commit, "--folder", str(folder.resolve())]
    command = [sys.executable, "-m", "ncu_hf.publishing.fresh_load", published.repo_id, *words]
    where = f"{published.repo_id} at {published.commit[:8]}"
    again = f"Check it again with: {settings.command(folder)}"
    # Nothing of the current folder can be taken for the repository, nor for a module.
    with tempfile.TemporaryDirectory(prefix="ncu-verify-") as home:
        try:
            done = subprocess.run(
                command, env=_environment(home, settings), cwd=home, capture_output=True, text=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise TrainingStopped(f"{where}: published, not verified in {_SECONDS} s. {again}") from None
    answer = _last_json(done.stdout)
    if "error" in answer:
        error = InputError if answer["refused"] else TrainingStopped
        said = settings.clean(answer["error"]).rstrip(".")
        raise error(f"{where}: published, not verified: {said}. {again}")
    if done.returncode or not answer:
        said = settings.clean(" ".join(done.stderr.split())[-300:])
        raise TrainingStopped(f"{where}: published, not verified, the process ended with {done.returncode}: {said}")
    found = Verification(**answer)
    if found.max_difference != 0:
        raise TrainingStopped(
            f"{where}: what the Hub gives back is not what {folder} holds: embeddings differ by "
            f"{found.max_difference:g}. {again}"
        )
    return found


def _environment(home: str, settings: HubSettings) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith(_DROPPED_PREFIXES)
    }
    path = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "HF_HOME": home,
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_TOKEN": settings.resolve_token(),
        "HF_HUB_OFFLINE": str(int(constants.HF_HUB_OFFLINE)),
        "HF_HUB_DISABLE_XET": str(int(constants.HF_HUB_DISABLE_XET)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join(path),
        "CUDA_VISIBLE_DEVICES": "",
    }


def _last_json(text: str) -> dict[str, Any]:
    lines = text.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
