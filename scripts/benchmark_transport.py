"""`benchmark.py transport`: the solver against textbook loops, and true convergence against plain iterations."""

from __future__ import annotations

import argparse
import math

import torch
from benchmark_references import textbook_loop
from benchmark_timing import Benchmark, Row, Tables, medians
from torch import Tensor
from torch.nn.functional import normalize

from ncu_hf.transport import solve_transport


def clip_like_cost(n: int, common: float, seed: int = 0, width: int = 512) -> tuple[Tensor, Tensor]:
    """Cost (N, N+1) and mask of a batch of unit embeddings with paired cosines spread evenly over 0.25 to 0.9.

    Texts share a direction of weight `common` (CLIP's modality is a narrow cone) and one of N/16 topics; an image
    leans on its text by its cosine, the rest on the same direction and topic. Negative texts lie at cosine -0.45 to
    their text. The 10 % of pairs with the lowest confidence are to forget.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return normalize(torch.randn(rows, width, generator=generator), dim=1)

    shared = common * draw(1) + 0.5 * draw(max(n // 16, 1))[torch.randint(max(n // 16, 1), (n,), generator=generator)]
    text, other = normalize(shared + 0.7 * draw(n), dim=1), normalize(shared + 0.7 * draw(n), dim=1)
    paired = 0.25 + 0.65 * torch.rand(n, 1, generator=generator)
    image = paired * text + (1 - paired**2).sqrt() * _perpendicular(other, text)
    negative = -0.45 * text + math.sqrt(1 - 0.45**2) * _perpendicular(draw(n), text)
    similarity = torch.cat([image @ text.T, (image * negative).sum(1, keepdim=True)], dim=1)
    forget = (100 * similarity[:, :n]).softmax(1).diagonal().argsort()[: n // 10]
    mask = torch.ones(n, n + 1, dtype=torch.bool)
    mask[:, n] = False
    mask[forget, n] = True
    mask[forget, forget] = False
    return 1 - similarity, mask


def _perpendicular(vectors: Tensor, axes: Tensor) -> Tensor:
    return normalize(vectors - (vectors * axes).sum(1, keepdim=True) * axes, dim=1)


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
