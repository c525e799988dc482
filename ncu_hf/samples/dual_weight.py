"""The state of `sdd`: memory bank, kept pairs and confidence, and the significance of each step's pairs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

from ncu_hf.errors import InputError
from ncu_hf.losses import contrastive_losses
from ncu_hf.objectives.base import SampleWeights
from ncu_hf.objectives.sdd import SelfDropObjective, confidence_weights, significance_weights
from ncu_hf.samples.base import Forward, SampleState, Step
from ncu_hf.samples.encoding import PairEmbeds
from ncu_hf.samples.memory_bank import nearest_clean
from ncu_hf.samples.siamese import Siamese
from ncu_hf.step import encode_rows, pad_empty, split_rows

logger = logging.getLogger(__name__)

FILE = "sample_state.safetensors"


class DualWeightState(SampleState):
    """What Self-Drop and Dual-Weight keeps on every pair.

    - `partners` (n, 2): the memory bank, made once with the model that the phase starts from.
    - `kept` (n,) and `confidence` (n,): renewed by a pass over all pairs at the start of every epoch. The first epoch
      has the numbers of the pass that made the bank.

    Significance is measured in each step: the bank entries of the batch's pairs are encoded before and after a siamese
    copy takes one step on the batch with the confidence weights alone. Both banks are contrasted as batches of their
    own, in float64: a loss near 0 would lose its digits.

    Args:
        objective (`SelfDropObjective`): The equations.
        encode_pairs (`Callable`): Model -> embeddings of all pairs; a collective.
    """

    partner_count = 2
    saved_bytes = 2 * 8 + 1 + 4

    def __init__(self, objective: SelfDropObjective, encode_pairs: Callable[[CLIPModel], PairEmbeds]):
        self._objective, self._encode_pairs = objective, encode_pairs
        self._epoch: int | None = None
        self._kept, self._confidence = torch.empty(0, dtype=torch.bool), torch.empty(0)
        self._siamese: Siamese | None = None

    def start(self, clip: CLIPModel) -> None:
        logger.info("Memory bank: all pairs are encoded with the starting model.")
        embeds = self._encode_pairs(clip)
        clean = self._objective.clean(embeds.similarity)
        threshold = self._objective.arguments.sdd_clean_threshold
        _check_some(clean, embeds.similarity, "--sdd_clean_threshold", threshold, "is clean: there is no memory bank")
        logger.info("Memory bank: %s pairs are clean.", _of(clean))
        self.partners = nearest_clean(embeds.image, embeds.text, clean.nonzero()[:, 0], clip.device)
        self._epoch = None
        self._rate(embeds)

    def select(self, clip: CLIPModel, batch: dict[str, Any]) -> dict[str, Any]:
        epoch = batch["epoch"]
        if epoch != self._epoch:
            if self._epoch is not None:
                self._rate(self._encode_pairs(clip))
            self._epoch = epoch
            logger.info("Self-drop: epoch %d trains on %s pairs.", epoch + 1, _of(self._kept))
        return _take(batch, self._kept[batch["indices"]])

    def weights(self, batch: dict[str, Any], step: Step) -> SampleWeights:
        device = step.model.clip.device
        confidence = step.shard.all_rows(self._confidence[batch["indices"]].to(device))
        even = SampleWeights(confidence, torch.ones_like(confidence), self._kept.float().mean().to(device))
        if not step.shard.n:
            return even
        if self._siamese is None:
            self._siamese = Siamese(step.model, step.optimizer, step.make_optimizer)
        self._siamese.follow()
        before = self._bank_losses(batch, step, step.model, step.model.clip.logit_scale)
        self._siamese.go_ahead(step, partial(step.losses, [even]))
        after = self._bank_losses(batch, step, self._siamese, self._siamese.log_scale)
        return even._replace(significance=significance_weights(before, after).to(confidence))

    def save(self, folder: Path) -> None:
        epoch = torch.tensor(-1 if self._epoch is None else self._epoch)
        state = {"partners": self.partners, "kept": self._kept, "confidence": self._confidence, "epoch": epoch}
        save_file(state, folder / FILE)

    def load(self, folder: Path) -> None:
        state = load_file(folder / FILE)
        self.partners, self._kept, self._confidence = (state[name] for name in ("partners", "kept", "confidence"))
        epoch = state["epoch"].item()
        self._epoch = None if epoch < 0 else epoch

    def _rate(self, embeds: PairEmbeds) -> None:
        """Self-drop and confidence; a pair that cannot be used is dropped."""
        self._kept = self._objective.kept(embeds.similarity)
        threshold = self._objective.arguments.sdd_drop_threshold
        _check_some(self._kept, embeds.similarity, "--sdd_drop_threshold", threshold, "is left to train on")
        usable = ~embeds.similarity.isnan()
        self._confidence = torch.zeros_like(embeds.similarity)
        self._confidence[usable] = confidence_weights(embeds.scale * embeds.similarity[usable]).float()

    @torch.no_grad()
    def _bank_losses(self, batch: dict[str, Any], step: Step, model: Forward, log_scale: Tensor) -> Tensor:
        """Symmetric InfoNCE (2, N) of the entries of the global batch, in the image and in the text bank."""
        partners = batch["partners"]
        chunks = split_rows(pad_empty(partners), step.chunk_size)
        local = encode_rows(partial(step.encode, model), chunks, len(partners["input_ids"]))
        losses = []
        for places in batch["partner_places"].T:
            image, text = (step.shard.all_rows(e[places.to(e.device)]).double() for e in (local.image, local.text))
            losses.append(contrastive_losses(image, text, log_scale.double()))
        return torch.stack(losses)


def _take(batch: dict[str, Any], chosen: Tensor) -> dict[str, Any]:
    """The chosen rows (B,) of a batch, with the partners that they need."""
    rows = {key: value[chosen] for key, value in batch.items() if isinstance(value, Tensor)}
    keys = [key for key, taken in zip(batch["keys"], chosen.tolist(), strict=True) if taken]
    used, places = rows["partner_places"].unique(return_inverse=True)
    partners = {key: value[used] for key, value in batch["partners"].items()}
    return {**batch, **rows, "keys": keys, "partners": partners, "partner_places": places}


def _of(chosen: Tensor) -> str:
    count = int(chosen.sum())
    return f"{count:,} of {len(chosen):,} ({count / len(chosen):.0%})"


def _check_some(chosen: Tensor, similarity: Tensor, flag: str, threshold: float, what: str) -> None:
    if chosen.any():
        return
    known = similarity[~similarity.isnan()].sort().values
    middle = math.floor(1000 * known[len(known) // 2].item()) / 1000
    raise InputError(
        f"{flag} {threshold}: no pair {what}; the paired cosines of all {len(known):,} pairs are at most "
        f"{known[-1]:.3f}. Models differ in the size of their cosines: lower it, for example to {middle:g}, which half "
        "of the pairs exceed."
    )
