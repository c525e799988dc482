"""Methods by name. A method is a sequence of objectives, one a phase; to add one, write its file and add it here."""

from __future__ import annotations

from ncu_hf.config import MethodArguments
from ncu_hf.errors import one_of
from ncu_hf.objectives.ablations import (
    FalseNegativesObjective,
    FalsePositivesObjective,
    MaxDistancePromptObjective,
    MaxDistanceUnlearningObjective,
    TextNegationObjective,
)
from ncu_hf.objectives.base import Objective
from ncu_hf.objectives.clip import ClipObjective, RetainedClipObjective
from ncu_hf.objectives.gradient_ascent import GradientAscentObjective
from ncu_hf.objectives.negative_prompt import NegativePromptObjective
from ncu_hf.objectives.sdd import SelfDropObjective
from ncu_hf.objectives.softclip import SoftClipObjective
from ncu_hf.objectives.unlearning import UnlearningObjective

METHODS: dict[str, tuple[type[Objective], ...]] = {
    "ncu": (NegativePromptObjective, UnlearningObjective),
    "clip": (ClipObjective,),
    "clip_retained": (RetainedClipObjective,),
    "gradient_ascent": (GradientAscentObjective,),
    "softclip": (SoftClipObjective,),
    "ncu_text_negation": (TextNegationObjective,),
    "ncu_max_distance": (MaxDistancePromptObjective, MaxDistanceUnlearningObjective),
    "ncu_false_negatives_only": (NegativePromptObjective, FalseNegativesObjective),
    "ncu_false_positives_only": (NegativePromptObjective, FalsePositivesObjective),
    "sdd": (SelfDropObjective,),
}


def build_objectives(arguments: MethodArguments) -> list[Objective]:
    """The phases of `arguments.method`, in order.

    Raises:
        InputError: if the method is not known.
    """
    return [objective(arguments) for objective in METHODS[one_of("--method", arguments.method, METHODS)]]


__all__ = ["METHODS", "Objective", "build_objectives"]
