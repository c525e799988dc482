"""Recompute every quantity of a golden file in float64 and compare.

    python scripts/check_golden.py FILE [--formulation released|paper] [--tolerance 1e-6]

FILE is a safetensors file. Its metadata key `cases` is JSON: {case: {"forget_ratio": P, "gamma": γ}}. For each case it
holds the inputs `<case>.image`, `.text`, `.negative` (N, D) and `.log_scale`, and under `<case>.hn.` (phase 1) and
`<case>.ul.` (phase 2) the expected outputs. Without --formulation it is `paper` where a case stores one plan
(`ul.plan`), `released` where it stores two.

Exit code: 0 if every stored quantity agrees, 1 if one does not or is not known, 2 for a file that cannot be read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ncu_hf.cli import run_main, script_parser
from ncu_hf.config import FORMULATIONS, MethodArguments
from ncu_hf.errors import InputError
from ncu_hf.losses import extended_similarity, relation_loss, separation_losses
from ncu_hf.objectives import Objective
from ncu_hf.objectives.alignment import refine_alignment
from ncu_hf.objectives.negative_prompt import NegativePromptObjective
from ncu_hf.objectives.unlearning import UnlearningObjective
from ncu_hf.selection import clean_confidence, split_batch
from ncu_hf.step import total_loss

INPUTS = ("image", "text", "negative", "log_scale")


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--formulation", choices=FORMULATIONS)
    parser.add_argument("--tolerance", type=float, default=1e-6, help="largest relative error (default: 1e-6)")
    options = parser.parse_args()

    cases, tensors = read_golden(options.file)
    failed = 0
    for case, parameters in cases.items():
        stored = {key.removeprefix(f"{case}."): value for key, value in tensors.items() if key.startswith(f"{case}.")}
        formulation = options.formulation or ("paper" if "ul.plan" in stored else "released")
        print(f"{case} ({formulation}, forget_ratio {parameters['forget_ratio']}, gamma {parameters['gamma']})")
        for key, error in compare_case(stored, parameters, formulation):
            verdict = "ok" if error <= options.tolerance else "FAILED"
            failed += verdict != "ok"
            print(f"  {key:22} {error:10.2e}  {verdict}")
    print(f"{failed} of the stored quantities disagree" if failed else "all stored quantities agree")
    sys.exit(1 if failed else 0)


def read_golden(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, Tensor]]:
    """Cases (from the metadata) and tensors of a golden file.

    Raises:
        InputError: if the file is missing, not safetensors, or without cases.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}).") from error
    if "cases" not in metadata:
        raise InputError(f"{path}: the metadata has no 'cases'.")
    try:
        cases = json.loads(metadata["cases"])
    except ValueError as error:
        raise InputError(f"{path}: the metadata key 'cases' is not JSON ({error}).") from error
    for case, parameters in cases.items():
        missing = [f"{case}.{name}" for name in INPUTS if f"{case}.{name}" not in tensors]
        missing += [name for name in ("forget_ratio", "gamma") if name not in parameters]
        if missing:
            raise InputError(f"{path}: case {case!r} lacks {', '.join(missing)}.")
    return cases, tensors


def compare_case(stored: dict[str, Tensor], parameters: dict[str, str], formulation: str) -> list[tuple[str, float]]:
    """Largest relative error of each stored output; infinite for one that is not known."""
    inputs = [stored[name].double() for name in INPUTS]
    arguments = MethodArguments(
        formulation=formulation,
        forget_ratio=float(parameters["forget_ratio"]),
        plan_weight=float(parameters["gamma"]),
    )
    found = {f"hn.{key}": value for key, value in hardest_negative(inputs, arguments).items()}
    found |= {f"ul.{key}": value for key, value in unlearning(inputs, arguments).items()}
    return [
        (key, relative_error(found[key], value) if key in found else float("inf"))
        for key, value in sorted(stored.items())
        if key not in INPUTS
    ]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|; infinite where shapes, or integers, differ."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    error = ((found - expected.double()).abs().max() / largest).item()
    return error if error == error else float("inf")


def hardest_negative(inputs: list[Tensor], arguments: MethodArguments) -> dict[str, Tensor]:
    """Everything that phase 1 computes, under the names of the golden files."""
    image, text, negative, log_scale = inputs
    confidence = clean_confidence(image, text, log_scale, arguments.formulation)
    forget, retain = split_batch(confidence, arguments.forget_ratio)
    text, negative = text[retain], negative[retain]
    separation = separation_losses(text, negative, arguments.margin_low, arguments.margin_high).mean()
    relation = relation_loss(text, negative, text, negative, arguments.formulation)
    outputs, gradients = loss_and_gradients(NegativePromptObjective(arguments), inputs)
    return {
        "clean_confidence": confidence,
        "forget_ids": forget,
        "sep": separation,
        "rel": relation,
        "sep_x10": 10 * separation,
        "rel_x10": 10 * relation,
        "itm_positive": outputs["matching_positive"],
        "itm_negative": outputs["matching_negative"],
        "loss": total_loss(outputs),
        **gradients,
    }


def unlearning(inputs: list[Tensor], arguments: MethodArguments) -> dict[str, Tensor]:
    """Everything that phase 2 computes, under the names of the golden files."""
    image, text, negative, log_scale = inputs
    confidence = clean_confidence(image, text, log_scale, arguments.formulation)
    alignment = refine_alignment(
        extended_similarity(image, text, negative),
        split_batch(confidence, arguments.forget_ratio)[0],
        plan_weight=arguments.plan_weight,
        entropy=arguments.entropy,
        formulation=arguments.formulation,
    )
    outputs, gradients = loss_and_gradients(UnlearningObjective(arguments), inputs)
    return {
        "plan": alignment.row_plan.plan,
        "plan_v2t": alignment.row_plan.plan,
        "plan_t2v": alignment.column_plan.plan.T,
        "target_v2t": alignment.row_target,
        "target_t2v": alignment.column_target,
        "loss_otr": outputs["alignment_loss"],
        "loss_sep": outputs["separation_loss"],
        **gradients,
    }


def loss_and_gradients(objective: Objective, inputs: list[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs of an objective and the gradient of its total loss with respect to each input."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    outputs = objective(*leaves)
    gradients = torch.autograd.grad(total_loss(outputs), leaves, allow_unused=True, materialize_grads=True)
    names = (f"grad_{name}" for name in INPUTS)
    return {key: value.detach() for key, value in outputs.items()}, dict(zip(names, gradients, strict=True))


if __name__ == "__main__":
    run_main(main)
