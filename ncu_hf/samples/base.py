"""What the trainer knows of a method that keeps numbers on every training pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.optim import Optimizer
from transformers import CLIPModel

from ncu_hf.distributed import Shard
from ncu_hf.modeling import Embeddings, NCUModel
from ncu_hf.objectives.base import SampleWeights
from ncu_hf.step import Chunks

Forward = Callable[..., tuple[Embeddings, Tensor]]


class Step(NamedTuple):
    """One batch of this process, and what the trainer makes a step of.

    Attributes:
        model (`NCUModel`): As it is before the step, not wrapped.
        optimizer (`Optimizer`): Of the model.
        make_optimizer (`Callable`): Groups of parameters -> another one of the same kind.
        encode (`Callable`): (model or function with its arguments, chunk) -> embeddings and log s; under the autocast
            of the run.
        losses (`Callable`): (what the objective takes besides, embeddings..., log s) -> losses, as the step has them.
        check (`Callable`): Raises for a loss that is not finite.
        chunks (`Chunks`): The batch.
        shard (`Shard`): Rows of it that count, of each process: 0 where `chunks` hold a row of zeros instead.
        chunk_size (`int`, *optional*): Rows that are encoded at a time.
        max_grad_norm (`float`): Clipping of the gradient; 0 is off.
        loss_scale (`float`): Factor of the loss under which half precision does not lose its gradient.
    """

    model: NCUModel
    optimizer: Optimizer
    make_optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    encode: Callable[[Forward, dict[str, Tensor]], tuple[Embeddings, Tensor]]
    losses: Callable[..., dict[str, Tensor]]
    check: Callable[[Tensor], None]
    chunks: Chunks
    shard: Shard
    chunk_size: int | None
    max_grad_norm: float
    loss_scale: float


class SampleState(ABC):
    """Numbers on every training pair. The trainer calls it before the first step, before every step, and to save.

    What is saved lets a resumed run go on in the middle of an epoch with the same bits. Every method but `save` is a
    collective.

    Attributes:
        partners (`Tensor`, *optional*): (n, P) indices of the pairs that come along with each pair of a batch (see
            `PartneredCollator`); known once `start` or `load` was called.
        partner_count (`int`): P.
        saved_bytes (`int`): Of a pair, in a checkpoint.
    """

    partners: Tensor | None = None
    partner_count: ClassVar[int] = 0
    saved_bytes: ClassVar[int]

    @abstractmethod
    def start(self, clip: CLIPModel) -> None:
        """Make what depends on the model that the phase starts from.

        Raises:
            InputError: the method cannot work with this model on these pairs.
        """

    @abstractmethod
    def select(self, clip: CLIPModel, batch: dict[str, Any]) -> dict[str, Any]:
        """The rows of a batch of this process that are to be trained on; all numbers are brought up to its epoch."""

    @abstractmethod
    def weights(self, batch: dict[str, Any], step: Step) -> SampleWeights:
        """What the objective takes besides the embeddings of a selected batch."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything to a checkpoint."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what [`save`] wrote."""
