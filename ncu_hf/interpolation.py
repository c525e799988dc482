"""Models between two models: the mean of their weights, as in WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903)."""

from __future__ import annotations

import copy

import torch
from transformers import CLIPModel

from ncu_hf.errors import InputError

MIXTURES_FILE = "interpolation.json"  # what models between two were measured to achieve


def weight_key(weight: float) -> str:
    """A weight as it is written in a name or a file."""
    return f"{weight:g}"


def interpolate(reference: CLIPModel, result: CLIPModel, weight: float) -> CLIPModel:
    """The model whose every weight is `(1 - weight) * reference + weight * result`, `logit_scale` (log of s) included.

    Args:
        reference, result (`CLIPModel`): Of the same shapes; neither is changed.
        weight (`float`): Of the result, in [0, 1].

    Returns:
        `CLIPModel`: a new one, with the configuration of the result; at 0 and 1 with exactly the weights of one side.

    Raises:
        InputError: a weight outside [0, 1], or models of different shapes.
    """
    if not 0 <= weight <= 1:
        raise InputError(f"A weight between two models lies in [0, 1], got {weight}.")
    before, after = reference.state_dict(), result.state_dict()
    for name in sorted(before.keys() | after.keys()):
        shapes = [tuple(state[name].shape) if name in state else None for state in (before, after)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"Models of different shapes have nothing between them: {name} is {shapes[0]} in the first and "
                f"{shapes[1]} in the second."
            )
    mixed = copy.deepcopy(result)
    with torch.no_grad():
        for name, value in mixed.state_dict().items():
            if value.is_floating_point():
                # Both products, and no `lerp`: at 0 and at 1 one of them is exactly 0.
                value.copy_((1 - weight) * before[name].to(value) + weight * after[name])
    return mixed
