"""The output folder of a run: new, resumed, or replaced on request; never overwritten unasked."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.cli import Arguments
from ncu_hf.config import DataArguments, MethodArguments, ModelArguments, NCUTrainingArguments
from ncu_hf.data.files import public_address
from ncu_hf.distributed import gather_json
from ncu_hf.errors import InputError

_RUN_FILE = "run.json"
_PATIENCE = 60.0  # seconds; a network file system may show a new file as late as that
_FINGERPRINT, _DATA_COMMIT, _MODEL_COMMIT = "data_fingerprint", "data_commit", "model_commit"
# Settings of the trainer that change what is learned; a resumed run must have them as they were.
LEARNING_SETTINGS = [
    "seed",
    "data_seed",
    "global_batch_size",
    "gradient_accumulation_steps",
    "estimate_forget_ratio",
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
    "optim_args",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "bf16",
    "fp16",
]

_DEFAULTS = {
    setting.name: setting.default
    for arguments in (ModelArguments, DataArguments, MethodArguments, NCUTrainingArguments)
    for setting in fields(arguments)
}


class Workspace:
    """Paths of a run below its output folder.

    ```
    output_dir/                  the result: a plain CLIPModel, its processor, negative_prompt/, README.md (the card)
      run.json                   settings, compared when the run is resumed
      results.json               every number of the card
      outcomes.safetensors       the outcome on each item of the sets, for paired tests
      data_health.json           records that could not be used, by reason
      injected_noise.parquet     with --noise_share: the pairs that were chosen, with both captions
      forget_ratio.json          the estimate, with `--estimate_forget_ratio`
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

    @property
    def forget_ratio(self) -> Path:
        """The estimate of the share to forget, where one was asked for."""
        return self.folder / "forget_ratio.json"

    def phase(self, name: str) -> Path:
        return self.folder / "phases" / name

    def final(self, name: str) -> Path:
        """Outcome of a phase; the folder exists only when the phase is complete."""
        return self.phase(name) / "final"

    def check(self, arguments: Arguments) -> None:
        """Find out whether the run may have the folder, and change nothing. On one process only.

        Raises:
            InputError: the folder cannot be written, holds files and neither resuming nor overwriting was asked for,
                belongs to a run with other settings, or would be deleted with the run's own input in it.
        """
        self._check_writable()
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return
        if resuming(arguments.training):
            self._check_settings(run_settings(arguments))
        elif arguments.training.overwrite_output_dir:
            self._check_deletable(arguments)
        else:
            raise InputError(
                f"--output_dir {self.folder} is not empty; give a new folder, --resume_from_checkpoint true to go "
                "on with its run, or --overwrite_output_dir to delete it."
            )

    def data_revision(self, arguments: Arguments) -> str | None:
        """Revision of the training data to read: a run goes on with the commit that it was started on."""
        return self._recorded(arguments, _DATA_COMMIT) or arguments.data.data_revision

    def model_revision(self, arguments: Arguments) -> str | None:
        """The same for the model that the run starts from."""
        return self._recorded(arguments, _MODEL_COMMIT) or arguments.model.revision

    def _recorded(self, arguments: Arguments, name: str) -> str | None:
        if resuming(arguments.training) and (self.folder / _RUN_FILE).is_file():
            return read_json(self.folder / _RUN_FILE).get(name)
        return None

    def open(
        self, arguments: Arguments, data_fingerprint: str, data_commit: str | None, model_commit: str | None = None
    ) -> None:
        """Make the folder ready: delete an earlier run if that was asked for, write the settings.

        Args:
            arguments (`Arguments`): The settings.
            data_fingerprint (`str`): Of the training data.
            data_commit, model_commit (`str`, *optional*): Of data and model that come from the Hub.

        Raises:
            InputError: see [`check`]; or the training data are not those that the run to go on with was started on.
        """
        self.check(arguments)
        if resuming(arguments.training) and (self.folder / _RUN_FILE).is_file():
            earlier = read_json(self.folder / _RUN_FILE).get(_FINGERPRINT)
            if earlier != data_fingerprint:
                raise InputError(
                    f"--resume_from_checkpoint: --train_data {arguments.data.train_data} has changed since the run in "
                    f"{self.folder} was started; give a new --output_dir."
                )
        if arguments.training.overwrite_output_dir and not resuming(arguments.training) and self.folder.is_dir():
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            inputs = {_FINGERPRINT: data_fingerprint, _DATA_COMMIT: data_commit, _MODEL_COMMIT: model_commit}
            write_json(self.folder / _RUN_FILE, {**run_settings(arguments), **inputs})
        except OSError as error:
            raise InputError(f"--output_dir {self.folder}: cannot be written ({error.strerror}).") from error

    def check_shared(self, device: torch.device) -> None:
        """Once the folder is open: find out whether all processes see it. A collective.

        Raises:
            InputError: one of them does not.
        """
        until = time.monotonic() + _PATIENCE
        while not (seen := (self.folder / _RUN_FILE).is_file()) and time.monotonic() < until:
            time.sleep(1)
        if not all(gather_json(seen, device)):
            raise InputError(
                f"--output_dir {self.folder}: some processes do not see what the first one writes there; with several "
                "machines, give a folder that all of them share."
            )

    def _check_deletable(self, arguments: Arguments) -> None:
        if not (self.folder / _RUN_FILE).is_file():
            raise InputError(
                f"--overwrite_output_dir: {self.folder} holds no earlier run ({_RUN_FILE} is missing), so nothing of "
                "it is deleted; give another folder."
            )
        model, data = arguments.model, arguments.data
        inputs = {
            **{name: getattr(model, name) for name in ("model", "model_config", "tokenizer", "negative_prompt")},
            **{name: getattr(data, name) for name in ("train_data", "eval_data", "image_root", "caption_tokenizer")},
        }
        for name, path in inputs.items():
            if path is not None and Path(path).resolve().is_relative_to(self.folder.resolve()):
                raise InputError(f"--overwrite_output_dir would delete --{name} {path}; give another --output_dir.")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / _RUN_FILE
        if not path.is_file():
            raise InputError(f"--resume_from_checkpoint: {self.folder} holds no run ({_RUN_FILE} is missing).")
        earlier = _DEFAULTS | read_json(path)  # a run of an earlier release does not name what came later
        changed = [key for key in settings if key not in earlier or earlier[key] != settings[key]]
        if changed:
            listed = ", ".join(f"{key} was {earlier.get(key)!r}, is {settings[key]!r}" for key in changed[:5])
            raise InputError(f"--resume_from_checkpoint: {self.folder} was run with other settings: {listed}.")

    def _check_writable(self) -> None:
        place = self.folder.absolute()
        while not os.path.exists(place):
            place = place.parent
        if not place.is_dir():
            raise InputError(f"--output_dir {self.folder}: {place} is a file, not a folder.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"--output_dir {self.folder}: no permission to write in {place}.")


def resuming(training: NCUTrainingArguments) -> bool:
    """Whether `--resume_from_checkpoint` asks for it (`true`, as the flag of `Trainer`)."""
    return str(training.resume_from_checkpoint).lower() == "true"


def run_settings(arguments: Arguments) -> dict[str, Any]:
    """What determines the result of a run, by flag name."""
    settings = {**asdict(arguments.model), **asdict(arguments.data), **asdict(arguments.method)}
    for name in ("train_data", "eval_data"):  # a signature is a secret, and another one the next time
        settings[name] = settings[name] and public_address(settings[name])
    for name in ("max_bad_fraction", "data_timeout"):  # only stop a run, which then goes on with a higher one
        del settings[name]
    for name in LEARNING_SETTINGS:
        value = getattr(arguments.training, name)
        settings[name] = value if isinstance(value, int | float | None) else str(getattr(value, "value", value))
    for name in ("bf16", "fp16"):  # a configuration file of accelerate may ask for it, past the flags
        settings[name] = arguments.training.mixed_precision == name
    return settings
