"""SparseGPT: column sweep with optimal-brain-surgeon updates (Frantar and Alistarh, arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.interface import ModelShape
from methods.kernels.operators import Grid, obs_sweep
from methods.layerwise.rule import Budget, Problem, Solution, Statistic
from methods.layerwise.saliency import divisors
from methods.layerwise.select import block_share, smallest
from methods.moments import Factor
from methods.quantise.grid import GridMaker, MatrixGrid
from methods.target import Target

__all__ = ["SparseGPT", "Swept", "sparsegpt", "sweep_matrix"]


class Swept(NamedTuple):
    """A pruned weight [rows, columns] float32, the mask of what was removed, the loss, and the grids used."""

    weight: Tensor
    mask: Tensor
    loss: float
    grid: MatrixGrid | None


def sparsegpt(
    weight: Tensor,
    factor: Factor,
    budget: Budget,
    *,
    blocksize: int = 128,
    grid: MatrixGrid | GridMaker | None = None,
    mask: Tensor | None = None,
    saliency: str = "obs",
    reference: bool = False,
) -> tuple[Tensor, Tensor, float]:
    """Prune weight [rows, columns] float32 in place; returns it, the mask of what was removed, and the loss.

    Blocks of ``blocksize`` columns, left to right. Unstructured: at each block the smallest w²/d_j² over all
    rows, with weights as already compensated; the block's share of the budget is exact. N:M: chosen inside
    the sweep, per row. ``saliency`` gives d: U_jj for ``obs`` (``methods.layerwise.saliency``). A ``mask`` says
    itself what goes, whatever the budget. With a ``grid`` every weight that stays is rounded to it as the sweep
    passes, and the error spread like a removed weight's. The loss is Σ (w - q)² / 2U_jj², half the rise of the
    damped quadratic form.
    ``reference`` keeps the published code's choices: dead inputs' weights zeroed beforehand, everything at or
    below the threshold removed. Raises ValueError where a group of N:M would lie on two grids.
    """
    swept = sweep_matrix(
        weight,
        factor,
        budget,
        blocksize=blocksize,
        grid=grid,
        mask=mask,
        saliency=saliency,
        reference=reference,
    )
    return swept.weight, swept.mask, swept.loss


def sweep_matrix(
    weight: Tensor,
    factor: Factor,
    budget: Budget,
    *,
    blocksize: int = 128,
    grid: MatrixGrid | GridMaker | None = None,
    mask: Tensor | None = None,
    saliency: str = "obs",
    reference: bool = False,
) -> Swept:
    """What ``sparsegpt`` does, with the grids.

    A ``GridMaker`` makes the grids of a group of columns when the sweep reaches it, from the weights as
    compensated so far (GPTQ, arXiv 2210.17323, section 3.3): for the whole row that is the dense weight.
    Blocks are cut such that they hold whole groups, or groups whole blocks.
    """
    rows, columns = weight.shape
    size = columns if grid is None else min(grid.groupsize or columns, columns)
    if budget.group and mask is None:
        blocksize = -(-blocksize // budget.group) * budget.group
        if size < columns and size % budget.group:
            raise ValueError(f"grids of {size} columns cut groups of {budget.group}: pass a multiple of it")
    grids = None if grid is None else _Grids(grid, size)
    if grids is not None:
        grids.reach(weight, 0)  # as published: before dead inputs' weights are zeroed
    if reference:
        weight[:, factor.dead] = 0
    removed = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    loss = torch.zeros((), dtype=torch.float64, device=weight.device)
    divisor = divisors(factor, saliency)
    for start, stop in pairwise(_edges(columns, blocksize, size)):
        current, upper = weight[:, start:stop], factor.upper[start:stop, start:stop]
        if mask is not None:
            chosen: Tensor | None = mask[:, start:stop]
        elif budget.group:
            chosen = None
        else:
            chosen = _block_mask(
                current, divisor[start:stop], budget, (rows, columns, start, stop), reference
            )
        errors = []
        for begin, end in pairwise(_edges(stop - start, size, stop - start)):
            piece, inner = current[:, begin:end], upper[begin:end, begin:end]
            row_grid = None if grids is None else grids.reach(weight, start + begin)
            if chosen is None:
                own = divisor[start + begin : start + end]
                sweep = obs_sweep(
                    piece, inner, keep=budget.keep, group=budget.group, grid=row_grid, divisor=own
                )
            else:
                sweep = obs_sweep(piece, inner, mask=chosen[:, begin:end], grid=row_grid)
            piece.copy_(sweep.values)
            removed[:, start + begin : start + end] = sweep.mask
            loss += sweep.loss.sum(dtype=torch.float64)
            if end < stop - start:
                current[:, end:].addmm_(sweep.errors, upper[begin:end, end:], alpha=-1)
            errors.append(sweep.errors)
        if stop < columns:
            spread = errors[0] if len(errors) == 1 else torch.cat(errors, dim=1)
            weight[:, stop:].addmm_(spread, factor.upper[start:stop, stop:], alpha=-1)
    return Swept(weight, removed, float(loss), None if grids is None else grids.made())


def _edges(columns: int, block: int, group: int) -> list[int]:
    """Where blocks begin, and the end: as many whole groups as fit ``block`` columns, or parts of one group."""
    step = block // group * group or block
    inside = group if group > block else columns
    return [
        *(
            place
            for first in range(0, columns, inside)
            for place in range(first, min(first + inside, columns), step)
        ),
        columns,
    ]


class _Grids:
    """The grids of a sweep, group by group of ``size`` columns: given, or made when their group is reached."""

    def __init__(self, grid: MatrixGrid | GridMaker, size: int) -> None:
        self._source = grid
        self._size = size
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def reach(self, weight: Tensor, column: int) -> Grid:
        """The row grids at ``column`` of the weight [rows, columns] as compensated so far."""
        if isinstance(self._source, MatrixGrid):
            return self._source.at(column)
        group = column // self._size
        if group not in self._made:
            first = group * self._size
            self._made[group] = self._source(weight[:, first : first + self._size])
        return Grid(*self._made[group], 2**self._source.bits)

    def made(self) -> MatrixGrid:
        """The grids of the whole matrix, once all groups were reached."""
        if isinstance(self._source, MatrixGrid):
            return self._source
        scale, zero = (torch.stack(parts, dim=1) for parts in zip(*self._made.values(), strict=True))
        return MatrixGrid(scale, zero, self._source.bits, self._size)


def _block_mask(
    current: Tensor, divisor: Tensor, budget: Budget, place: tuple[int, int, int, int], reference: bool
) -> Tensor:
    rows, columns, start, stop = place
    scores = (current / divisor).square_()
    if not reference:
        return smallest(scores, block_share(budget.remove, rows * columns, rows * start, rows * stop))
    if not budget.remove:
        return torch.zeros_like(scores, dtype=torch.bool)
    rank = int(scores.numel() * (budget.remove / (rows * columns)))
    return scores <= scores.flatten().kthvalue(min(rank + 1, scores.numel())).values


@dataclass(frozen=True, slots=True)
class SparseGPT:
    """The rule ``sparsegpt``. ``percdamp``: damping as a share of the Hessian's mean diagonal.

    ``grid`` and ``groupsize`` say how the grids of a joint target (``50%+4bit``) are made: by ``minmax``, or shrunk
    by ``mse``; one for so many columns of a row, or for the whole row (0).
    """

    percdamp: float = 0.01
    blocksize: int = 128
    saliency: str = "obs"
    reference: bool = False
    grid: str = "minmax"
    groupsize: int = 0
    name: str = "sparsegpt"
    needs: Statistic = Statistic.GRAM
    quantises: bool = True

    def refuse(self, _shape: ModelShape, target: Target) -> str | None:
        """Why this target cannot be reached, or None."""
        if target.bits and target.kind == "nm" and self.groupsize % target.group:
            return (
                f"{target} needs grids that hold whole groups of {target.group} weights; "
                f"sparsegpt.groupsize is {self.groupsize}, use a multiple of {target.group}"
            )
        return None

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
        swept = sweep_matrix(
            problem.weight,
            factor,
            problem.budget,
            blocksize=self.blocksize,
            grid=self._maker(problem),
            mask=mask,
            saliency=self.saliency,
            reference=self.reference,
        )
        if not bool(torch.isfinite(swept.weight).all()):
            raise NonFiniteError(
                f"{problem.moments.where}: {problem.matrix.name} became NaN or infinite while pruning; "
                f"raise the damping (--set sparsegpt.percdamp={self.percdamp * 10:g})"
            )
        return Solution(swept.weight, swept.mask, factor, swept.grid)

    def _maker(self, problem: Problem) -> GridMaker | None:
        if problem.bits is None:
            return None
        # the published code keeps scales in float32, whatever the weights are stored in
        dtype = torch.float32 if self.reference else problem.stored
        return GridMaker(problem.bits, self.groupsize, self.grid, dtype)
