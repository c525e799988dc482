"""Entropic optimal transport between the rows and columns of a batch, with closed cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ncu_hf.distributed import Shard
from ncu_hf.transport.iterations import annealing_levels, converge, plain
from ncu_hf.transport.kernel import ScaledKernel

_RULES = {  # default tolerance and iterations of each stop rule
    "potential": (1e-4, 100),  # the authors' released code
    "marginal": (1e-6, 5000),
}


class NotFiniteCost(ValueError):
    """A cost that no plan can be found for."""


@dataclass(frozen=True)
class TransportPlan:
    """What `solve_transport` reached.

    Attributes:
        plan (`torch.Tensor`): (R, C), total mass 1, exactly 0 on closed cells.
        row_sums (`torch.Tensor`): (R,), Σ_j plan_ij.
        column_sums (`torch.Tensor`): (C,), Σ_i plan_ij over the rows of all processes.
        row_error (`torch.Tensor`): 0-dim, Σ_i |Σ_j plan_ij - row marginal_i|: the share of the mass that is in the
            wrong row, times two. Measured on the plan itself, not taken from the iteration.
        column_error (`torch.Tensor`): 0-dim, the same for columns.
        iterations (`int`): plain iterations; under `stop="marginal"` the work in the same unit, two products with
            the kernel each.
        converged (`bool`): the stop rule was met: sum |Δu| under the tolerance, or both errors at most the tolerance.
    """

    plan: Tensor
    row_sums: Tensor
    column_sums: Tensor
    row_error: Tensor
    column_error: Tensor
    iterations: int
    converged: bool


@torch.no_grad()
def solve_transport(
    cost: Tensor,
    mask: Tensor | None = None,
    *,
    entropy: float = 0.03,
    row_marginals: Tensor | None = None,
    column_marginals: Tensor | None = None,
    max_iterations: int | None = None,
    tolerance: float | None = None,
    stop: str = "potential",
    shard: Shard | None = None,
) -> TransportPlan:
    """Solve min_Γ ⟨Γ, C⟩ - ε H(Γ) over plans Γ ≥ 0 with given marginals that are 0 where the mask is 0.

    The solution is Γ_ij = exp((f_i + g_j - C_ij) / ε) on open cells. No gradient flows through it.

    `stop="potential"` is the rule of the authors' released code: Sinkhorn iterations (Cuturi 2013, arXiv:1306.0895)
    from zero potentials, first rows, then columns, that end after the one in which Σ_i |Δf_i| < `tolerance` (units of
    cost), or after `max_iterations`. The plan then meets its columns; its rows may be some percent off.

    `stop="marginal"` is true convergence: Newton's method on the dual, started at a larger ε that is halved where
    (max C - min C) / ε is large, until both marginal errors are at most `tolerance`. float32 reaches the default at
    4096 x 4097, with little to spare; what is out of its reach ends with `converged=False` once nothing improves.

    Both scale a stabilised kernel (Schmitzer 2019, arXiv:1610.06519), one (R, C) tensor that becomes the plan, and
    need nothing else of that size but a bool for the mask.

    A fully closed row or column takes no mass: it is dropped, and the other marginals of its side are scaled to sum
    to 1 again (for uniform marginals: 1/N each over the N open columns). An infeasible problem (marginals that no
    plan on the open cells can meet) has no solution: the result is finite, `converged=False` under
    `stop="marginal"`, and its errors say by how much.

    With a `shard` the rows are spread over processes: each gives its own, (R', C), and gets its rows of the plan; sums
    over rows are all-reduced, one vector (C,) an iteration. All take the same steps.

    Args:
        cost (`torch.Tensor`): (R, C), any float type; half precision is solved in float32. Any strides: the
            transposed problem is `solve_transport(cost.T, mask.T)`. Finite, on closed cells too.
        mask (`torch.Tensor`, *optional*): (R, C), bool or 0/1: 1 is open. Everything is open by default.
        entropy (`float`, *optional*, defaults to 0.03): ε in units of cost. float32 holds cost / ε to 1e-7 relative,
            so at ε = 1e-3 and costs near 2 the cells of a float32 plan are good to 1e-4; use float64 for more.
        row_marginals (`torch.Tensor`, *optional*): (R,), positive, scaled to sum to 1. Uniform by default.
        column_marginals (`torch.Tensor`, *optional*): (C,), likewise.
        max_iterations (`int`, *optional*): defaults to 100 for `"potential"`, 5000 for `"marginal"`.
        tolerance (`float`, *optional*): defaults to 1e-4 for `"potential"`, 1e-6 for `"marginal"`.
        stop (`str`, *optional*, defaults to `"potential"`): `"potential"` or `"marginal"`.
        shard (`Shard`, *optional*): Whose rows these are; all of them by default.

    Returns:
        `TransportPlan`: with the plan of these rows, in float64 for a float64 cost, else in float32.

    Raises:
        NotFiniteCost: a cost that is not finite; a `ValueError` too.
        ValueError: shapes that disagree, marginals that are not positive, a mask that is not 0/1 or closes every cell,
            or an option out of range.
    """
    if stop not in _RULES:
        raise ValueError(f"stop: unknown rule {stop!r}. Known: {', '.join(_RULES)}.")
    default_tolerance, default_iterations = _RULES[stop]
    tolerance = default_tolerance if tolerance is None else tolerance
    max_iterations = default_iterations if max_iterations is None else max_iterations
    _check_options(entropy, tolerance, max_iterations)
    shard = Shard.whole(cost.shape[0]) if shard is None else shard
    cost, extremes = _solvable(cost, shard)
    # Autocast would carry out the products in half precision.
    with torch.autocast(cost.device.type, enabled=False):
        if stop == "potential":
            kernel = _kernel(cost, mask, row_marginals, column_marginals, entropy, shard)
            (plan,) = _by_potential(kernel, extremes, tolerance, max_iterations, columns_first=[False])
            return plan
        levels = annealing_levels(_finite_spread(extremes), entropy)
        kernel = _kernel(cost, mask, row_marginals, column_marginals, levels[0], shard)
        kernel.check_open()
        return _by_marginal(kernel, levels, tolerance, max_iterations)


@torch.no_grad()
def solve_transport_both_ways(
    cost: Tensor, mask: Tensor | None = None, *, entropy: float = 0.03, shard: Shard | None = None
) -> tuple[TransportPlan, TransportPlan]:
    """What the authors' released code solves: the problem and its transpose, each by `stop="potential"`.

    The two differ, as the rule stops before they have converged. They share one kernel, and an all-reduce an iteration
    where there is a `shard`.

    Args:
        cost, mask, entropy, shard: As of [`solve_transport`]; marginals are uniform.

    Returns:
        `tuple[TransportPlan, TransportPlan]`: `solve_transport(cost, mask)`, and the transpose, in the layout of
        `cost`, of `solve_transport(cost.T, mask.T)`: it fits columns first and watches their potential.

    Raises:
        NotFiniteCost, ValueError: As [`solve_transport`].
    """
    tolerance, max_iterations = _RULES["potential"]
    _check_options(entropy, tolerance, max_iterations)
    shard = Shard.whole(cost.shape[0]) if shard is None else shard
    cost, extremes = _solvable(cost, shard)
    with torch.autocast(cost.device.type, enabled=False):
        kernel = _kernel(cost, mask, None, None, entropy, shard)
        sides = [False, True]
        rows_first, columns_first = _by_potential(kernel, extremes, tolerance, max_iterations, columns_first=sides)
    return rows_first, columns_first


def _kernel(
    cost: Tensor,
    mask: Tensor | None,
    row_marginals: Tensor | None,
    column_marginals: Tensor | None,
    entropy: float,
    shard: Shard,
) -> ScaledKernel:
    row_weights = _weights("row_marginals", row_marginals, cost, 0)
    column_weights = _weights("column_marginals", column_marginals, cost, 1)
    return ScaledKernel(cost, _closed_cells(mask, cost), row_weights, column_weights, entropy, shard)


def _by_potential(
    kernel: ScaledKernel, extremes: Tensor, tolerance: float, max_iterations: int, columns_first: list[bool]
) -> list[TransportPlan]:
    found, results = [], plain(kernel, tolerance, max_iterations, columns_first)
    # Checked now: what the device worked on when the solve began need not be done before the host gets here.
    _finite_spread(extremes)
    kernel.check_open()
    for reached, iterations, stopped in results:
        plan = reached.into_plan(refit=False)
        found.append(TransportPlan(plan, *reached.measured(plan), iterations, stopped))
    return found


def _by_marginal(kernel: ScaledKernel, levels: list[float], tolerance: float, max_iterations: int) -> TransportPlan:
    # The products with the kernel round more than the sums of the plan that decide in the end.
    iterations = converge(kernel, levels, 0.3 * tolerance, max_iterations)
    plan = kernel.into_plan(refit=True)
    *sums, row_error, column_error = kernel.measured(plan)
    converged = bool(torch.maximum(row_error, column_error) <= tolerance)
    return TransportPlan(plan, *sums, row_error, column_error, iterations, converged)


def _check_options(entropy: float, tolerance: float, max_iterations: int) -> None:
    if not (math.isfinite(entropy) and entropy > 0):
        raise ValueError(f"entropy must be positive and finite, not {entropy}.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, not {tolerance}.")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, not {max_iterations}.")


def _solvable(cost: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """The cost in a precision that can be solved, and what [`_finite_spread`] judges."""
    if cost.dim() != 2 or shard.n * cost.shape[1] == 0:
        raise ValueError(f"cost must be a matrix with at least one row and column, not of shape {tuple(cost.shape)}.")
    if not cost.is_floating_point():
        raise ValueError(f"cost must be of a float type, not {cost.dtype}.")
    cost = cost.detach() if cost.dtype in (torch.float32, torch.float64) else cost.detach().float()
    # The extremes see every NaN and infinity and allocate nothing (`aminmax` would copy a transposed cost).
    own = torch.stack([-cost.amin(), cost.amax()]) if cost.numel() else cost.new_full((2,), -torch.inf)
    return cost, shard.largest(torch.where(own.isnan(), torch.inf, own))  # a maximum over processes may lose a NaN


def _finite_spread(extremes: Tensor) -> float:
    """How far the least and the greatest cost are apart, given (2,) the negative of one and the other."""
    lowest, highest = (sign * extreme for sign, extreme in zip((-1, 1), extremes.tolist(), strict=True))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise NotFiniteCost(f"cost must be finite, closed cells too: its extremes are {lowest} and {highest}.")
    return highest - lowest


def _closed_cells(mask: Tensor | None, cost: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if mask.shape != cost.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, cost has {tuple(cost.shape)}.")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask must be bool or hold only 0 (closed) and 1 (open).")
    return mask.to(cost.device).contiguous().logical_not()


def _weights(name: str, given: Tensor | None, cost: Tensor, side: int) -> Tensor:
    """Weights of rows (`side` 0) or columns (1)."""
    size = cost.shape[side]
    if given is None:
        return cost.new_ones(size)
    weights = given.detach().to(cost)
    if weights.shape != (size,):
        raise ValueError(f"{name} has shape {tuple(weights.shape)}, cost asks for ({size},).")
    if not (weights.isfinite() & (weights > 0)).all():
        raise ValueError(f"{name} must be positive and finite; close the cells of a row or column to give it no mass.")
    return weights
