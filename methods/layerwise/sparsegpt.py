"""SparseGPT: column sweep with optimal-brain-surgeon updates (Frantar and Alistarh, arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.kernels.operators import Grid, obs_sweep
from methods.layerwise.rule import Budget, Problem, Solution, Statistic
from methods.layerwise.select import block_share, smallest
from methods.moments import Factor

__all__ = ["SparseGPT", "row_grid", "sparsegpt"]


def row_grid(weight: Tensor, bits: int) -> Grid:
    """Asymmetric min-max grid per row of weight [rows, columns], as the published code's ``perchannel`` quantiser has it.

    The range always holds zero and the zero point is rounded, so a removed weight stays exactly zero.
    """
    low = weight.min(dim=1).values.clamp(max=0)
    high = weight.max(dim=1).values.clamp(min=0)
    empty = (low == 0) & (high == 0)
    low, high = (
        torch.where(empty, -torch.ones_like(low), low),
        torch.where(empty, torch.ones_like(high), high),
    )
    levels = 2**bits
    scale = (high - low) / (levels - 1)
    return Grid(scale=scale, zero=torch.round(-low / scale), levels=levels)


def sparsegpt(
    weight: Tensor,
    factor: Factor,
    budget: Budget,
    *,
    blocksize: int = 128,
    grid: Grid | None = None,
    mask: Tensor | None = None,
    reference: bool = False,
) -> tuple[Tensor, Tensor, float]:
    """Prune weight [rows, columns] float32 in place; returns it, the mask of what was removed, and the loss.

    Blocks of ``blocksize`` columns, left to right. Unstructured: at each block the smallest w²/U_jj² over all
    rows, with weights as already compensated; the block's share of the budget is exact. N:M: chosen inside
    the sweep, per row. A ``mask`` says itself what goes, whatever the budget. The loss is Σ (w - q)² / 2U_jj²,
    half the rise of the damped quadratic form.
    ``reference`` keeps the published code's choices: dead inputs' weights zeroed beforehand, everything at or
    below the threshold removed.
    """
    rows, columns = weight.shape
    if budget.group and mask is None:
        blocksize = -(-blocksize // budget.group) * budget.group
    if reference:
        weight[:, factor.dead] = 0
    removed = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    loss = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, columns, blocksize):
        stop = min(start + blocksize, columns)
        current, upper = weight[:, start:stop], factor.upper[start:stop, start:stop]
        if mask is not None:
            sweep = obs_sweep(current, upper, mask=mask[:, start:stop], grid=grid)
        elif budget.group:
            sweep = obs_sweep(current, upper, keep=budget.keep, group=budget.group, grid=grid)
        else:
            chosen = _block_mask(current, upper, budget, (rows, columns, start, stop), reference)
            sweep = obs_sweep(current, upper, mask=chosen, grid=grid)
        weight[:, start:stop] = sweep.values
        removed[:, start:stop] = sweep.mask
        loss += sweep.loss.sum(dtype=torch.float64)
        if stop < columns:
            weight[:, stop:].addmm_(sweep.errors, factor.upper[start:stop, stop:], alpha=-1)
    return weight, removed, float(loss)


def _block_mask(
    current: Tensor, upper: Tensor, budget: Budget, place: tuple[int, int, int, int], reference: bool
) -> Tensor:
    rows, columns, start, stop = place
    scores = (current / upper.diagonal()).square_()
    if not reference:
        return smallest(scores, block_share(budget.remove, rows * columns, rows * start, rows * stop))
    if not budget.remove:
        return torch.zeros_like(scores, dtype=torch.bool)
    rank = int(scores.numel() * (budget.remove / (rows * columns)))
    return scores <= scores.flatten().kthvalue(min(rank + 1, scores.numel())).values


@dataclass(frozen=True, slots=True)
class SparseGPT:
    """The rule ``sparsegpt``. ``percdamp``: damping as a share of the Hessian's mean diagonal."""

    percdamp: float = 0.01
    blocksize: int = 128
    reference: bool = False
    name: str = "sparsegpt"
    needs: Statistic = Statistic.GRAM

    def solve(self, problem: Problem) -> Solution:
        """Prune with the stage's shared factor. Raises HessianError, NonFiniteError."""
        return self._sweep(problem, None)

    def update(self, problem: Problem, mask: Tensor) -> Solution:
        """Sweep the dense weight with this mask. Raises HessianError, NonFiniteError."""
        return self._sweep(problem, mask)

    def _sweep(self, problem: Problem, mask: Tensor | None) -> Solution:
        if problem.moments is None:
            raise ValueError("sparsegpt needs moments of the layer's inputs")
        factor = problem.moments.factor(self.percdamp, reference=self.reference)
        weight, removed, _ = sparsegpt(
            problem.weight,
            factor,
            problem.budget,
            blocksize=self.blocksize,
            mask=mask,
            reference=self.reference,
        )
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteError(
                f"{problem.moments.where}: {problem.matrix.name} became NaN or infinite while pruning; "
                f"raise the damping (--set sparsegpt.percdamp={self.percdamp * 10:g})"
            )
        return Solution(weight, removed, factor)
