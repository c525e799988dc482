"""`benchmark.py objective`: the loss of phase 2 and its gradient, against the structure of the released code."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from benchmark_embeds import clip_like_embeds
from benchmark_references import released_unlearning
from benchmark_timing import Benchmark, Row, Tables, medians
from torch import Tensor

from ncu_hf.config import MethodArguments
from ncu_hf.objectives.unlearning import UnlearningObjective
from ncu_hf.planning.memory import LiveBytes
from ncu_hf.step import total_loss

# Loss, and its gradients with respect to images, texts, negatives and log s.
Result = tuple[Tensor, ...]


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, nargs="+", default=[2048], help="batch sizes (default: 2048)")
    parser.add_argument("--width", type=int, default=512, help="size of an embedding (default: 512)")
    parser.add_argument("--scale", type=float, default=100.0, help="s, the inverse temperature (default: 100)")
    parser.add_argument("--forget_ratio", type=float, default=0.1, help="P (default: 0.1)")


def benchmark_objective(options: argparse.Namespace) -> Tables:
    """Both formulations against the released structure, and against the three matrix products that none can spare."""
    return {"objective": [_case(n, options) for n in options.n]}


def _case(n: int, options: argparse.Namespace) -> Row:
    embeds = clip_like_embeds(n, width=options.width)
    leaves = [rows.to(options.device).requires_grad_() for rows in embeds]
    leaves.append(torch.tensor(options.scale, device=options.device).log().requires_grad_())
    calls: dict[str, Callable[[], Result]] = {
        "ours": lambda: _ours(leaves, "released", options.forget_ratio),
        "ours_paper": lambda: _ours(leaves, "paper", options.forget_ratio),
        "reference": lambda: reference(leaves, options.forget_ratio),
    }
    found = {name: call() for name, call in calls.items()}
    peaks = {name: peak_bytes(call, leaves) / (4 * n * n) for name, call in calls.items()}
    gradient = torch.zeros(n, n, device=options.device)
    seconds = medians(calls | {"products": lambda: _products(leaves, gradient)}, options.repeats, options.device)
    return (
        {"n": n}
        | {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
        | {
            "reference_over_ours": seconds["reference"] / seconds["ours"],
            "reference_over_ours_paper": seconds["reference"] / seconds["ours_paper"],
            "products_share_of_ours": seconds["products"] / seconds["ours"],
            "products_share_of_ours_paper": seconds["products"] / seconds["ours_paper"],
            "products_gflop": 3 * 2 * n * n * options.width / 1e9,
            **{f"{name}_peak_n2_floats": peak for name, peak in peaks.items()},
            "loss_difference": float((found["ours"][0] - found["reference"][0]).abs() / found["reference"][0].abs()),
            "gradient_difference": max(
                float((a - b).norm() / b.norm()) for a, b in zip(found["ours"][1:], found["reference"][1:], strict=True)
            ),
        }
    )


def _ours(leaves: list[Tensor], formulation: str, forget_ratio: float) -> Result:
    objective = UnlearningObjective(MethodArguments(formulation=formulation, forget_ratio=forget_ratio))
    loss = total_loss(objective(*leaves))
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def reference(leaves: list[Tensor], forget_ratio: float) -> Result:
    defaults = MethodArguments()
    names = ("plan_weight", "entropy", "margin_low", "margin_high")
    settings = {name: getattr(defaults, name) for name in names}
    loss = released_unlearning(*leaves, forget_ratio=forget_ratio, **settings)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def _products(leaves: list[Tensor], gradient: Tensor) -> None:
    """The similarities, and their gradient back to images and texts: what any form of the loss multiplies."""
    image, text = (rows.detach() for rows in leaves[:2])
    torch.mm(image, text.T)
    torch.mm(gradient, text)
    torch.mm(gradient.T, image)


def peak_bytes(call: Callable[[], object], leaves: list[Tensor]) -> int:
    """Most memory at any time beyond the embeddings; on CUDA by the allocator, else by the tensors alive."""
    device = leaves[0].device
    if device.type != "cuda":
        with LiveBytes(leaves) as live:
            call()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


OBJECTIVE = Benchmark(
    "the loss of phase 2 and its gradient against the released structure", _flags, benchmark_objective
)
