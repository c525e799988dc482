"""What happens around the trainer's steps: the clamp of log s, and epochs of an endless loader."""

from __future__ import annotations

import math

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ncu_hf.modeling import NCUModel

MAX_LOG_SCALE = math.log(100)


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
