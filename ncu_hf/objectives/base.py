"""What a method is to the trainer: which parameters train, and embeddings -> named losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from ncu_hf.config import MethodArguments, NCUTrainingArguments


class Schedule(NamedTuple):
    """How long a phase trains, and how fast: `max_steps` where positive, else `epochs`."""

    epochs: float
    max_steps: int
    learning_rate: float


class ReferenceEmbeds(NamedTuple):
    """Unit vectors (N, D) of the global batch by the model that the run started from, without gradient."""

    image: Tensor
    text: Tensor


class SampleWeights(NamedTuple):
    """What is known of the pairs of the global batch beyond it, without gradient.

    Attributes:
        confidence (`Tensor`): (N,) in [0, 1], how sure it is that a pair matches, judged among all training pairs.
        significance (`Tensor`): (N,) in [0, 1], how much a step on the pair helps what resembles it.
        kept_share (`Tensor`): 0-dim, share of all training pairs that this epoch trains on.
    """

    confidence: Tensor
    significance: Tensor
    kept_share: Tensor


class Objective(ABC):
    """One phase of a method.

    Attributes:
        phase (`str`): Name of the phase, used for folders, logs and cards.
        settings (`tuple[str, ...]`): Fields of [`MethodArguments`] that decide what it learns; a card lists no others.
        needs_negative_text (`bool`): Whether the negatives of the batch's captions are encoded too.
        negative_prefixes (`tuple[str, ...]`): If given, a negative is the caption behind one of these, encoded as any
            caption; else it is the caption behind the negative prompt.
        needs_reference (`bool`): Whether the batch is also encoded by the frozen model that the run started from;
            [`__call__`] then takes [`ReferenceEmbeds`] as its last argument.
        sharded (`bool`): Whether [`__call__`] takes the rows (B, D) of this process alone, with their [`Shard`] as its
            last argument, so that its matrices are shared by the processes. Else it takes the rows (N, D) of the global
            batch, and every process computes the same.
        needs_sample_weights (`bool`): Whether numbers are kept on every training pair, see `ncu_hf.samples`;
            [`__call__`] then takes [`SampleWeights`] as its last argument. Needs data that can be indexed.

    Args:
        arguments (`MethodArguments`): Hyperparameters of the method.
    """

    phase: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    needs_negative_text: ClassVar[bool] = False
    negative_prefixes: ClassVar[tuple[str, ...]] = ()
    sharded: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_sample_weights: ClassVar[bool] = False

    def __init__(self, arguments: MethodArguments):
        self.arguments = arguments

    def state_dict(self) -> dict[str, Tensor]:
        """What the objective remembers from batch to batch, the same on all processes; a checkpoint holds it."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what [`state_dict`] gave."""
        del state  # nothing is remembered

    @property
    def needs_prompt(self) -> bool:
        """`bool`: whether the model needs a negative prompt."""
        return self.needs_negative_text and not self.negative_prefixes

    def schedule(self, training: NCUTrainingArguments) -> Schedule:
        """The settings of the run that are this phase's; those of the last phase by default."""
        return Schedule(training.num_train_epochs, training.max_steps, training.learning_rate)

    @abstractmethod
    def trains(self, name: str, text_layers: int) -> bool:
        """Whether the parameter `name` of [`NCUModel`] trains in this phase.

        Args:
            name (`str`): For example `clip.text_model.encoder.layers.0.mlp.fc1.weight` or `negative_prompt.vectors`.
            text_layers (`int`): Number of blocks of the text tower.
        """

    @abstractmethod
    def __call__(
        self, image_embeds: Tensor, text_embeds: Tensor, negative_embeds: Tensor | None, log_scale: Tensor
    ) -> dict[str, Tensor]:
        """Losses and statistics of a global batch.

        Args:
            image_embeds, text_embeds, negative_embeds (`Tensor`): (N, D) unit vectors, (B, D) where `sharded`;
                `negative_embeds` is `None` where `needs_negative_text` is false.
            log_scale (`Tensor`): 0-dim, log of s.

        Returns:
            `dict[str, Tensor]`: 0-dim tensors, the same on all processes. Keys that end in `_loss` are summed,
            weights included; the others are detached and logged.
        """
