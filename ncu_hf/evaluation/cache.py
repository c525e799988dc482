"""Embeddings by content: what was encoded once is read the next time, by whichever metric asks.

An entry is one safetensors file, named by the SHA-256 of all that determines its values: weights and configuration of
the model (for images, of its vision tower), preprocessing, images or token ids, batch size, kind of device and
libraries. So nothing has to be invalidated; a folder that has grown too large can be deleted. An entry holds the
SHA-256 of its own values too: what a disk has damaged is encoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "NCU_HF_CACHE"
# Changes when the encoder gives other values for the same input.
ENCODER_VERSION = 2
# What a configuration says of its file and its making, not of the function that the model computes.
_NOT_OF_THE_FUNCTION = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


def default_folder() -> Path:
    """`$NCU_HF_CACHE`, or `~/.cache/ncu_hf/embeddings`."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "ncu_hf" / "embeddings"


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def model_digest(model: PreTrainedModel) -> str:
    """SHA-256 (hex) of the weights, name by name, and of the configuration of the function that they parametrise."""
    return _tensors_digest(model.state_dict(), digest(_function_config(model.config.to_dict())))


def _tensors_digest(tensors: dict[str, Tensor], more: str = "") -> str:
    """SHA-256 (hex) of a text, and of tensors with their names, in the order of these."""
    found = hashlib.sha256(more.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _function_config(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _function_config(value) for key, value in config.items() if key not in _NOT_OF_THE_FUNCTION}


class EmbeddingCache:
    """Tensors by key in one folder.

    Args:
        folder (`Path`, *optional*): See [`default_folder`]. Made when the first entry is written.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = default_folder() if folder is None else Path(folder)
        self._told = False  # that it cannot be written: once is enough

    def path(self, key: dict[str, Any]) -> Path:
        return self.folder / f"{digest(key)}.safetensors"

    def load(self, key: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and notes of an entry; `None` if there is none, or none that can be read."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["sha256"] != _tensors_digest(tensors, metadata["notes"]):
                raise ValueError("its content is damaged")
            return tensors, json.loads(metadata["notes"])
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            logger.warning("%s cannot be read (%s); its content is encoded again.", path, error)
            return None

    def save(self, key: dict[str, Any], tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Write an entry in one step. A full or read-only disk costs the entry, not the evaluation."""
        path = self.path(key)
        # Not by process id: two containers that share the folder may have the same one.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        metadata = {"key": json.dumps(key, default=str), "notes": json.dumps(notes)}
        metadata["sha256"] = _tensors_digest(tensors, metadata["notes"])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):  # what is left of it, if it was begun
                partial.unlink()
            if not self._told:
                logger.warning("Embeddings are not cached in %s (%s).", self.folder, error)
            self._told = True
