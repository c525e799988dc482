"""The scaled kernel on which every iteration works: diag(u) K diag(v) is the current plan."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.nn.functional import pad, threshold_

from ncu_hf.distributed import Shard
from ncu_hf.partitions import empty_matrix, row_blocks

# Products with the kernel are batched over blocks of rows: the CPU matrix-vector product of torch runs on one thread, a
# batch of them on all; and a sum over few rows, then over blocks, carries less rounding error than one over all rows.
_FEWEST_BLOCKS, _MOST_ROWS = 8, 128


class ScaledKernel:
    """exp((f_i + g_j - C_ij) / ε) on the open cells, exactly 0 on the closed ones, with scalings u and v.

    The plan is diag(u) K diag(v); products take one scaling or several at once. The potentials f, g (units of cost)
    start as the c-transforms f_i = min_j C_ij and g_j = min_i C_ij - f_i, so the largest entry of each row and each
    column is 1 whatever the range of C / ε is.
    `absorb` moves the scalings into the potentials when they grow large, which is what keeps a float32 kernel
    correct at small ε (Schmitzer 2019, arXiv:1610.06519, section 3). A cell that falls below the kernel's floor is 0;
    the limit on the scalings keeps the mass so lost under 1e-16 a cell.

    Each process holds some of the rows, and with them f, u and all else that has an entry a row; what has an entry a
    column is the same on all. Rows are padded to a multiple of the number of row blocks. Padding and fully closed rows
    and columns are *idle*: their kernel entries are 0 and their marginal 1 is met by a constant 1, so that they scale
    by 1 and nothing divides by zero.

    Args:
        cost (`torch.Tensor`): (R, C), float32 or float64, finite. Read again at each `absorb`, never written.
        closed (`torch.Tensor`, *optional*): (R, C) bool, true where no mass may go.
        row_weights (`torch.Tensor`): (R,), positive. `row_marginals` holds them, 0 for idle rows, scaled to sum to 1.
        column_weights (`torch.Tensor`): (C,), likewise.
        entropy (`float`): ε > 0 in units of cost.
        shard (`Shard`): Whose rows these are.
    """

    def __init__(
        self,
        cost: Tensor,
        closed: Tensor | None,
        row_weights: Tensor,
        column_weights: Tensor,
        entropy: float,
        shard: Shard,
    ):
        self.rows, columns = cost.shape
        blocks = max(_FEWEST_BLOCKS, -(-self.rows // _MOST_ROWS))
        height = max(1, -(-self.rows // blocks))
        self.cost, self.closed, self.entropy, self.shard = cost, closed, entropy, shard
        self._hold(empty_matrix(blocks * height, columns, cost), blocks)
        self.products = 0
        self.log_floor = 0.9 * math.log(torch.finfo(cost.dtype).tiny)
        self.limit = math.exp(-0.25 * self.log_floor)
        exponent = self._negated_cost()
        self.f, idle = _potential(exponent.amax(1))
        row_marginals = pad(row_weights, (0, len(idle) - self.rows)).masked_fill(idle, 0)
        self.row_marginals = row_marginals / shard.sum(row_marginals.sum())
        self.g, idle = _potential(shard.largest(exponent.add_(self.f[:, None]).amax(0)))
        column_marginals = column_weights.masked_fill(idle, 0)
        self.column_marginals = column_marginals / column_marginals.sum()
        self._all_closed = idle.all()
        self.a, self.idle_rows = _idle(self.row_marginals)
        self.b, self.idle_columns = _idle(self.column_marginals)
        self._exponentiate(exponent.add_(self.g))

    def check_open(self) -> None:
        """Waits for the device.

        Raises:
            ValueError: all cells are closed.
        """
        if self._all_closed:
            raise ValueError("mask closes every cell: there is nothing to transport.")

    def _hold(self, entries: Tensor, blocks: int) -> None:
        """Let `entries` (padded R, C) be those of the kernel, in so many blocks of rows."""
        self.padded, self.blocks = entries, entries.unflatten(0, (blocks, -1))

    def _negated_cost(self) -> Tensor:
        # Copied first: a copy is fast whatever the strides of the cost, arithmetic on a transposed one is not.
        exponent = self.padded[: self.rows].copy_(self.cost).neg_()
        if self.closed is not None:
            exponent.masked_fill_(self.closed, -torch.inf)
        self.padded[self.rows :] = -torch.inf
        return self.padded

    def _exponentiate(self, exponent: Tensor) -> None:
        # Exponents under the floor would give subnormal numbers, which are slow on CPU and imprecise everywhere.
        threshold_(exponent.div_(self.entropy), self.log_floor, -torch.inf).exp_()
        self.u, self.v = torch.ones_like(self.a), torch.ones_like(self.b)

    def absorb(self, entropy: float | None = None) -> None:
        """Move the scalings into the potentials and recompute the kernel, for another ε where one is given."""
        self.f += self.entropy * self.u.log()
        self.g += self.entropy * self.v.log()
        self.entropy = self.entropy if entropy is None else entropy
        self._exponentiate(self._negated_cost().add_(self.f[:, None]).add_(self.g))

    def over_limit(self, u: Tensor, v: Tensor) -> Tensor:
        """(...) bool: whether it is time to absorb scalings u (..., padded R) and v (..., C).

        Entries are at most 1, so neither u nor v gets small alone.
        """
        return self.shard.largest(torch.maximum(u.amax(-1), v.amax(-1))) > self.limit

    def copies(self, count: int) -> list[ScaledKernel]:
        """This kernel and others like it, each with entries of its own; this one is the last."""
        others = [copy.copy(self) for _ in range(count - 1)]
        for other in others:
            other.f, other.g = self.f.clone(), self.g.clone()
            other._hold(empty_matrix(*self.padded.shape, self.padded).copy_(self.padded), len(self.blocks))
        return [*others, self]

    def row_products(self, v: Tensor) -> Tensor:
        """K v, (..., C) -> (..., padded R)."""
        self.products += 1
        vectors = v.reshape(-1, v.shape[-1]).expand(len(self.blocks), -1, -1)
        return torch.bmm(vectors, self.blocks.transpose(1, 2)).transpose(0, 1).reshape(*v.shape[:-1], -1)

    def column_products(self, u: Tensor) -> Tensor:
        """Kᵀ u, (..., padded R) -> (..., C)."""
        self.products += 1
        vectors = u.reshape(-1, *self.blocks.shape[:2]).transpose(0, 1)
        return self.shard.sum(torch.bmm(vectors, self.blocks).sum(0).reshape(*u.shape[:-1], -1))

    def fit_rows(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        """The u that gives the plan its row marginals."""
        return torch.div(self.a, self.row_products(v).add_(self.idle_rows), out=out)

    def fit_columns(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        """The v that gives the plan its column marginals."""
        return torch.div(self.b, self.column_products(u).add_(self.idle_columns), out=out)

    def schur_diagonal(self, u: Tensor, v: Tensor) -> Tensor:
        """Diagonal of diag(P 1) - P diag(1/b) Pᵀ for P = diag(u) K diag(v), (padded R,); 1 for an idle row.

        Summed as u_i Σ_j K_ij (v_j - u_i K_ij v_j² / b_j): for a plan that is nearly a permutation the difference of
        the two sums would cancel.
        """
        self.products += 3  # its measured cost
        weights = v.square() / self.b
        blocks = list(row_blocks(self.padded))
        sums, rest = torch.empty_like(u), torch.empty_like(self.padded[blocks[0]])
        for rows in blocks:
            kernel = self.padded[rows]
            own = torch.mul(kernel, u[rows, None], out=rest[: len(kernel)])
            torch.sum(torch.addcmul(v, own, weights, value=-1, out=own).mul_(kernel), dim=1, out=sums[rows])
        return sums.mul_(u).add_(self.idle_rows)

    def into_plan(self, refit: bool) -> Tensor:
        """The plan (R, C), written over the kernel, which is used up.

        Args:
            refit (`bool`): Add a plain iteration on the plan itself. Its sums round less than the products with the
                kernel, which alone leave the marginals of a float32 plan 1e-6 off at N = 4096.
        """
        plan = self.padded.mul_(self.u[:, None]).mul_(self.v)
        if refit:
            plan.mul_((self.row_marginals / (plan.sum(1) + self.idle_rows))[:, None])
            plan.mul_(self.column_marginals / (self.shard.sum(plan.sum(0)) + self.idle_columns))
        return plan[: self.rows]

    def measured(self, plan: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums of the rows (R,) and columns (C,) of a plan, and Σ |sum - marginal| of both."""
        rows, columns = plan.sum(1), self.shard.sum(plan.sum(0))
        row_error = self.shard.sum((rows - self.row_marginals[: self.rows]).abs_().sum())
        return rows, columns, row_error, (columns - self.column_marginals).abs_().sum()


def _potential(highest: Tensor) -> tuple[Tensor, Tensor]:
    """c-transform from the highest exponent of each line, 0 where all cells are closed; and which lines these are."""
    idle = highest.isinf()
    return (-highest).masked_fill_(idle, 0), idle


def _idle(marginals: Tensor) -> tuple[Tensor, Tensor]:
    idle = (marginals == 0).to(marginals.dtype)
    return marginals + idle, idle
