"""The two ways to the plan: plain Sinkhorn with the released stop rule, and Newton's method on the dual."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ncu_hf.transport.kernel import ScaledKernel

_BLOCK = 10  # iterations whose end is looked for at once
_AHEAD = 10  # blocks that an accelerator is given before the end of the first is waited for; all of the released rule's
_CONJUGATE_BLOCK = 4  # conjugate steps between two looks at an accelerator; a Newton step takes about eight
_WARM_UP = 4  # plain iterations before Newton steps and after a damped one
_MAX_CONJUGATE_STEPS = 100
_ACCURACY = 0.3  # of a Newton direction, at most; the root of the error where that is less
_LARGEST_STEP = 2.0  # of log u in one Newton step
_SHIFT = 64  # rounding errors of a row sum that the Hessian is shifted by
_PATIENCE = 30  # Newton steps without a gain of 10 % before giving up
_LEVEL_TOLERANCE = 1e-3  # marginal error at which annealing goes on to the next, smaller entropy
_DIRECT_RANGE = 64.0  # (max C - min C) / ε up to which no annealing is needed


def _until_flagged(
    step: Callable[[], Tensor], limit: int, device: torch.device, block: int = 1, ahead: int = 1
) -> None:
    """Call `step` until the flag it returns is set, at most `limit` times; it must change nothing once that is so.

    The flag is looked at once a block of calls; that of an accelerator when so many more blocks are on their way, so
    that the device does not wait for the host. All processes call `step` equally often, as its flag is the same on all.
    """
    lag = 0 if device.type == "cpu" else ahead
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
    together.run()
    return [alone.finish(*known) for alone, known in zip(together.apart(), together.progress(), strict=True)]


class _PlainIterations:
    """Iterations of S solutions, which share the products with the kernel: those that fit columns first are half an
    iteration ahead in v.

    A call is a block of iterations, whose scalings are all kept: the rule is applied to the block as a whole, and each
    solution takes the iteration at which it ended, by the rule, by the limit or because its kernel must absorb. What
    was computed beyond that is dropped.
    """

    def __init__(self, kernel: ScaledKernel, tolerance: float, limit: int, columns_first: Sequence[bool]):
        self.kernel, self.tolerance, self.limit = kernel, tolerance, limit
        self.columns_first = torch.tensor(columns_first).to(kernel.a.device, non_blocking=True)
        self.count = torch.zeros_like(self.columns_first, dtype=torch.int64)
        self.stopped = torch.zeros_like(self.columns_first)
        self._start(*_zero_potentials(kernel, self.columns_first))

    def _start(self, u: Tensor, v: Tensor) -> None:
        """Go on from scalings (S, padded R) and (S, C)."""
        self.u, self.v = u, v
        self.held = self.stopped | (self.count == self.limit)
        self.last_u = u
        self.last_v = torch.stack([v, torch.where(self.columns_first[:, None], self.kernel.fit_columns(u), v)])

    def run(self) -> None:
        """Iterate until no solution can go on."""
        _until_flagged(self, -(-self.limit // _BLOCK), self.u.device, ahead=_AHEAD)

    def __call__(self) -> Tensor:
        size = min(_BLOCK, self.limit)
        u = self.last_u.new_empty(1 + size, *self.last_u.shape)
        v = self.last_v.new_empty(2 + size, *self.last_v.shape[1:])
        u[0], v[:2] = self.last_u, self.last_v
        for step in range(size):
            self.kernel.fit_rows(v[1 + step], out=u[1 + step])
            self.kernel.fit_columns(u[1 + step], out=v[2 + step])
        self.last_u, self.last_v = u[-1], v[-2:]
        # What each iteration arrived at, and where it came from.
        reached_v = torch.where(self.columns_first[:, None], v[1:-1], v[2:])
        moved_u = self.kernel.shard.sum(self._moved(u[1:] / u[:-1]))
        moved = torch.where(self.columns_first, self._moved(v[1:-1] / v[:-2]), moved_u)
        counts = self.count + torch.arange(1, size + 1, device=u.device)[:, None]
        self._take(u[1:], reached_v, moved < self.tolerance, self.kernel.over_limit(u[1:], v[2:]), counts)
        return self.held.all()

    def _take(self, u: Tensor, v: Tensor, stopped: Tensor, over_limit: Tensor, counts: Tensor) -> None:
        """Move each solution that is not held to the first iteration of a block that ends it, or to the last."""
        ends = stopped | over_limit | (counts == self.limit)
        places = torch.arange(len(ends), device=u.device)[:, None]
        last = torch.where(ends, places, len(ends) - 1).amin(0)
        solutions, held = torch.arange(len(last), device=u.device), self.held
        self.u = torch.where(held[:, None], self.u, u[last, solutions])
        self.v = torch.where(held[:, None], self.v, v[last, solutions])
        self.count = torch.where(held, self.count, counts[last, solutions])
        self.stopped = torch.where(held, self.stopped, stopped[last, solutions])
        self.held = held | ends[last, solutions]

    def _moved(self, ratio: Tensor) -> Tensor:
        # The logarithm of the ratio keeps its precision where a difference of logarithms would lose it.
        return self.kernel.entropy * ratio.log_().abs_().sum(-1)

    def apart(self) -> list[_PlainIterations]:
        """Each solution alone, as it stands, with a kernel of its own."""
        alone = []
        for place, kernel in enumerate(self.kernel.copies(len(self.count))):
            one = copy.copy(self)
            one.kernel = kernel
            for name in ("columns_first", "u", "v", "count", "stopped"):
                setattr(one, name, getattr(self, name)[place : place + 1])
            alone.append(one)
        return alone

    def finish(self, count: int, stopped: bool) -> PlainResult:
        """Go on with a solution that is alone, and of which the host knows this much, until it is done."""
        kernel = self.kernel
        kernel.u, kernel.v = self.u[0], self.v[0]
        while not stopped and count < self.limit:
            kernel.absorb()
            self._start(kernel.u[None], kernel.v[None])
            self.run()
            kernel.u, kernel.v = self.u[0], self.v[0]
            ((count, stopped),) = self.progress()
        return PlainResult(kernel, count, bool(stopped))

    def progress(self) -> list[list[int]]:
        """Iterations of each solution, and whether the rule stopped it; waits for the device."""
        return torch.stack([self.count, self.stopped.long()], dim=1).tolist()


def _zero_potentials(kernel: ScaledKernel, columns_first: Tensor) -> tuple[Tensor, Tensor]:
    """Scalings (S, padded R) and (S, C) that make both potentials 0, the start of the released code.

    t u and v / t are the same plan for any t. It is chosen such that the side which the other is fitted to first is at
    most 1: what is fitted is near 1 then too, and nothing has to be absorbed because of t alone.

    Far potentials leave the range of the scalings. Clamping them is harmless: the closest columns of each row have
    g = 0 and decide its sum, and a row with so large an f moves far more than any tolerance.
    """
    log_u, log_v = -kernel.f / kernel.entropy, -kernel.g / kernel.entropy
    idle_rows, idle_columns = kernel.idle_rows.bool(), kernel.idle_columns.bool()
    highest_u = kernel.shard.largest(log_u.masked_fill(idle_rows, -torch.inf).amax())
    highest_v = log_v.masked_fill(idle_columns, -torch.inf).amax()
    log_t = torch.where(columns_first, -highest_u, highest_v)[:, None]
    log_limit = -kernel.log_floor
    u, v = (scaling.clamp_(-log_limit, log_limit).exp_() for scaling in (log_u + log_t, log_v - log_t))
    return u.masked_fill_(idle_rows, 1), v.masked_fill_(idle_columns, 1)


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
        products = kernel.row_products(weights * kernel.column_products(u * search))
        image = torch.addcmul(row_sums * search, u, products, value=-1)
        curvature = total(search @ image)
        # A curvature lost in rounding ends the solve: the steps so far are a descent direction already.
        done = done | (curvature <= 0)
        length = torch.where(done, 0.0, power / curvature)
        solution.addcmul_(search, length)
        rest.addcmul_(image, length, value=-1)
        scaled = rest / diagonal
        new_power, left = total(torch.stack([rest @ scaled, rest.abs().sum()]))
        done = done | (left < goal) | (new_power <= 0)
        search = torch.where(done, search, torch.addcmul(scaled, search, new_power / power))
        power = torch.where(done, power, new_power)
        return done

    _until_flagged(step, limit, u.device, block=1 if u.device.type == "cpu" else _CONJUGATE_BLOCK)
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
