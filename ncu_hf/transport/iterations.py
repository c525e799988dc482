"""The two ways to the plan: plain Sinkhorn with the released stop rule, and Newton's method on the dual."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ncu_hf.transport.kernel import ScaledKernel

_DEVICE_BLOCK = 10  # steps between two looks at a flag that lives on an accelerator
_WARM_UP = 2  # plain iterations before Newton steps and after a damped one
_MAX_CONJUGATE_STEPS = 100
_ACCURACY = 0.3  # of a Newton direction, at most; the root of the error where that is less
_LARGEST_STEP = 2.0  # of log u in one Newton step
_SHIFT = 64  # rounding errors of a row sum that the Hessian is shifted by
_PATIENCE = 30  # Newton steps without a gain of 10 % before giving up
_LEVEL_TOLERANCE = 1e-3  # marginal error at which annealing goes on to the next, smaller entropy
_DIRECT_RANGE = 64.0  # (max C - min C) / ε up to which no annealing is needed


def _until_flagged(step: Callable[[], Tensor], limit: int, device: torch.device) -> None:
    """Call `step` until the flag it returns is set, at most `limit` times; it must change nothing once that is so.

    The flag of an accelerator is looked at once a block of calls, and only when the next block is on its way: the
    device does not wait for the host. All processes call `step` equally often, as its flag is the same on all.
    """
    block, lag = (1, 0) if device.type == "cpu" else (_DEVICE_BLOCK, 1)
    looks: list[Callable[[], bool]] = []
    for start in range(0, limit, block):
        for _ in range(min(block, limit - start)):
            flag = step()
        looks.append(_look(flag))
        if len(looks) > lag and looks.pop(0)():
            return


def _look(flag: Tensor) -> Callable[[], bool]:
    """Start to fetch a flag (0-dim); the function that is returned waits until it is here."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    stream, arrived = torch.cuda.current_stream(flag.device), torch.cuda.Event()
    here = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
    arrived.record(stream)

    def wait() -> bool:
        arrived.synchronize()
        return bool(here)

    return wait


class PlainResult(NamedTuple):
    """Where plain iterations ended.

    Attributes:
        kernel (`ScaledKernel`): With the scalings that were reached.
        iterations (`int`): Done.
        stopped (`bool`): By the rule, not by their limit.
    """

    kernel: ScaledKernel
    iterations: int
    stopped: bool


def plain(
    kernel: ScaledKernel, tolerance: float, max_iterations: int, columns_first: Sequence[bool]
) -> list[PlainResult]:
    """Sinkhorn iterations (Cuturi 2013, arXiv:1306.0895) from zero potentials, of several solutions side by side.

    An iteration fits rows, then columns, or the other way around. It is the last one if the potential that it fits
    first moved by less than `tolerance`, summed over its entries.

    Args:
        kernel (`ScaledKernel`): Of the problem; becomes that of the last solution.
        tolerance (`float`): In units of cost.
        max_iterations (`int`): At least 1.
        columns_first (`Sequence[bool]`): For each solution, which side it fits first.
    """
    together = _PlainIterations(kernel, tolerance, max_iterations, columns_first)
    _until_flagged(together, max_iterations, kernel.a.device)
    return [alone.finish() for alone in together.apart()]


