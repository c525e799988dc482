"""What each phase of a run would do, need and leave."""

from __future__ import annotations

import copy
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers.trainer_utils import SaveStrategy

from ncu_hf.adapters import is_adapter
from ncu_hf.checkpoint import last_checkpoint
from ncu_hf.distributed import world
from ncu_hf.modeling import NCUModel
from ncu_hf.objectives import Objective
from ncu_hf.objectives.ablations import FalseNegativesObjective
from ncu_hf.objectives.clip import RetainedClipObjective
from ncu_hf.objectives.negative_prompt import NegativePromptObjective
from ncu_hf.phases import make_trainer
from ncu_hf.planning.memory import backward_bytes, embedding_bytes, matrix_bytes, optimizer_bytes, parameter_bytes
from ncu_hf.run import Run
from ncu_hf.trainer import NCUTrainer
from ncu_hf.workspace import resuming

# A tensor's entry in the header of a safetensors file: name, type, shape and place.
_HEADER_BYTES = 110
_CARD_BYTES = 80_000  # text and the plot of the losses


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step on the training device, by what it is for, in bytes.

    Args:
        weights (`int`): Of all parameters, and of this process's shards where they are spread.
        gradients (`int`): Of the parameters that train, once all are there; part of `backward`.
        buckets (`int`): Copy of the gradients that is reduced.
        optimizer (`int`, *optional*): This process's state of the optimizer; `None` where that is not known.
        copy (`int`): Of the parameters that train and of the optimizer's state, for a method that looks a step ahead.
        embeddings (`int`): Gathered from all processes.
        matrices (`int`): Losses, transport and their gradients, at their peak, beside the activations of a chunk.
        backward (`int`): Activations of a chunk and gradients, at their common peak.
    """

    weights: int
    gradients: int
    buckets: int
    optimizer: int | None
    copy: int
    embeddings: int
    matrices: int
    backward: int

    @property
    def peak(self) -> int:
        """`int`: all of it; an upper bound, for losses and backward pass have their peaks one after the other."""
        standing = self.weights + self.buckets + (self.optimizer or 0) + self.copy + self.embeddings
        return standing + max(self.matrices + self.backward, self.gradients)


@dataclass(frozen=True)
class PhasePlan:
    """One phase.

    Args:
        name (`str`): Of the phase.
        epochs (`float`, *optional*): Passes over the data; `None` where their length is not known.
        steps, warmup_steps (`int`): Optimizer steps, and those of them with a rising rate.
        learning_rate (`float`): At the end of the warm-up.
        global_batch, accumulation (`int`): N, and batches a step.
        samples_seen (`int`): Pairs, each as often as it is met.
        passes (`int`, *optional*): Passes over all pairs that train nothing, at the starts of epochs; `None` where no
            method needs them.
        negatives (`str`): What an image is contrasted with.
        trainable, parameters (`int`): Numbers of parameters.
        memory (`StepMemory`): Of a step.
        checkpoints, checkpoints_kept (`int`): How many are written, and how many of them stay.
        checkpoint_bytes, outcome_bytes (`int`): Size of one, and of what the phase leaves at its end.
        standing (`str`): What an earlier run has done of it; empty if nothing.
    """

    name: str
    epochs: float | None
    steps: int
    warmup_steps: int
    learning_rate: float
    global_batch: int
    accumulation: int
    samples_seen: int
    passes: int | None
    negatives: str
    trainable: int
    parameters: int
    memory: StepMemory
    checkpoints: int
    checkpoints_kept: int
    checkpoint_bytes: int
    outcome_bytes: int
    standing: str


def plan_phase(run: Run, objective: Objective, tokens: int) -> PhasePlan:
    """Build the phase's trainer as the run would, and read off what it is going to do.

    Args:
        run (`Run`): Settings, data and reference.
        objective (`Objective`): The phase.
        tokens (`int`): Length of the captions in a batch.
    """
    training = run.arguments.training
    with tempfile.TemporaryDirectory() as folder:  # `Trainer` makes the output folder that it is told
        trainer = make_trainer(run, objective, copy.deepcopy(run.reference.clip), None, Path(folder))
    steps, batches_per_epoch = trainer.args.max_steps, run.batches_per_epoch()
    batches = steps * training.gradient_accumulation_steps
    memory = step_memory(trainer, tokens)
    outcome = outcome_bytes(run, trainer.model)
    checkpoints = checkpoint_count(trainer, batches_per_epoch)
    return PhasePlan(
        name=objective.phase,
        epochs=None if batches_per_epoch is None else batches / batches_per_epoch,
        steps=steps,
        warmup_steps=min(trainer.args.get_warmup_steps(steps), steps),
        learning_rate=trainer.args.learning_rate,
        global_batch=training.global_batch_size,
        accumulation=training.gradient_accumulation_steps,
        samples_seen=batches * training.global_batch_size,
        passes=None if trainer.samples is None else math.ceil(batches / batches_per_epoch),
        negatives=negatives(objective, training.global_batch_size),
        trainable=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        memory=memory,
        checkpoints=checkpoints,
        checkpoints_kept=min(checkpoints, training.save_total_limit or checkpoints),
        checkpoint_bytes=outcome + state_bytes(trainer, memory, run),
        outcome_bytes=outcome,
        standing=_standing(run, objective),
    )


def step_memory(trainer: NCUTrainer, tokens: int) -> StepMemory:
    """Memory of a step of `trainer` with captions of `tokens` tokens."""
    args, model, objective = trainer.args, trainer.model, trainer.objective
    width = model.clip.config.projection_dim
    gradients = parameter_bytes(model, trainable=True)
    rows = args.chunk_size or args.per_device_train_batch_size
    chunked = rows < args.per_device_train_batch_size
    weights, optimizer = parameter_bytes(model), optimizer_bytes(trainer)
    if args.shard_weights:
        weights += weights // args.world_size
        optimizer = None if optimizer is None else optimizer // args.world_size
    return StepMemory(
        weights=weights,
        gradients=gradients,
        buckets=gradients if world()[1] > 1 else 0,
        optimizer=optimizer,
        copy=gradients + (optimizer or 0) if objective.needs_sample_weights else 0,
        embeddings=embedding_bytes(objective, args.global_batch_size, width),
        matrices=matrix_bytes(objective, args.global_batch_size, width, args.world_size),
        backward=backward_bytes(trainer, rows, tokens, chunked or args.gradient_accumulation_steps > 1),
    )


def negatives(objective: Objective, batch: int) -> str:
    """What an image is contrasted with in a global batch of N pairs: other captions, and its own caption's negative.

    Some phases learn from the retained pairs alone (of `gradient_ascent` the retained images are meant), `sdd` from
    pairs of which it is not known yet how many there are.
    """
    if objective.needs_sample_weights:
        return f"at most {batch - 1:,}"
    if isinstance(objective, NegativePromptObjective | RetainedClipObjective):
        batch -= int(objective.arguments.forget_ratio * batch)
    if not objective.needs_negative_text or isinstance(objective, FalseNegativesObjective):
        return f"{batch - 1:,}"
    return f"{batch - 1:,} + 1 {'learned' if objective.needs_prompt else 'written'}"


def outcome_bytes(run: Run, model: NCUModel) -> int:
    """Size of a folder with the model as a plain CLIP, its prompt, its processor and its card."""
    tensors = list(run.reference.clip.state_dict().values())
    if model.negative_prompt is not None:
        tensors += model.negative_prompt.state_dict().values()
    with tempfile.TemporaryDirectory() as folder:
        run.reference.processor.save_pretrained(folder)
        run.reference.clip.config.save_pretrained(folder)
        small = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return sum(tensor.nbytes + _HEADER_BYTES for tensor in tensors) + small + _CARD_BYTES


def state_bytes(trainer: NCUTrainer, memory: StepMemory, run: Run) -> int:
    """What a checkpoint holds beside the model: the optimizer's state, adapters, numbers on every training pair."""
    named = [(name, parameter) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    adapters = sum(parameter.nbytes + _HEADER_BYTES for name, parameter in named if is_adapter(name))
    shards = trainer.args.world_size if trainer.args.shard_weights else 1
    state = 2 * memory.gradients if memory.optimizer is None else shards * memory.optimizer
    samples = 0 if trainer.samples is None else len(run.source) * trainer.samples.saved_bytes
    return state + 3 * len(named) * _HEADER_BYTES + adapters + samples  # AdamW keeps three tensors a parameter


def checkpoint_count(trainer: NCUTrainer, batches_per_epoch: int | None) -> int:
    """How many checkpoints the trainer writes: at its interval, and after the last step."""
    args, steps = trainer.args, trainer.args.max_steps
    if args.save_strategy == SaveStrategy.STEPS:
        interval = math.ceil(steps * args.save_steps) if args.save_steps < 1 else int(args.save_steps)
        return math.ceil(steps / interval) if interval > 0 else 1
    if args.save_strategy == SaveStrategy.EPOCH:
        batches = steps * args.gradient_accumulation_steps
        return 1 if batches_per_epoch is None else math.ceil(batches / batches_per_epoch)
    return 0


def _standing(run: Run, objective: Objective) -> str:
    if not resuming(run.arguments.training):
        return ""
    if run.workspace.final(objective.phase).is_dir():
        return "complete"
    checkpoint = last_checkpoint(run.workspace.phase(objective.phase))
    return "" if checkpoint is None else f"goes on from {checkpoint.name}"
