"""How many pairs to forget where nobody knows: estimated from how well the model that a run starts from fits them."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncu_hf.assessment import encode_sample
from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.data import PairSource
from ncu_hf.distributed import broadcast_json
from ncu_hf.errors import InputError
from ncu_hf.evaluation import ClipEncoder, EmbeddingCache
from ncu_hf.mixture import fit_two_gaussians
from ncu_hf.run import Run

logger = logging.getLogger(__name__)

# Two Gaussians nearer than this (Ashman's D) are one heap: a mixture of them has a single mode, and a share of it would
# be forgotten without a reason. Ashman, Bird and Zepf 1994, "Detecting Bimodality in Astronomical Datasets".
LEAST_SEPARATION = 2.0


class RatioEstimate(NamedTuple):
    """An estimated share of mismatched pairs.

    Attributes:
        forget_ratio (`float`): In [0, 1); 0 where the pairs are one heap.
        separation (`float`): Ashman's D of the two Gaussians.
        pairs (`int`): Number of pairs that it rests on.
    """

    forget_ratio: float
    separation: float
    pairs: int


def estimate_share(similarity: Tensor) -> RatioEstimate:
    """Share of the pairs that belong to the lower of two Gaussians.

    It is an estimate of what the model has not learned to match: pairs that it has learned by heart count as sound, so
    that after long training on the noise it is too low.

    Args:
        similarity (`Tensor`): (n,) cosine of each pair.
    """
    mixture = fit_two_gaussians(similarity)
    spread = math.sqrt(mixture.variances.sum().item())
    separation = math.sqrt(2) * (mixture.means[1] - mixture.means[0]).item() / spread
    share = mixture.weights[0].item() if separation >= LEAST_SEPARATION else 0.0
    return RatioEstimate(min(share, math.nextafter(1.0, 0.0)), separation, len(similarity))


def resolve_forget_ratio(run: Run) -> None:
    """Put the estimate where `--estimate_forget_ratio` asks for it; a collective.

    Made once, with the model that the run starts from, and kept beside its settings: a resumed run forgets the same
    share.

    Raises:
        InputError: the data are only read as a stream, or hold no usable pair.
    """
    if not run.arguments.training.estimate_forget_ratio:
        return
    path, training = run.workspace.forget_ratio, run.arguments.training
    # The first process decides: another machine may not see its folder, and the estimate is a collective.
    kept = broadcast_json(read_json(path) if path.is_file() else None, training.device)
    found: dict[str, Any] = kept or broadcast_json(_estimate(run)._asdict(), training.device)
    if kept is None and training.should_save:
        write_json(path, found)
    run.arguments.method.forget_ratio = found["forget_ratio"]
    logger.info(
        "Forget ratio: %.3f, estimated from %d pairs (separation %.2f).",
        *(found[name] for name in ("forget_ratio", "pairs", "separation")),
    )


def check_estimable(run: Run) -> None:
    """Find before anything is trained what an estimate would fail at.

    Raises:
        InputError: the data are only read as a stream.
    """
    if run.arguments.training.estimate_forget_ratio and not isinstance(run.source, PairSource):
        raise InputError(
            "--estimate_forget_ratio needs data that can be indexed; give --forget_ratio for streamed data."
        )


@torch.no_grad()
def _estimate(run: Run) -> RatioEstimate:
    training, clip = run.arguments.training, run.reference.clip
    before = clip.device
    encoder = ClipEncoder(clip, run.reference.processor, device=training.device, cache=EmbeddingCache())
    image, text, _ = encode_sample(encoder, run.source, training.seed)
    clip.to(before)  # training has a copy of its own on the device
    similarity = (image * text).sum(dim=1).double().cpu()
    if not len(similarity):
        raise InputError("--estimate_forget_ratio: none of the sampled training pairs can be used.")
    return estimate_share(similarity)