class _PlainIterations:
    """A call is one iteration of each of S solutions, which share the products with the kernel: those that fit columns
    first are half an iteration ahead in v. A solution that is done stands still, and so do all once one must absorb."""

    def __init__(self, kernel: ScaledKernel, tolerance: float, limit: int, columns_first: Sequence[bool]):
        self.kernel, self.tolerance, self.limit = kernel, tolerance, limit
        self.columns_first = torch.tensor(columns_first, device=kernel.a.device)
        self.u, v = (scaling.expand(len(columns_first), -1) for scaling in _zero_potentials(kernel))
        ahead = kernel.fit_columns(self.u)
        self.v = torch.where(self.columns_first[:, None], ahead, v)
        self.moved_v = self._moved(ahead / v)
        self.count = torch.zeros_like(self.columns_first, dtype=torch.int64)
        self.stopped = self.done = torch.zeros_like(self.columns_first)
        self.over_limit = torch.zeros_like(self.done[0])

    def __call__(self) -> Tensor:
        kernel, held = self.kernel, self.done | self.over_limit
        u = kernel.fit_rows(self.v)
        v = kernel.fit_columns(u)
        moved_u, moved_v = kernel.shard.sum(self._moved(u / self.u)), self._moved(v / self.v)
        moved = torch.where(self.columns_first, self.moved_v, moved_u)
        self.count += ~held
        self.stopped = torch.where(held, self.stopped, moved < self.tolerance)
        self.done = torch.where(held, self.done, self.stopped | (self.count == self.limit))
        self.u = torch.where(held[:, None], self.u, u)
        self.v = torch.where((held | (self.done & self.columns_first))[:, None], self.v, v)
        self.moved_v = torch.where(held, self.moved_v, moved_v)
        self.over_limit = kernel.over_limit(self.u, self.v)
        return self.done.all() | self.over_limit

    def _moved(self, ratio: Tensor) -> Tensor:
        # The logarithm of the ratio keeps its precision where a difference of logarithms would lose it.
        return self.kernel.entropy * ratio.log_().abs_().sum(1)

    def apart(self) -> list[_PlainIterations]:
        """Each solution alone, as it stands, with a kernel of its own."""
        alone = []
        for place, kernel in enumerate(self.kernel.copies(len(self.count))):
            one = copy.copy(self)
            one.kernel = kernel
            for name in ("columns_first", "u", "v", "moved_v", "count", "stopped", "done"):
                setattr(one, name, getattr(self, name)[place : place + 1])
            alone.append(one)
        return alone

    def finish(self) -> PlainResult:
        """Go on with a solution that is alone until it is done."""
        kernel = self.kernel
        kernel.u, kernel.v = self.u[0], self.v[0]
        while not self.done:
            kernel.absorb()
            self.u, self.v = kernel.u[None], kernel.v[None]
            self.over_limit = torch.zeros_like(self.over_limit)
            _until_flagged(self, self.limit, self.u.device)
            kernel.u, kernel.v = self.u[0], self.v[0]
        return PlainResult(kernel, int(self.count), bool(self.stopped))


def _zero_potentials(kernel: ScaledKernel) -> tuple[Tensor, Tensor]:
    """Scalings that make both potentials 0, the start of the released code.

    Far potentials leave the range of the scalings. Clamping them is harmless: the closest columns of each row have
    g = 0 and decide its sum, and a row with so large an f moves far more than any tolerance.
    """
    log_limit = -kernel.log_floor
    u, v = ((-potential / kernel.entropy).clamp_(-log_limit, log_limit).exp_() for potential in (kernel.f, kernel.g))
    return u, v


def annealing_levels(spread: float, entropy: float) -> list[float]:
    """Entropies to pass through, halved each time, largest first; the last is `entropy` itself."""
    halvings = max(0, math.ceil(math.log2(spread / (_DIRECT_RANGE * entropy)))) if spread > 0 else 0
    return [entropy * 2.0**power for power in range(halvings, -1, -1)]


