"""Measure models between the reference and the result of a run, on what the run was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ncu_hf.assessment import assess
from ncu_hf.checkpoint import write_json
from ncu_hf.cli import Arguments
from ncu_hf.evaluation import ClipEncoder
from ncu_hf.interpolation import MIXTURES_FILE, interpolate, weight_key
from ncu_hf.loading import load_clip, load_model, pinned
from ncu_hf.opening import open_evaluation_sets


def measure_mixtures(arguments: Arguments, folder: Path, models: Sequence[str], weights: Sequence[float]) -> None:
    """Write `interpolation.json`: what each mixture achieves, by its weight; no model is kept.

    Args:
        arguments (`Arguments`): Of the run that made the result; they name the sets.
        folder (`Path`): Output; made.
        models (`Sequence[str]`): Reference and result: folders or Hub ids.
        weights (`Sequence[float]`): Of the result.
    """
    reference, result = load_clip(models[0], pinned(models[0])), load_model(models[1])
    sets = open_evaluation_sets(arguments.data)
    numbers = {}
    for weight in weights:
        mixture = interpolate(reference, result.clip, weight)
        encoder = ClipEncoder(mixture, result.processor, device=arguments.training.device)
        assessment = assess(encoder, sets)
        numbers[weight_key(weight)] = {} if assessment is None else assessment.numbers
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MIXTURES_FILE, {"weights": numbers})
