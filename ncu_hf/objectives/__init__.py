"""Methods by name. A method is a sequence of objectives, one a phase; to add one, write its file and add it here."""

from __future__ import annotations

from ncu_hf.config import MethodArguments
from ncu_hf.errors import one_of
from ncu_hf.objectives.base import Objective
from ncu_hf.objectives.clip import ClipObjective
from ncu_hf.objectives.negative_prompt import NegativePromptObjective
from ncu_hf.objectives.unlearning import UnlearningObjective

METHODS: dict[str, tuple[type[Objective], ...]] = {
    "clip": (ClipObjective,),
    "ncu": (NegativePromptObjective, UnlearningObjective),
}


def build_objectives(arguments: MethodArguments) -> list[Objective]:
    """The phases of `arguments.method`, in order.

    Raises:
        InputError: if the method is not known.
    """
    return [objective(arguments) for objective in METHODS[one_of("--method", arguments.method, METHODS)]]


__all__ = ["METHODS", "Objective", "build_objectives"]
