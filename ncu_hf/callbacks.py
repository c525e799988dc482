"""What happens around the trainer's steps: the clamp of log s, epochs of an endless loader, and what is printed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ncu_hf.modeling import NCUModel

MAX_LOG_SCALE = math.log(100)
# Share of the time above which waiting for data is worth a hint.
WAIT_TO_TELL = 0.25


class ClampLogScale(TrainerCallback):
    """Keep s = exp(logit_scale) in [1, 100] after every optimizer step (Radford et al. 2021, section 2.4)."""

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: NCUModel, **kwargs
    ) -> None:
        model.clip.logit_scale.clamp_(0, MAX_LOG_SCALE)


class CountEpochs(TrainerCallback):
    """Epochs by the loader's count.

    The trainer takes batches from one endless loader, so that a run can go on at any step; for `Trainer` the whole
    run is one epoch. This callback states the true one and acts on the strategies that name it.

    Args:
        batches_per_epoch (`int`, *optional*): Global batches of an epoch; `None` where the length is not known.
    """

    def __init__(self, batches_per_epoch: int | None):
        self.batches_per_epoch = batches_per_epoch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> TrainerControl:
        if self.batches_per_epoch is not None:
            batches = state.global_step * args.gradient_accumulation_steps
            state.epoch = batches / self.batches_per_epoch
            if (batches - args.gradient_accumulation_steps) // self.batches_per_epoch < int(state.epoch):
                control.should_save |= args.save_strategy == SaveStrategy.EPOCH
                control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
        return control


class WriteCard(TrainerCallback):
    """Puts the model card into every checkpoint.

    Args:
        write (`Callable[[Path, TrainerState], None]`): Writes the card of the model at this state into a folder.
    """

    def __init__(self, write: Callable[[Path, TrainerState], None]):
        self.write = write

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.is_world_process_zero:
            self.write(Path(args.output_dir) / f"checkpoint-{state.global_step}", state)


class PlainLog(TrainerCallback):
    """One short line for each entry of the log, for files; all numbers are in the log's history and in `report_to`.

    Says once if data are the bottleneck.
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._first_step = 0
        self._lines, self._told = 0, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> TrainerControl:
        self._started, self._first_step = time.perf_counter(), state.global_step
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs,
    ) -> TrainerControl:
        if state.is_world_process_zero and logs and "loss" in logs:
            seconds = (time.perf_counter() - self._started) / max(state.global_step - self._first_step, 1)
            left = timedelta(seconds=round(seconds * (state.max_steps - state.global_step)))
            self.write(f"step {state.global_step}/{state.max_steps}  {short_line(logs)}  {left} left")
            self._lines += 1
            self._judge_wait(args, logs["data_wait_share"])
        return control

    def _judge_wait(self, args: TrainingArguments, share: float) -> None:
        """The first line has the start of the workers in it, hence says nothing."""
        if self._lines == 1 or share < WAIT_TO_TELL or self._told:
            return
        self._told = True
        self.write(
            f"Data are the bottleneck: {share:.0%} of the time is spent waiting for them. Raise "
            f"--dataloader_num_workers ({args.dataloader_num_workers} now), or see `scripts/benchmark.py data`."
        )

    def write(self, line: str) -> None:
        """Where the line goes."""
        print(line, flush=True)


class TerminalLog(PlainLog, ProgressCallback):
    """The same above Trainer's progress bar."""

    def __init__(self) -> None:
        ProgressCallback.__init__(self)
        PlainLog.__init__(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> TrainerControl:
        ProgressCallback.on_train_begin(self, args, state, control, **kwargs)
        return PlainLog.on_train_begin(self, args, state, control, **kwargs)

    def write(self, line: str) -> None:
        self.training_bar.write(line)


def short_line(logs: dict[str, float]) -> str:
    """Total loss, its parts, learning rate and rate of one entry of the log."""
    parts = [f"{key.removesuffix('_loss')} {value:.4g}" for key, value in logs.items() if key.endswith("_loss")]
    numbers = f"loss {logs['loss']:.4g} ({', '.join(parts)})  lr {logs['learning_rate']:.2g}"
    return f"epoch {logs.get('epoch', 0):.2f}  {numbers}  {speed(logs)}"


def speed(logs: dict[str, float]) -> str:
    """Rate, and how much of the time the steps wait for data."""
    return f"{logs['samples_per_second']:.0f} pairs/s, {logs['data_wait_share']:.0%} waiting for data"
