"""Settings of the training: what `TrainingArguments` has, with other defaults, and more."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments

from ncu_hf.errors import InputError, one_of

# N of all experiments of the paper (section 5.1). A constant: the default depends on what else is given.
GLOBAL_BATCH_SIZE = 2048

# Flags of `TrainingArguments` that this trainer cannot honour, and what takes their place.
_UNSUPPORTED = {
    "gradient_checkpointing_kwargs": "every block is checkpointed, as its hooks need it",
    "activation_checkpointing_kwargs": "every block is checkpointed, as its hooks need it",
    "auto_find_batch_size": "the batch decides what is learned; --chunk_size fits it into memory",
    "label_smoothing_factor": "the losses are those of --method",
    "neftune_noise_alpha": "a batch determines its loss",
    "eval_strategy": "reference and result are measured on --eval_data at the end",
    "load_best_model_at_end": "the result is the model after the last step",
    "save_only_model": "every checkpoint can be resumed from",
    "dataloader_prefetch_factor": "a worker is always two batches ahead",
    "dataloader_persistent_workers": "workers live as long as a phase",
    "torch_empty_cache_steps": "--chunk_size fits a step into memory",
    "hub_strategy": "the result is published when it is measured, whole",
    "deepspeed": "--shard_weights spreads weights and the optimizer's state, --chunk_size bounds activations",
    "fsdp": "--shard_weights does that",
}


@dataclass
class NCUTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the method's defaults; fields without a comment in the help are Trainer's own.

    `num_train_epochs`, `max_steps` and `learning_rate` belong to the last phase (of `ncu`: unlearning).
    """

    output_dir: str | None = field(default=None, metadata={"help": "Where everything is written; must be new."})
    global_batch_size: int | None = field(
        default=None, metadata={"help": "N, pairs of a batch over all processes (paper: 2048, the default)."}
    )
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "B = N / processes; give this or --global_batch_size."}
    )
    chunk_size: int | None = field(
        default=None,
        metadata={"help": "Rows that a process encodes at a time; any value gives the gradient of the full batch."},
    )
    shard_weights: bool = field(
        default=False, metadata={"help": "Spread weights and the optimizer's state over the processes (FSDP2)."}
    )
    num_train_epochs: float = field(default=8, metadata={"help": "Epochs of the last phase (paper: 8)."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the last phase (released: 5e-5)."})
    negative_prompt_epochs: float = field(default=2, metadata={"help": "Epochs of phase 1 (paper: 2)."})
    negative_prompt_max_steps: int = field(default=-1, metadata={"help": "If positive, steps of phase 1 instead."})
    negative_prompt_learning_rate: float = field(
        default=1e-4, metadata={"help": "Learning rate of text tower and projections in phase 1 (released: 1e-4)."}
    )
    prompt_learning_rate: float = field(
        default=3e-4, metadata={"help": "Learning rate of the negative prompt in phase 1 (released: 3e-4)."}
    )
    estimate_forget_ratio: bool = field(
        default=False,
        metadata={
            "help": "Estimate --forget_ratio before the first phase: the share of the training pairs in the lower of "
            "two Gaussians of their cosines, 0 where these are one heap."
        },
    )
    weight_decay: float = field(default=0.2, metadata={"help": "Weight decay (released: 0.2)."})
    prompt_weight_decay: float = field(default=0.2, metadata={"help": "Weight decay of the prompt (released: 0.2)."})
    adam_beta2: float = field(default=0.98, metadata={"help": "β₂ of AdamW (released: 0.98)."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clipping of the gradient norm; 0 is off (released)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up (released)."})
    warmup_steps: float = field(
        default=100, metadata={"help": "Warm-up steps of each phase (released: 100); below 1, a share of the phase."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off: a loss that is not finite stops the run."}
    )
    save_steps: float = field(default=500, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that a phase keeps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Off: the trainer reads whole batches."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Off: a phase freezes its parameters before the model is wrapped."}
    )
    ddp_timeout: int = field(
        default=86_400,
        metadata={
            "help": "Seconds that a process waits for the others: while one fetches evaluation sets or publishes, they "
            "wait. Of a process that dies they hear at once, from the launcher."
        },
    )
    plan: bool = field(
        default=False, metadata={"help": "Print what the run would do, need and write; train nothing, write nothing."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "true: go on where the run in --output_dir stopped, in whichever phase."}
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Licence of the published model, by the Hub's identifier (mit, cc-by-4.0, ...)."},
    )
    language: str | None = field(default=None, metadata={"help": "Language of the captions, for the card (en, ...)."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete what an earlier run left in --output_dir."}
    )

    def __post_init__(self):
        if self.resume_from_checkpoint is not None:
            one_of("--resume_from_checkpoint", str(self.resume_from_checkpoint).lower(), ("true", "false"))
        if self.gradient_accumulation_steps < 1:
            raise InputError(
                f"--gradient_accumulation_steps must be at least 1, got {self.gradient_accumulation_steps}."
            )
        self._refuse_unsupported()
        self._use_new_names()
        self._resolve_batch()
        # Of several processes without an accelerator, `Trainer` has to be told that they are processes of a CPU.
        self.use_cpu |= int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
        super().__post_init__()

    def _refuse_unsupported(self) -> None:  # better an error than a run that ignores a flag
        for setting in fields(TrainingArguments):  # which of them exist depends on the release of transformers
            value = getattr(self, setting.name)
            if setting.name in _UNSUPPORTED and getattr(value, "value", value) != setting.default:
                raise InputError(f"--{setting.name} is not supported: {_UNSUPPORTED[setting.name]}.")
        self._refuse_launched()

    def _refuse_launched(self) -> None:
        """What a configuration file of accelerate asks for, past the flags."""
        for name in ("fsdp", "deepspeed"):
            if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
                raise InputError(f"accelerate's {name} configuration is not supported: {_UNSUPPORTED[name]}.")
        backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
        if backend != "no":
            raise InputError(
                f"accelerate's dynamo_backend {backend} is not supported: it compiles the model as a whole; leave it "
                f"out and use --torch_compile_backend {backend}, which compiles its blocks."
            )

    def _use_new_names(self) -> None:
        """The flag that every supported release of transformers has is, in the newer ones, an alias with a warning."""
        if "activation_checkpointing" in {setting.name for setting in fields(TrainingArguments)}:
            new, old = self.activation_checkpointing, self.gradient_checkpointing
            self.activation_checkpointing, self.gradient_checkpointing = old if new is None else new, None

    def _resolve_batch(self) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.global_batch_size, self.per_device_train_batch_size = share_batch(
            self.global_batch_size, self.per_device_train_batch_size, processes
        )
        if self.chunk_size is not None and not 1 <= self.chunk_size <= self.per_device_train_batch_size:
            raise InputError(
                f"--chunk_size {self.chunk_size} does not fit: a process has {self.per_device_train_batch_size} rows "
                "a step; use 1 to that many, or leave it out."
            )


def share_batch(global_size: int | None, local_size: int | None, processes: int) -> tuple[int, int]:
    """N and B = N / W from whichever of the two is given (`GLOBAL_BATCH_SIZE` if neither is).

    Raises:
        InputError: they contradict each other, N cannot be shared equally, or N is below 2.
    """
    if local_size is None:
        global_size = GLOBAL_BATCH_SIZE if global_size is None else global_size
        if global_size % processes:
            raise InputError(
                f"--global_batch_size {global_size} cannot be shared by {processes} processes; "
                f"use a multiple of {processes}."
            )
        local_size = global_size // processes
    elif global_size not in (None, local_size * processes):
        raise InputError(
            f"--global_batch_size {global_size} is not --per_device_train_batch_size {local_size} times {processes} "
            "processes; give only one of them."
        )
    global_size = local_size * processes
    if global_size < 2:
        raise InputError(f"The batch has {global_size} pair; a contrastive loss needs at least 2: --global_batch_size.")
    return global_size, local_size
