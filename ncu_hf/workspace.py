"""The output folder of a run: new, resumed, or replaced on request; never overwritten unasked."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.cli import Arguments
from ncu_hf.errors import InputError

_RUN_FILE = "run.json"
# Settings of the trainer that change what is learned; a resumed run must have them as they were.
_TRAINING = [
    "seed",
    "global_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "negative_prompt_epochs",
    "negative_prompt_max_steps",
    "negative_prompt_learning_rate",
    "prompt_learning_rate",
    "weight_decay",
    "prompt_weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "warmup_steps",
    "optim",
    "lr_scheduler_type",
    "bf16",
    "fp16",
]


class Workspace:
    """Paths of a run below its output folder.

    ```
    output_dir/                  the result: a plain CLIPModel, its processor, negative_prompt/, README.md (the card)
      run.json                   settings, compared when the run is resumed
      results.json               every number of the card
      data_health.json           records that could not be used, by reason
      plots/
      initial/                   a model from scratch, before training
      phases/<phase>/            checkpoint-<step>/ and, once the phase is complete, final/
    ```
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def initial(self) -> Path:
        return self.folder / "initial"

    @property
    def plots(self) -> Path:
        return self.folder / "plots"

    def phase(self, name: str) -> Path:
        return self.folder / "phases" / name

    def final(self, name: str) -> Path:
        """Outcome of a phase; the folder exists only when the phase is complete."""
        return self.phase(name) / "final"

    def open(self, arguments: Arguments) -> None:
        """Make the folder ready, on one process only.

        Raises:
            InputError: the folder cannot be written, holds files and neither resuming nor overwriting was asked for,
                or belongs to a run with other settings.
        """
        settings = run_settings(arguments)
        training = arguments.training
        if training.overwrite_output_dir and not resuming(training):
            self._delete_earlier_run()
        if self.folder.is_dir() and any(self.folder.iterdir()):
            if not resuming(training):
                raise InputError(
                    f"--output_dir {self.folder} is not empty; give a new folder, --resume_from_checkpoint true to go "
                    "on with its run, or --overwrite_output_dir to delete it."
                )
            self._check_settings(settings)
        self._make_writable()
        write_json(self.folder / _RUN_FILE, settings)

    def _delete_earlier_run(self) -> None:
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return
        if not (self.folder / _RUN_FILE).is_file():
            raise InputError(
                f"--overwrite_output_dir: {self.folder} holds no earlier run ({_RUN_FILE} is missing), so nothing of "
                "it is deleted; give another folder."
            )
        shutil.rmtree(self.folder)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / _RUN_FILE
        if not path.is_file():
            raise InputError(f"--resume_from_checkpoint: {self.folder} holds no run ({_RUN_FILE} is missing).")
        earlier = read_json(path)
        changed = [key for key in settings if key not in earlier or earlier[key] != settings[key]]
        if changed:
            listed = ", ".join(f"{key} was {earlier.get(key)!r}, is {settings[key]!r}" for key in changed[:5])
            raise InputError(f"--resume_from_checkpoint: {self.folder} was run with other settings: {listed}.")

    def _make_writable(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output_dir {self.folder}: cannot be made ({error.strerror}).") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(f"--output_dir {self.folder}: no permission to write.")


def resuming(training: Any) -> bool:
    """Whether `--resume_from_checkpoint` asks for it (`true`, as the flag of `Trainer`)."""
    return str(training.resume_from_checkpoint).lower() in ("true", "1", "yes")


def run_settings(arguments: Arguments) -> dict[str, Any]:
    """What determines the result of a run, by flag name."""
    settings = {**asdict(arguments.model), **asdict(arguments.data), **asdict(arguments.method)}
    for name in _TRAINING:
        value = getattr(arguments.training, name)
        settings[name] = str(getattr(value, "value", value)) if not isinstance(value, int | float) else value
    return settings
