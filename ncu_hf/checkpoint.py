"""Training state in a checkpoint folder: safetensors and JSON only, and only whole folders.

A checkpoint is written under a hidden name and renamed when it is complete, so that a run killed while it writes
leaves nothing that looks like a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_NAME = re.compile(r"checkpoint-(\d+)")


def write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder; it appears as `folder` only when all of it is there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a phase, oldest first."""
    found = [(int(m[1]), path) for path in folder.glob("checkpoint-*") if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a phase, if there is one."""
    return next(reversed(list_checkpoints(folder)), None)


def rotate_checkpoints(folder: Path, limit: int | None) -> None:
    """Delete all but the newest `limit` checkpoints."""
    if limit:
        for path in list_checkpoints(folder)[:-limit]:
            shutil.rmtree(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, replacing the file in one step.

    A lone surrogate (half a character, or a byte of a file name that is not UTF-8) becomes its JSON escape.
    """
    partial = path.with_name(f".{path.name}.partial")
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors, if there are any."""
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """What [`save_tensors`] wrote; nothing where there is no file."""
    return load_file(path) if path.is_file() else {}


def save_optimizer(state: dict[str, Any], folder: Path) -> None:
    """Write the state of an optimizer: `optimizer.safetensors` (its tensors) and `optimizer.json` (the rest; floats
    survive exactly)."""
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            target = tensors if isinstance(value, torch.Tensor) else plain
            target[f"{index}.{key}"] = value
    save_file(_apart(tensors), folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", {"state": plain, "param_groups": state["param_groups"]})


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, contiguous, none in the memory of another: some optimizers share one among parameters."""
    taken: set[int] = set()
    apart = {}
    for key, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        apart[key] = value.clone() if place in taken else value.contiguous()
        taken.add(place)
    return apart


def load_optimizer(folder: Path) -> dict[str, Any]:
    """What [`save_optimizer`] wrote."""
    saved = read_json(folder / "optimizer.json")
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**load_file(folder / "optimizer.safetensors"), **saved["state"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": saved["param_groups"]}
