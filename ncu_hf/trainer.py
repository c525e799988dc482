"""The trainer of every method and phase."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    CLIPProcessor,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
)

from ncu_hf.adapters import has_adapters, load_adapters, plain_name, save_adapters
from ncu_hf.callbacks import ClampLogScale, CountEpochs, PlainLog, TerminalLog, WriteCard
from ncu_hf.checkpoint import (
    last_checkpoint,
    load_optimizer,
    load_tensors,
    read_json,
    rotate_checkpoints,
    save_optimizer,
    save_tensors,
    write_atomically,
    write_json,
)
from ncu_hf.config import NCUTrainingArguments
from ncu_hf.data import DataHealth, ImageTransform, PairLoader, Skipped, normalize
from ncu_hf.distributed import Shard, barrier, gather_json
from ncu_hf.errors import InputError, TrainingStopped
from ncu_hf.lean_towers import lean_towers
from ncu_hf.modeling import NCUModel, load_prompt
from ncu_hf.objectives import Objective
from ncu_hf.objectives.base import ReferenceEmbeds, SampleWeights
from ncu_hf.parameters import freeze, parameter_groups
from ncu_hf.samples.base import SampleState, Step
from ncu_hf.sharding import ShardedWeights, check_shardable, full_state, like, load_full_state
from ncu_hf.step import Chunks, encode_globally, pad_empty, split_rows, total_loss, two_stage_backward
from ncu_hf.step_metrics import RunningMeans
from ncu_hf.text_batches import caption_lengths
from ncu_hf.towers import checkpoint_blocks, compile_blocks
from ncu_hf.transfer import Transfer

DATA_STATE = "data_state.json"
OBJECTIVE_STATE = "objective.safetensors"
TEXT_INPUTS = ("input_ids", "negative_input_ids")
MODEL_INPUTS = ("pixel_values", *TEXT_INPUTS)
Beside = ReferenceEmbeds | SampleWeights


class NCUTrainer(Trainer):
    """`Trainer` for one phase: a two-stage step on embeddings, exact over chunks and processes.

    It differs from `Trainer` where the method needs it: batches come from a [`PairLoader`] that is already sharded and
    can start at any step; checkpoints are whole or absent, hold a plain `CLIPModel` and no pickle; a loss that is not
    finite stops the run before it touches a weight.

    Args:
        model (`NCUModel`): Float32 (or float64) weights; use `bf16`/`fp16` of the arguments for autocast.
        args (`NCUTrainingArguments`): `max_steps`, `learning_rate` and `output_dir` are those of this phase.
        objective (`Objective`): Losses of this phase, and which parameters train.
        make_loader (`Callable[[dict | None], PairLoader]`): Builds the loader that goes on at a position of the data.
        data_state (`dict`, *optional*): Position where the phase begins; the beginning of the data by default.
        batches_per_epoch (`int`, *optional*): Global batches of an epoch, where that is known.
        processor (`CLIPProcessor`): Saved with every checkpoint; its mean and deviation normalise the images.
        health (`DataHealth`): Counts the records that could not be used.
        adapted_towers (`tuple[str, ...]`): Towers with LoRA adapters, whose own weights stay as they are.
        samples (`SampleState`, *optional*): Numbers on every training pair, for an objective that needs them.
        write_card (`Callable[[Path, TrainerState, DataHealth], None]`, *optional*): Writes the card of the model at
            this state into a folder; called for every checkpoint, for the outcome, and instead of `Trainer`'s own card.
        callbacks (`list[TrainerCallback]`, *optional*): As in `Trainer`.
    """

    def __init__(
        self,
        model: NCUModel,
        args: NCUTrainingArguments,
        objective: Objective,
        make_loader: Callable[[dict[str, Any] | None], PairLoader],
        data_state: dict[str, Any] | None,
        batches_per_epoch: int | None,
        processor: CLIPProcessor,
        health: DataHealth,
        adapted_towers: tuple[str, ...] = (),
        samples: SampleState | None = None,
        write_card: Callable[[Path, TrainerState, DataHealth], None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if args.shard_weights:
            others = {"--torch_compile": args.torch_compile, "--fp16": args.fp16, "--lora_rank": bool(adapted_towers)}
            check_shardable(args.world_size, others | {"--method sdd": objective.needs_sample_weights})
        freeze(model, objective, adapted_towers)
        self.objective = objective
        self._sharded: ShardedWeights | None = None
        self.make_loader = make_loader
        self.health = health
        self.samples = samples
        self._loader: PairLoader | None = None
        self._data_state = data_state
        self._metrics = RunningMeans()
        self._transfer = Transfer(args.device)
        images = ImageTransform(processor.image_processor, train=False)
        self._normalization = images.mean, images.std, images.rescale
        self._card, self._known_health = write_card, health
        own = [ClampLogScale(), CountEpochs(batches_per_epoch), WriteCard(self._write_card)]
        super().__init__(
            model=model,
            args=_prepare_towers(model, args),
            processing_class=processor,
            callbacks=own + (callbacks or []),
        )
        # One short line instead of a dictionary of twenty numbers.
        self.pop_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self.add_callback(PlainLog() if args.disable_tqdm else TerminalLog())
        if self.args.n_gpu > 1:
            raise InputError(
                f"{self.args.n_gpu} GPUs and one process; start one a GPU: accelerate launch --num_processes "
                f"{self.args.n_gpu}, or choose one with CUDA_VISIBLE_DEVICES=0."
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or `--optim`) over [`parameter_groups`]."""
        if self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer = self._make_optimizer(parameter_groups(model, self.args))
        return self.optimizer

    def _make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        return optimizer_class(groups, **options)

    def get_train_dataloader(self) -> PairLoader:
        """The phase's loader, from where the phase begins or the resumed checkpoint stopped."""
        self._loader = self.make_loader(self._data_state)
        return self._loader

    def train(self, resume_from_checkpoint: str | None = None, **kwargs) -> None:
        """Train the phase, from the start or from one of its checkpoints."""
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
            self._data_state = read_json(Path(resume_from_checkpoint) / DATA_STATE)
            if state.global_step >= self.args.max_steps:
                self.state = state
                self._load_from_checkpoint(resume_from_checkpoint)
                self._load_health(resume_from_checkpoint)
                return
            # The loader goes on at the right batch by itself; Trainer would decode the earlier ones to skip them.
            self.args.ignore_data_skip = True
        if self.args.shard_weights:
            self._sharded = ShardedWeights(self.model, self.args.device)
            # accelerate would wrap the model in `DistributedDataParallel`; what else it does to one is as ever.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        if self.samples is not None and resume_from_checkpoint is None:
            self.samples.start(self.model.clip)
        elif self.samples is not None:
            self.samples.load(Path(resume_from_checkpoint))
        if resume_from_checkpoint is not None:
            self.objective.load_state_dict(load_tensors(Path(resume_from_checkpoint) / OBJECTIVE_STATE))
        super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Accumulate the gradient of one global batch; returns its loss."""
        model.train()
        self.health.update(inputs)
        loaded = len(inputs["keys"])
        if self.samples is not None:
            inputs = self.samples.select(self.model.clip, inputs)
        tensors = {key: inputs[key] for key in MODEL_INPUTS if key in inputs}
        # Sizes are exchanged while the host has nothing else for the device to wait for.
        shard, chunks = Shard.of(len(tensors["input_ids"]), self.args.device), self._chunks(tensors)
        outputs = two_stage_backward(
            partial(self._encode, model),
            chunks,
            partial(self._losses, self._beside(inputs, chunks, shard)),
            backward=lambda loss: self.accelerator.backward(loss / self.current_gradient_accumulation_steps),
            check=partial(self._check_loss, inputs["keys"]),
            no_sync=partial(self.accelerator.no_sync, model) if self._sharded is None else self._sharded.no_sync,
            shard=shard,
            sharded=self.objective.sharded,
        )
        if self._sharded is not None:
            self._sharded.release()
        loss = total_loss(outputs)
        self._metrics.add(outputs, samples=loaded * self.args.world_size, wait=self._loader_wait())
        return loss / self.current_gradient_accumulation_steps

    def _chunks(self, tensors: dict[str, Tensor]) -> Chunks:
        tensors, size = pad_empty(tensors), self.args.chunk_size
        return split_rows(tensors, size, None if size is None else self._lengths(tensors["input_ids"]))

    def _lengths(self, ids: Tensor) -> tuple[int, ...]:
        return caption_lengths(ids, self.model.clip.config.text_config.eos_token_id)

    def _encode(self, model: nn.Module, chunk: dict[str, Tensor]) -> Any:
        # The ids are read here, while they are on the CPU.
        lengths = {key: self._lengths(chunk[key]) for key in TEXT_INPUTS if key in chunk}
        chunk = self._transfer(chunk)
        pixel_values = normalize(chunk["pixel_values"], *self._normalization).to(self.model.clip.dtype)
        return model(
            *(pixel_values, chunk.get("input_ids"), self._of_negatives(chunk)),
            *(lengths.get("input_ids"), self._of_negatives(lengths)),
        )

    def _of_negatives(self, texts: dict[str, Any]) -> Any:
        """The entry of the texts whose negatives are encoded, if there is one."""
        if not self.objective.needs_negative_text:
            return None
        if "negative_input_ids" in texts or not self.objective.needs_prompt:
            return texts.get("negative_input_ids")
        return texts.get("input_ids")

    def _beside(self, inputs: dict[str, Any], chunks: Chunks, shard: Shard) -> list[Beside]:
        """What the objective takes besides the embeddings of the model."""
        beside: list[Beside] = []
        if self.objective.needs_reference:
            embeddings = encode_globally(partial(self._encode_unwrapped, self.model.reference), chunks, shard)
            beside.append(ReferenceEmbeds(embeddings.image, embeddings.text))
        if self.samples is not None:
            beside.append(self.samples.weights(inputs, self._step(inputs, chunks, shard)))
        return beside

    def _encode_unwrapped(self, model: Callable[..., Any], chunk: dict[str, Tensor]) -> Any:
        with self.accelerator.autocast():  # which wraps the forward pass of the whole model, not of a part or a copy
            return self._encode(model, chunk)

    def _step(self, inputs: dict[str, Any], chunks: Chunks, shard: Shard) -> Step:
        scaler = self.accelerator.scaler
        return Step(
            self.model,
            self.optimizer.optimizer,
            self._make_optimizer,
            self._encode_unwrapped,
            self._losses,
            partial(self._check_loss, inputs["keys"]),
            chunks,
            shard,
            self.args.chunk_size,
            self.args.max_grad_norm or 0.0,
            1.0 if scaler is None else scaler.get_scale(),
        )

    def _losses(
        self,
        beside: list[Beside],
        image: Tensor,
        text: Tensor,
        negative: Tensor | None,
        log_scale: Tensor,
        shard: Shard,
    ) -> dict[str, Tensor]:
        """The objective, on embeddings that it is made for."""
        if not shard.n:
            return {"empty_loss": 0 * log_scale}  # no record of the global batch could be used: nothing is learned
        outputs = self.objective(
            image, text, negative, log_scale, *beside, *([shard] if self.objective.sharded else [])
        )
        # An objective may drop a pair whose embedding is not a number, and must not: this is none then, and 0 else.
        total = shard.sum(sum(embeds.detach().sum() for embeds in (image, text, negative) if embeds is not None))
        return {key: value + 0 * total if key.endswith("_loss") else value for key, value in outputs.items()}

    def _loader_wait(self) -> float:
        return self.callback_handler.train_dataloader.last_wait_seconds

    def _check_loss(self, keys: list[str], loss: Tensor) -> None:
        if torch.isfinite(loss):
            return
        keys = [key for part in gather_json(keys, self.args.device) for key in part]
        folder = Path(self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "non_finite_batch.json", {"step": self.state.global_step + 1, "keys": keys})
        checkpoint = last_checkpoint(folder)
        raise TrainingStopped(
            f"the loss is {loss.item()} at step {self.state.global_step + 1} of phase {self.objective.phase}; "
            f"no weight was changed by it. Keys of the batch: {', '.join(keys[:4])}, ... (all {len(keys)} in "
            f"{folder / 'non_finite_batch.json'}). Last checkpoint: {checkpoint or 'none yet'}."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the objective's outputs since the last line, log s, samples/s and the wait for data.

        Also the place where all processes together look at the share of bad records.
        """
        if "loss" in logs:
            self._total_health().check()
            logs = {**logs, **self._metrics.drain(), "logit_scale": self.model.clip.logit_scale.item()}
        super().log(logs, start_time)

    # Checkpoints

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run's own card, where `Trainer` would write one that knows little (e.g. in `push_to_hub`)."""
        if self.is_world_process_zero():
            self._write_card(Path(self.args.output_dir), self.state)

    def _write_card(self, folder: Path, state: TrainerState) -> None:
        if self._card is not None:
            self._card(folder, state, self._known_health)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, its prompt and its processor; a collective."""
        model = self._whole_model()
        if self.args.should_save:
            self._write_model(model, output_dir or self.args.output_dir)

    def _whole_model(self) -> NCUModel | None:
        """The model with all its weights, on the process that writes it; a collective."""
        return self.model if self._sharded is None else self._sharded.gather()

    def _write_model(self, model: NCUModel, folder: Path | str) -> None:
        model.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        collected = self._whole_model(), full_state(self.optimizer.optimizer), self._total_health(), self._position()
        write = partial(self._write_state, *collected)
        if self.args.should_save:
            write_atomically(folder / f"checkpoint-{self.state.global_step}", write)
            rotate_checkpoints(folder, self.args.save_total_limit)
        barrier()

    def _position(self) -> dict[str, Any]:
        """Position behind the last batch, of all processes; a collective."""
        return self._data_state if self._loader is None else self._loader.state_dict()

    def _write_state(
        self, model: NCUModel, optimizer: dict[str, Any], health: DataHealth, position: dict[str, Any], folder: Path
    ) -> None:
        self._write_model(model, folder)
        save_adapters(model.clip, folder)
        save_optimizer(optimizer, folder)
        write_json(folder / "scheduler.json", self.lr_scheduler.state_dict())
        if self.accelerator.scaler is not None:
            write_json(folder / "scaler.json", self.accelerator.scaler.state_dict())
        write_json(folder / "data_health.json", health.state_dict())
        write_json(folder / DATA_STATE, position)
        save_tensors(self.objective.state_dict(), folder / OBJECTIVE_STATE)
        if self.samples is not None:
            self.samples.save(folder)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _total_health(self) -> DataHealth:
        """Counts of all processes; a collective."""
        total = DataHealth(self.health.max_bad_fraction)
        total.merge(gather_json(self.health.state_dict(), self.args.device))
        self._known_health = total
        return total

    def save_outcome(self, folder: Path) -> None:
        """Write what the phase leaves: model, processor, prompt, position in the data, and its record, `phase.json`."""
        model, health, position = self._whole_model(), self._total_health(), self._position()
        health.add_problems(Skipped(*problem) for problem in position.get("problems", ()))  # no batch has told them
        health.check(final=True)
        record = {
            "name": self.objective.phase,
            "steps": self.state.global_step,
            "epochs": self.state.epoch,
            "seconds": sum(line.get("train_runtime", 0.0) for line in self.state.log_history),
            "data_health": health.state_dict(),
            "log_history": self.state.log_history,
        }

        def write(path: Path) -> None:
            self._write_model(model, path)
            write_json(path / DATA_STATE, position)
            write_json(path / "phase.json", record)
            self._write_card(path, self.state)

        if self.args.should_save:
            write_atomically(folder, write)
        barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        clip = self.model.clip
        saved = CLIPModel.from_pretrained(resume_from_checkpoint, use_safetensors=True, dtype=clip.dtype).state_dict()
        with torch.no_grad():
            for name, parameter in clip.named_parameters():
                # Weights under an adapter are those that the phase started from.
                if name == plain_name(name):
                    parameter.copy_(like(saved[name], parameter))
            if self.model.negative_prompt is not None:
                saved = load_prompt(resume_from_checkpoint, dtype=clip.dtype).state_dict()
                for name, parameter in self.model.negative_prompt.named_parameters():
                    parameter.copy_(like(saved[name], parameter))
        if has_adapters(clip):
            load_adapters(clip, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = Path(checkpoint)
            load_full_state(self.optimizer.optimizer, load_optimizer(folder))
            self.lr_scheduler.load_state_dict(read_json(folder / "scheduler.json"))
            self._load_health(checkpoint)

    def _load_health(self, checkpoint: str) -> None:
        if self.args.should_save:  # the counts of all processes: one of them carries them on
            self.health.load_state_dict(read_json(Path(checkpoint) / "data_health.json"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(read_json(Path(checkpoint) / "scaler.json"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: randomness lives in the data, keyed by seed, epoch and position."""


def _prepare_towers(model: NCUModel, args: NCUTrainingArguments) -> NCUTrainingArguments:
    """Do to the blocks what `Trainer` would do to the model as a whole; returns arguments that ask for no more."""
    lean_towers(model.clip)
    if args.gradient_checkpointing:
        checkpoint_blocks(model)
    if args.torch_compile:
        compile_blocks(model, args.torch_compile_backend, args.torch_compile_mode)
    args = copy.copy(args)
    # The second is the first one's name in newer releases of transformers.
    args.gradient_checkpointing = args.activation_checkpointing = False
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
    return args
