"""Every setting of a run, with its default and the source of the default. Stated here and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from transformers import TrainingArguments

from ncu_hf.errors import InputError, one_of

FORMULATIONS = ("released", "paper")
FORGET_TARGETS = ("negative", "none")
TOWERS = ("text", "vision")
# N of all experiments of the paper (section 5.1). A constant: the default depends on what else is given.
GLOBAL_BATCH_SIZE = 2048


@dataclass
class ModelArguments:
    """The model to start from, and how its parameters train."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the CLIPModel to fine-tune (with its processor)."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "Train from scratch instead: a preset (tiny, demo, vit-b-32, vit-b-16) or a CLIPConfig JSON file."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of a model from scratch; by default one is trained on the captions."},
    )
    vocab_size: int = field(default=8192, metadata={"help": "Largest vocabulary of that trained tokenizer."})
    prompt_length: int = field(default=8, metadata={"help": "m, learnable vectors of the negative prompt (paper)."})
    negative_prompt: str | None = field(
        default=None, metadata={"help": "Start from this saved negative prompt (folder or Hub id) instead of noise."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains the weights themselves."})
    lora_alpha: float | None = field(default=None, metadata={"help": "LoRA scaling; twice the rank if not given."})
    lora_towers: str = field(default="text,vision", metadata={"help": "Towers that LoRA adapts: text, vision or both."})

    def __post_init__(self):
        if self.prompt_length < 1:
            raise InputError(f"--prompt_length must be at least 1, got {self.prompt_length}.")
        if self.lora_rank < 0:
            raise InputError(f"--lora_rank must be 0 (off) or positive, got {self.lora_rank}.")
        for tower in self.adapted_towers:
            one_of("--lora_towers", tower, TOWERS)

    @property
    def adapted_towers(self) -> tuple[str, ...]:
        """Towers with LoRA adapters; empty when LoRA is off."""
        return tuple(t.strip() for t in self.lora_towers.split(",")) if self.lora_rank else ()


@dataclass
class DataArguments:
    """Image-text pairs to train and to evaluate on."""

    train_data: str | None = field(
        default=None,
        metadata={
            "help": "cc3m, cc12m or yfcc15m-r (streamed from the Hub), CSV, parquet, WebDataset tars (glob, braces, "
            "URL), image folder, or Hub data set."
        },
    )
    eval_data: str | None = field(
        default=None,
        metadata={
            "help": "Clean pairs for retrieval, in the same formats, but indexed: no URLs, and of a Hub data set every "
            "split is downloaded."
        },
    )
    eval_sets: str | None = field(
        default=None,
        metadata={
            "help": "Further sets to measure on before and after, separated by commas: suites (paper, retrieval), "
            "names (cifar10), Hub ids (clip-benchmark/wds_...), or paths (labels.csv with classes.json, ...)."
        },
    )
    data_format: str | None = field(
        default=None, metadata={"help": "csv, parquet, webdataset, folder or hub; guessed from the name if not given."}
    )
    image_column: str = field(default="image_path", metadata={"help": "Column of the image (released code's name)."})
    caption_column: str = field(default="text_content", metadata={"help": "Column of the caption (released code's)."})
    delimiter: str = field(default=",", metadata={"help": "Delimiter of a CSV."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that relative image paths start from; the CSV's own if not given."}
    )
    split: str = field(default="train", metadata={"help": "Split of a Hub data set."})
    eval_split: str = field(default="test", metadata={"help": "Split of a Hub data set that is evaluated on."})
    data_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a Hub data set to train on."}
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub data set to train on, if it has several."}
    )
    streaming: bool | None = field(
        default=None,
        metadata={
            "help": "Read training pairs of the Hub without downloading them, and tars and parquet files without an "
            "index, forwards. Default: true for sets that are known by name, else false; URLs are always read so, CSV "
            "and image folders never."
        },
    )
    train_pairs: int | None = field(
        default=None,
        metadata={
            "help": "Number of pairs of a streamed set as a whole, before --train_subset, where it is not known: the "
            "steps of an epoch are counted by it."
        },
    )
    train_subset: str | None = field(
        default=None,
        metadata={
            "help": "Train on a random part: a share (0.5 or 50%%) or a number of pairs (500000). Of a stream whole "
            "shards are taken, the last one cut."
        },
    )
    subset_seed: int = field(default=0, metadata={"help": "Seed of the choice of that part."})
    data_timeout: float = field(
        default=300.0, metadata={"help": "Seconds without a byte from a stream after which the run stops."}
    )
    caption_tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer of captions that are stored as token ids (YFCC15M-R)."}
    )
    train_limit: int | None = field(
        default=None, metadata={"help": "Use only the first so many training pairs, of data that is not streamed."}
    )
    eval_limit: int | None = field(default=None, metadata={"help": "Use only the first so many evaluation pairs."})
    noise_share: float = field(
        default=0.0, metadata={"help": "Share of training pairs whose captions are made wrong, to study known noise."}
    )
    noise_seed: int = field(default=0, metadata={"help": "Seed of which pairs, and of what they get."})
    noise_kind: str = field(
        default="shuffled",
        metadata={
            "help": "What they get: captions of each other (shuffled), of the same class or nearly the same words "
            "(hard), a web text that fits no image (generic), or words of another caption for a part (partial)."
        },
    )
    noise_class_column: str | None = field(
        default=None,
        metadata={"help": "Column, or json field of tars, with the class of a pair, for --noise_kind hard."},
    )
    drop_mismatched: bool = field(
        default=False,
        metadata={"help": "Leave out the pairs that the noise made wrong: a bound for what forgetting them can bring."},
    )
    random_crop: bool = field(
        default=True, metadata={"help": "RandomResizedCrop of the training images (released code); else centre crop."}
    )
    crop_scale_min: float = field(default=0.5, metadata={"help": "Least area of a random crop (released code: 0.5)."})
    augment_negative_captions: bool = field(
        default=False,
        metadata={"help": "Randomly swap, delete and insert words in the captions of the negative branch (released)."},
    )
    max_bad_fraction: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the records cannot be used."}
    )

    def __post_init__(self):
        for name, value in (("noise_share", self.noise_share), ("max_bad_fraction", self.max_bad_fraction)):
            if not 0 <= value <= 1:
                raise InputError(f"--{name} is a share between 0 and 1, got {value}.")
        for name in ("noise_kind", "noise_class_column", "drop_mismatched"):
            value = getattr(self, name)
            if not self.noise_share and value != getattr(DataArguments, name):
                raise InputError(f"--{name} {value} has no effect without --noise_share; give that too, e.g. 0.3.")
        for name in ("train_pairs", "train_limit", "eval_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}.")
        for name in ("noise_seed", "subset_seed"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} must not be negative, got {getattr(self, name)}.")
        if not self.data_timeout > 0:
            raise InputError(f"--data_timeout must be positive (seconds), got {self.data_timeout}.")
        if not 0 < self.crop_scale_min <= 1:
            raise InputError(f"--crop_scale_min is a share of the area in (0, 1], got {self.crop_scale_min}.")


