"""Whole optimizer steps that `benchmark.py step` and `benchmark.py memory` compare, all from the same batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from benchmark_references import released_unlearning
from benchmark_text import padded_negative, padded_text, random_captions, word_counts
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPModel

from ncu_hf.config import MethodArguments
from ncu_hf.data import normalize
from ncu_hf.distributed import Shard
from ncu_hf.lean_towers import lean_towers
from ncu_hf.modeling import Embeddings, NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.objectives import Objective, build_objectives
from ncu_hf.parameters import freeze
from ncu_hf.step import split_rows, two_stage_backward
from ncu_hf.text_batches import caption_end, caption_lengths

# CLIP's, of the image processor of every released checkpoint.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def random_batch(clip: CLIPModel, rows: int, words: float, *, pin: bool) -> dict[str, Tensor]:
    """A batch as the loader gives it, in the host's memory: uint8 pixels, and captions padded to the longest.

    Args:
        clip (`CLIPModel`): For its sizes.
        rows (`int`): N.
        words (`float`): Mean number of words, see [`word_counts`].
        pin (`bool`): In page-locked memory.
    """
    generator = torch.Generator().manual_seed(0)
    side = clip.config.vision_config.image_size
    ids = random_captions(word_counts(rows, words, generator), clip, generator)
    pixels = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=generator)
    batch = {"pixel_values": pixels, "input_ids": ids}
    return {key: value.pin_memory() for key, value in batch.items()} if pin else batch


class Setting(NamedTuple):
    """What all variants share.

    Attributes:
        clip (`CLIPModel`): Weights to start from, on the device; every variant takes a copy.
        batch (`dict[str, Tensor]`): From [`random_batch`].
        phase (`str`): Name of the phase of `ncu`.
        device (`torch.device`): Where the steps run.
        bf16 (`bool`): Autocast of the towers.
    """

    clip: CLIPModel
    batch: dict[str, Tensor]
    phase: str
    device: torch.device
    bf16: bool

    def objective(self, **changes) -> Objective:
        """The phase's objective with its default settings, but for `changes`."""
        return {o.phase: o for o in build_objectives(MethodArguments(**changes))}[self.phase]

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def model(self, objective: Objective) -> NCUModel:
        """A copy of the weights with a negative prompt, frozen as the phase wants it."""
        clip = copy.deepcopy(self.clip)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            prompt = NegativePrompt(NegativePromptConfig.of(clip.config.text_config, 8))
        model = NCUModel(clip, prompt.to(self.device)).train()
        freeze(model, objective)
        return model

    def lean_model(self, objective: Objective) -> NCUModel:
        """The same with towers as [`NCUTrainer`] prepares them."""
        model = self.model(objective)
        lean_towers(model.clip)
        return model

    def moved(self, chunk: dict[str, Tensor]) -> dict[str, Tensor]:
        """`chunk` on the device, its pixels normalised."""
        chunk = {key: value.to(self.device, non_blocking=True) for key, value in chunk.items()}
        return {**chunk, "pixel_values": normalize(chunk["pixel_values"], _MEAN, _STD)}

    def lengths(self, chunk: dict[str, Tensor]) -> tuple[int, ...]:
        """Tokens of each caption."""
        return caption_lengths(chunk["input_ids"], self.clip.config.text_config.eos_token_id)

    def encode(self, model: nn.Module, chunk: dict[str, Tensor]) -> tuple[Embeddings, Tensor]:
        """As `NCUTrainer` does: the lengths of the captions are read while they are in the host's memory."""
        lengths = self.lengths(chunk) if "input_ids" in chunk else None
        chunk = self.moved(chunk)
        captions = chunk.get("input_ids")
        with self.autocast():
            return model(chunk["pixel_values"], captions, captions, lengths, lengths)


@dataclass
class Variant:
    """One way to make a step.

    Attributes:
        model (`nn.Module`): Its own copy of the weights.
        backward: Accumulates the gradient of the batch in them.
        optimizer (`torch.optim.Optimizer`): Fused AdamW over what trains.
    """

    model: nn.Module
    backward: Callable[[], None]
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self):
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, betas=(0.9, 0.98), weight_decay=0.2, fused=True)

    def step(self) -> None:
        """From the batch in the host's memory to changed weights."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def standing_bytes(self) -> int:
        """Weights and the optimizer's state: what the variant holds between two steps."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(tensor.nbytes for tensor in [*self.model.parameters(), *self.model.buffers(), *states])


