"""Objectives that forget: which pairs of a batch, by their clean confidence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncu_hf.config import MethodArguments
from ncu_hf.distributed import Shard
from ncu_hf.objectives.base import Objective
from ncu_hf.objectives.statistics import selection_statistics
from ncu_hf.selection import similarity_confidence, split_batch, split_by_recent


class Split(NamedTuple):
    """Indices of the forget set (k,) and of the retained set (N - k,), and what to log of them."""

    forget: Tensor
    retain: Tensor
    statistics: dict[str, Tensor]


class ForgettingObjective(Objective):
    """An objective that treats the pairs of lowest clean confidence in another way than the others.

    With a `forget_window` W above 1 it remembers the confidences of the last W - 1 batches.
    """

    settings = ("formulation", "forget_ratio", "forget_window")
    _RECENT = "recent_confidence"

    def __init__(self, arguments: MethodArguments):
        super().__init__(arguments)
        self._recent: list[Tensor] = []  # oldest first, one a batch

    def choose(
        self, similarity: Tensor, log_scale: Tensor, shard: Shard, column_partition: Tensor | None = None
    ) -> Split:
        """Split the global batch by the clean confidence of its pairs.

        Args:
            similarity (`Tensor`): (B, N), ⟨v_i, t_j⟩ of this process's images, without gradient.
            log_scale (`Tensor`): 0-dim, log of s.
            shard (`Shard`): Whose rows these are.
            column_partition (`Tensor`, *optional*): (N,), as of [`similarity_confidence`].
        """
        formulation = self.arguments.formulation
        confidence = similarity_confidence(similarity, log_scale, formulation, shard, column_partition)
        forget, retain = self.split(confidence)
        return Split(forget, retain, selection_statistics(confidence, forget, retain))

    def split(self, confidence: Tensor) -> tuple[Tensor, Tensor]:
        """Clean confidence (N,) -> indices of the forget set and of the retained set."""
        ratio, window = self.arguments.forget_ratio, self.arguments.forget_window
        if window == 1:
            return split_batch(confidence, ratio)
        recent = torch.cat([past.to(confidence) for past in self._recent] or [confidence[:0]])
        self._recent = [*self._recent, confidence.detach()][1 - window :]
        return split_by_recent(confidence, recent, ratio)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{self._RECENT}.{age}": past.cpu() for age, past in enumerate(self._recent)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._recent = [state[f"{self._RECENT}.{age}"] for age in range(len(state))]