@dataclass
class MethodArguments:
    """What is minimised. Defaults: paper, section 4 and 5.1, and the released code where the paper is silent."""

    method: str = field(
        default="ncu",
        metadata={
            "help": "ncu; for comparison clip (symmetric InfoNCE), clip_retained, gradient_ascent or softclip; ncu "
            "with a part replaced, as in the paper's V1 to V4: ncu_text_negation, ncu_max_distance, "
            "ncu_false_negatives_only or ncu_false_positives_only; sdd (self-drop and dual weights)."
        },
    )
    formulation: str = field(
        default="released", metadata={"help": "released (the authors' code) or paper (the printed equations)."}
    )
    forget_ratio: float = field(default=0.1, metadata={"help": "P, share of a batch to forget (released: 0.1)."})
    forget_window: int = field(
        default=1,
        metadata={
            "help": "Batches whose clean confidences are ranked together, the last of them being the one to split; 1 "
            "ranks a batch by itself (paper)."
        },
    )
    forget_target: str = field(
        default="negative",
        metadata={
            "help": "What phase 2 aligns forgotten pairs with: negative (images with their negative captions, captions "
            "with the plan; paper), or none (they only stay as negatives of the others)."
        },
    )
    plan_weight: float = field(default=0.7, metadata={"help": "γ, weight of the transport plan in the target."})
    entropy: float = field(default=0.03, metadata={"help": "ε, entropic regularisation of the transport."})
    margin_low: float = field(default=-0.7, metadata={"help": "α, lower end of the separation band."})
    margin_high: float = field(default=-0.2, metadata={"help": "β, upper end of the separation band."})
    relation_weight: float = field(default=10.0, metadata={"help": "λ, weight of separation + relation in phase 1."})
    negative_rank: int = field(
        default=0,
        metadata={
            "help": "Rank of low-rank updates of the text tower that are active in the negative pass alone: phase 1 "
            "then trains them and the prompt, and leaves the model as it is. 0: none, the tower itself trains (paper)."
        },
    )
    frozen_text_blocks: int | None = field(
        default=None,
        metadata={
            "help": "Lower text blocks frozen in phase 2: 5 (released), or 5/12 of a tower that has no more than five."
        },
    )
    freeze_token_embedding: bool = field(
        default=True, metadata={"help": "Freeze the token embedding in phase 2 (meant by the released code)."}
    )
    label_smoothing: float = field(
        default=0.1, metadata={"help": "Of gradient_ascent: label smoothing on the retained pairs (Szegedy et al.)."}
    )
    soft_weight: float = field(
        default=0.5, metadata={"help": "Of softclip: share of the self-similarity in the targets (own choice)."}
    )
    soft_temperature: float = field(
        default=0.07, metadata={"help": "Of softclip: temperature of the self-similarity (CLIP's initial 0.07)."}
    )
    sdd_clean_threshold: float = field(
        default=0.30,
        metadata={"help": "Of sdd: paired cosine above which the memory bank takes a pair (its authors' release)."},
    )
    sdd_drop_threshold: float = field(
        default=0.20,
        metadata={"help": "Of sdd: paired cosine up to which an epoch drops a pair (its authors' release)."},
    )

    def __post_init__(self):
        one_of("--formulation", self.formulation, FORMULATIONS)
        one_of("--forget_target", self.forget_target, FORGET_TARGETS)
        if not 0 <= self.forget_ratio < 1:
            raise InputError(f"--forget_ratio is a share in [0, 1), got {self.forget_ratio}.")
        for name in ("plan_weight", "label_smoothing", "soft_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name} is a share between 0 and 1, got {getattr(self, name)}.")
        for name in ("sdd_clean_threshold", "sdd_drop_threshold"):
            if not -1 <= getattr(self, name) < 1:
                raise InputError(f"--{name} is a cosine in [-1, 1), got {getattr(self, name)}.")
        for name in ("entropy", "soft_temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name} must be positive, got {getattr(self, name)}.")
        if self.forget_window < 1:
            raise InputError(f"--forget_window must be at least 1, got {self.forget_window}.")
        if self.negative_rank < 0:
            raise InputError(f"--negative_rank must be 0 (off) or positive, got {self.negative_rank}.")
        if not -1 <= self.margin_low <= self.margin_high <= 1:
            raise InputError(
                f"--margin_low and --margin_high are cosines in order, got {self.margin_low} and {self.margin_high}."
            )

    def text_blocks_to_freeze(self, text_layers: int) -> int:
        """Number of lower text blocks that phase 2 freezes in a tower of `text_layers` blocks."""
        if self.frozen_text_blocks is not None:
            return self.frozen_text_blocks
        return 5 if text_layers > 5 else 5 * text_layers // 12


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