def converge(kernel: ScaledKernel, levels: list[float], tolerance: float, max_iterations: int) -> int:
    """Newton's method at each entropy of `levels` in turn, from the potentials of the one before.

    Returns:
        `int`: the work done in pairs of kernel products, so that it compares with plain iterations.
    """
    for smaller in levels[1:]:
        goal = max(tolerance, _LEVEL_TOLERANCE)
        _newton(kernel, goal, max_iterations - kernel.products // 2)
        kernel.absorb(entropy=smaller)
    _newton(kernel, tolerance, max_iterations - kernel.products // 2)
    return -(-kernel.products // 2)


def _newton(kernel: ScaledKernel, tolerance: float, max_iterations: int) -> None:
    """Bring the row error under `tolerance` by Newton's method on the dual, columns being fitted exactly throughout.

    With v eliminated, the dual is a convex function of x = log u with gradient P1 - a and Hessian
    diag(P1) - P diag(1/b) Pᵀ, P = diag(u) K diag(v). Each Newton system is solved roughly by conjugate gradients,
    preconditioned by the *exact* diagonal: a batch of well matched pairs gives a plan near a permutation, where the
    Hessian's off-diagonal part is small beside that diagonal while plain iterations, which divide by P1 instead,
    need thousands of steps. Ends early, at whatever error it reached, when `max_iterations` (in pairs of kernel
    products, the cost of a plain iteration) are used up or nothing improves any more.
    """
    budget = kernel.products + 2 * max_iterations
    best, stale = math.inf, 0
    _plain_steps(kernel, _WARM_UP)
    at = _Point.of(kernel, kernel.u, kernel.v)
    while kernel.products < budget:
        if at.over_limit:
            kernel.absorb()
            at = _Point.of(kernel, kernel.u, kernel.v)
        stale = 0 if at.error < 0.9 * best else stale + 1
        best = min(best, at.error)
        if at.error <= tolerance or stale > _PATIENCE:
            return
        limit = min(_MAX_CONJUGATE_STEPS, max(1, (budget - kernel.products) // 2))
        direction = _newton_direction(kernel, at, min(_ACCURACY, math.sqrt(at.error)), tolerance, limit)
        at = _search(kernel, at, direction)


class _Point(NamedTuple):
    """Scalings with fitted columns, and what the host has to know of them: one look at the device for all of it.

    Attributes:
        residual, row_sums (`Tensor`): (padded R,), row sums of the plan less the row marginals, and the row sums.
        error (`float`): Σ |residual| over all rows.
        over_limit (`bool`): The kernel must absorb.
        slope_before, slope (`float`): Of the dual along a direction, at another point and here.
    """

    residual: Tensor
    row_sums: Tensor
    error: float
    over_limit: bool
    slope_before: float
    slope: float

    @classmethod
    def of(
        cls, kernel: ScaledKernel, u: Tensor, v: Tensor, before: Tensor | None = None, along: Tensor | None = None
    ) -> _Point:
        """The point at `u` and `v`; `before` is the residual of another point, `along` a direction (padded R,)."""
        residual, row_sums = _residual(kernel, u, v)
        slopes = [] if along is None else [before @ along, residual @ along]
        sums = kernel.shard.sum(torch.stack([residual.abs().sum(), *slopes]))
        over_limit = kernel.over_limit(u, v)[None].to(sums)
        over, error, *slopes = torch.cat([over_limit, sums]).tolist()
        return cls(residual, row_sums, error, bool(over), *(slopes or (0.0, 0.0)))


def _plain_steps(kernel: ScaledKernel, count: int) -> None:
    for _ in range(count):
        kernel.u = kernel.fit_rows(kernel.v)
        kernel.v = kernel.fit_columns(kernel.u)


def _residual(kernel: ScaledKernel, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Row sums of the plan less the row marginals, without a change of total mass, and the row sums.

    The columns are fitted, so the mass is right; but products along rows and along columns round differently (by 1e-6
    in float32 at N = 4096, all rows alike), and no step could remove a residual that all rows share.
    """
    row_sums = u * (kernel.row_products(v) + kernel.idle_rows)
    residual = row_sums - kernel.a
    return residual - (kernel.a - kernel.idle_rows) * kernel.shard.sum(residual.sum()), row_sums


def _newton_direction(kernel: ScaledKernel, at: _Point, accuracy: float, tolerance: float, limit: int) -> Tensor:
    """Preconditioned conjugate gradients on the Newton system, until the residual's L1 norm fell to `accuracy`."""
    u, weights = kernel.u, kernel.v.square() / kernel.b
    # `row_sums * search` and what is subtracted from it cancel for a row that is nearly tied to one column; the shift
    # keeps the rounding of that difference from making the curvature negative.
    row_sums = at.row_sums * (1 + _SHIFT * torch.finfo(u.dtype).eps)
    diagonal = kernel.schur_diagonal(u, kernel.v) + row_sums * (_SHIFT * torch.finfo(u.dtype).eps)
    total = kernel.shard.sum
    goal = max(accuracy * at.error, min(0.5 * at.error, tolerance))
    solution, rest = torch.zeros_like(u), -at.residual
    search = rest / diagonal
    power = total(rest @ search)
    done = torch.zeros((), dtype=torch.bool, device=u.device)

    def step() -> Tensor:
        nonlocal search, power, done
        image = row_sums * search - u * kernel.row_products(weights * kernel.column_products(u * search))
        curvature = total(search @ image)
        # A curvature lost in rounding ends the solve: the steps so far are a descent direction already.
        done = done | (curvature <= 0)
        length = torch.where(done, 0.0, power / curvature)
        solution.add_(search * length)
        rest.sub_(image * length)
        scaled = rest / diagonal
        new_power, left = total(torch.stack([rest @ scaled, rest.abs().sum()]))
        done = done | (left < goal) | (new_power <= 0)
        search = torch.where(done, search, scaled + search * (new_power / power))
        power = torch.where(done, power, new_power)
        return done

    _until_flagged(step, limit, u.device)
    return solution.clamp_(-_LARGEST_STEP, _LARGEST_STEP)


def _search(kernel: ScaledKernel, at: _Point, direction: Tensor) -> _Point:
    """Step along `direction` until the slope there is not steeply upward; plain iterations where that took damping.

    The slope, not the value, of the dual decides: near the solution float32 cannot tell its values apart.
    """
    length = 1.0
    while True:
        u = kernel.u * torch.exp(length * direction)
        v = kernel.fit_columns(u)
        new = _Point.of(kernel, u, v, at.residual, direction)
        if new.slope <= 0.5 * abs(new.slope_before) or length < 1e-3:
            break
        length *= max(0.1, abs(new.slope_before) / (abs(new.slope_before) + new.slope))
    kernel.u, kernel.v = u, v
    if length < 1.0:
        _plain_steps(kernel, _WARM_UP)
        return _Point.of(kernel, kernel.u, kernel.v)
    return new
