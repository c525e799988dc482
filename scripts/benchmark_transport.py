"""`benchmark.py transport`: the solver against textbook loops, and true convergence against plain iterations."""

from __future__ import annotations

import argparse

import torch
from benchmark_embeds import clip_like_embeds
from benchmark_references import textbook_loop
from benchmark_timing import Benchmark, Row, Tables, medians
from torch import Tensor

from ncu_hf.transport import solve_transport


def clip_like_cost(n: int, common: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cost (N, N+1) and mask of a batch of [`clip_like_embeds`] whose 10 % of lowest confidence are to forget."""
    image, text, negative = clip_like_embeds(n, common, seed)
    similarity = torch.cat([image @ text.T, (image * negative).sum(1, keepdim=True)], dim=1)
    forget = (100 * similarity[:, :n]).softmax(1).diagonal().argsort()[: n // 10]
    mask = torch.ones(n, n + 1, dtype=torch.bool)
    mask[:, n] = False
    mask[forget, n] = True
    mask[forget, forget] = False
    return 1 - similarity, mask


def _transport_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, nargs="+", default=[2048], help="batch sizes (default: 2048)")
    parser.add_argument(
        "--common", type=float, nargs="+", default=[0.4], help="weight of the direction that all embeddings share"
    )
    parser.add_argument("--entropy", type=float, default=0.03, help="ε in units of cost (default: 0.03)")


def benchmark_transport(options: argparse.Namespace) -> Tables:
    """Released rule against textbook loops, and true convergence against 200 plain iterations."""
    rows = []
    for n in options.n:
        for common in options.common:
            cost, mask = (tensor.to(options.device) for tensor in clip_like_cost(n, common))
            rows.append({"n": n, "common": common} | _transport_case(cost, mask, options))
    return {"rows": rows}


def _transport_case(cost: Tensor, mask: Tensor, options: argparse.Namespace) -> Row:
    entropy, normalised = options.entropy, cost / cost.max()
    released = solve_transport(normalised, mask, entropy=entropy)
    marginal = solve_transport(cost, mask, entropy=entropy, stop="marginal")
    textbook, textbook_iterations = textbook_loop(normalised, mask, entropy, rebuild=True)
    plain_options = {"entropy": entropy, "tolerance": 0.0, "max_iterations": 200}
    seconds = medians(
        {
            "released": lambda: solve_transport(normalised, mask, entropy=entropy),
            "textbook": lambda: textbook_loop(normalised, mask, entropy, rebuild=True),
            "textbook_lean": lambda: textbook_loop(normalised, mask, entropy, rebuild=False),
            "marginal": lambda: solve_transport(cost, mask, entropy=entropy, stop="marginal"),
            "plain_200": lambda: solve_transport(cost, mask, **plain_options),
        },
        options.repeats,
        cost.device,
    )
    return {f"{name}_ms": 1e3 * value for name, value in seconds.items()} | {
        "textbook_over_released": seconds["textbook"] / seconds["released"],
        "textbook_lean_over_released": seconds["textbook_lean"] / seconds["released"],
        "marginal_over_plain_200": seconds["marginal"] / seconds["plain_200"],
        "released_iterations": released.iterations,
        "textbook_iterations": textbook_iterations,
        "released_difference": float((released.plan - textbook).abs().max() / textbook.max()),
        "marginal_iterations": marginal.iterations,
        "marginal_converged": marginal.converged,
        "marginal_row_error": float(marginal.row_error),
        "marginal_column_error": float(marginal.column_error),
        "plain_200_row_error": float(solve_transport(cost, mask, **plain_options).row_error),
    }


TRANSPORT = Benchmark("the transport solver against textbook loops", _transport_flags, benchmark_transport)