def ours(setting: Setting, chunk_size: int | None = None, prepare: Callable[[NCUModel], None] | None = None) -> Variant:
    """This project's step, as `NCUTrainer.training_step` makes it; `prepare` changes the model before its first."""
    objective = setting.objective()
    model = setting.lean_model(objective)
    if prepare is not None:
        prepare(model)

    def losses(image: Tensor, text: Tensor, negative: Tensor, log_scale: Tensor, shard: Shard) -> dict[str, Tensor]:
        return objective(image, text, negative, log_scale, *([shard] if objective.sharded else []))

    def backward() -> None:
        two_stage_backward(
            partial(setting.encode, model),
            split_rows(setting.batch, chunk_size, None if chunk_size is None else setting.lengths(setting.batch)),
            losses,
            backward=lambda loss: loss.backward(),
            check=_check_finite,
            sharded=objective.sharded,
        )

    return Variant(model, backward)


def _check_finite(loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise RuntimeError("The loss of the benchmark is not finite.")


def floor(setting: Setting, prepare: Callable[[NCUModel], None] | None = None) -> Variant:
    """Image, caption and negative encoded once each, without a loss: what no implementation of the method can save."""
    model = setting.lean_model(setting.objective())
    if prepare is not None:
        prepare(model)
    generator = torch.Generator().manual_seed(1)
    rows, width = len(setting.batch["input_ids"]), setting.clip.config.projection_dim
    fixed = torch.randn(3, rows, width, generator=generator).to(setting.device)

    def backward() -> None:
        embeddings, log_scale = setting.encode(model, setting.batch)
        loss = log_scale + sum((embeds * own).sum() for embeds, own in zip(embeddings, fixed, strict=True))
        loss.backward()

    return Variant(model, backward)


def plain_clip(setting: Setting) -> Variant:
    """Contrastive step of a stock `CLIPModel`: all parameters train, captions come as with `padding="max_length"`."""
    clip = copy.deepcopy(setting.clip).train().requires_grad_()
    context = clip.config.text_config.max_position_embeddings
    ids = padded(setting.batch["input_ids"], context)
    end = caption_end(ids, clip.config.text_config.eos_token_id)
    mask = (torch.arange(context) <= end[:, None]).long()
    batch = {**setting.batch, "input_ids": ids, "attention_mask": mask}

    def backward() -> None:
        with setting.autocast():
            clip(**setting.moved(batch), return_loss=True).loss.backward()

    return Variant(clip, backward)


def released(setting: Setting) -> Variant:
    """The structure of phase 2 of the released code: both text passes padded to the context, and a token embedding
    that trains (its freeze has no effect), so that the backward pass goes through the frozen blocks too."""
    arguments = MethodArguments(freeze_token_embedding=False)
    model = setting.model(setting.objective(freeze_token_embedding=False))
    clip = model.clip
    context = clip.config.text_config.max_position_embeddings
    batch = {**setting.batch, "input_ids": padded(setting.batch["input_ids"], context)}
    names = ("forget_ratio", "plan_weight", "entropy", "margin_low", "margin_high")
    loss = partial(released_unlearning, **{name: getattr(arguments, name) for name in names})

    def backward() -> None:
        chunk = setting.moved(batch)
        with setting.autocast():
            image = model.encode_image(chunk["pixel_values"])
            caption = padded_text(clip, chunk["input_ids"])
            negative = padded_negative(model, chunk["input_ids"], context)
        loss(image, caption.float(), negative.float(), clip.logit_scale).backward()

    return Variant(model, backward)


def padded(ids: Tensor, context: int) -> Tensor:
    """`ids` (N, L) padded to (N, context) with the end token, which every row ends in."""
    return pad(ids, (0, context - ids.shape[1]), value=int(ids[0, -1]))
