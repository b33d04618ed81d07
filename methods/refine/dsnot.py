"""DSnoT: swaps between pruned and kept weights that cancel a row's expected output error, without training.

Source: Zhang et al., "Dynamic Sparse No Training", arXiv 2310.08915, section 3. Where it differs from the
published code: only weights that the given mask removes are regrown, so counts stay exact; a swap that would
not lessen the error ends the row (there nothing does, by default); every linear layer is refined (there the
feed-forward ones are left out, by default).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.layerwise.rule import Problem, Statistic

__all__ = ["DSnoT", "swap"]

_PIECE = 1 << 22  # weights of the rows taken at once: bounds the memory of their sorted indices


def swap(
    contribution: Tensor,
    pull: Tensor,
    saliency: Tensor,
    mask: Tensor,
    *,
    cycles: int,
    threshold: float,
    group: int = 0,
) -> Tensor:
    """Exchange weights row by row; all [rows, columns]; returns the new mask.

    A row's expected error e is the sum of ``contribution`` over what is removed. Each cycle of a row with
    |e| > ``threshold`` regrows the removed weight of e's sign with the largest ``pull`` and removes the kept
    weight of the other sign with the smallest ``saliency``: in the same ``group`` of columns, where there are
    groups; a candidate whose group has none is passed over. The row ends where candidates do, or where |e|
    would not get smaller. What was exchanged stays so; ties go to the lowest index.
    """
    row = torch.arange(len(mask), device=mask.device)
    error = contribution.masked_fill(~mask, 0).sum(dim=1)
    grow = _Queue(pull, mask, contribution)
    drop = _Queue(-saliency, ~mask, contribution)
    mask, moved = mask.clone(), torch.zeros_like(mask)
    active = error.abs() > threshold
    for _ in range(cycles):
        if not bool(active.any()):
            break
        sign = error > 0
        regrown, found = grow.next(sign)
        active &= found
        if group:
            removed, fits = _cheapest(contribution, saliency, (mask, moved), regrown, sign, group)
        else:
            removed, fits = drop.next(~sign)
            active &= fits
        after = error - contribution[row, regrown] + contribution[row, removed]
        active &= (after.abs() < error.abs()) | ~fits
        rows = (active & fits).nonzero()[:, 0]
        for columns, gone in ((regrown, False), (removed, True)):
            mask[rows, columns[rows]] = gone
            moved[rows, columns[rows]] = True
        error[rows] = after[rows]
        grow.take(sign, active)
        drop.take(~sign, active)
        active &= error.abs() > threshold
    return mask


class _Queue:
    """Candidates of every row, those of negative and those of positive contribution, the largest merit first."""

    def __init__(self, merit: Tensor, among: Tensor, contribution: Tensor) -> None:
        sides = (among & (contribution < 0), among & (contribution > 0))
        self._orders = [
            merit.masked_fill(~side, -torch.inf).argsort(dim=1, descending=True, stable=True)
            for side in sides
        ]
        self._counts = [side.sum(dim=1) for side in sides]
        self._at = [torch.zeros_like(count) for count in self._counts]

    def next(self, sign: Tensor) -> tuple[Tensor, Tensor]:
        """Column of every row's next candidate of this sign (True: positive), and whether there is one."""
        at = torch.where(sign, self._at[1], self._at[0])
        there = at < torch.where(sign, self._counts[1], self._counts[0])
        at = (at * there)[:, None]
        negative, positive = (order.gather(1, at)[:, 0] for order in self._orders)
        return torch.where(sign, positive, negative), there

    def take(self, sign: Tensor, rows: Tensor) -> None:
        """What ``next`` gave is used up in these rows."""
        self._at[1] += rows & sign
        self._at[0] += rows & ~sign


def _cheapest(
    contribution: Tensor,
    saliency: Tensor,
    taken: tuple[Tensor, Tensor],
    regrown: Tensor,
    sign: Tensor,
    group: int,
) -> tuple[Tensor, Tensor]:
    """In the group of every row's ``regrown``: the column to remove in return, and whether there is one."""
    columns = (regrown // group * group)[:, None] + torch.arange(group, device=regrown.device)
    near = contribution.gather(1, columns)
    gone, moved = (part.gather(1, columns) for part in taken)
    fit = ~gone & ~moved & torch.where(sign[:, None], near < 0, near > 0)
    order = saliency.gather(1, columns).masked_fill(~fit, torch.inf).argsort(dim=1, stable=True)
    return columns.gather(1, order[:, :1])[:, 0], fit.any(dim=1)


@dataclass(frozen=True, slots=True)
class DSnoT:
    """The refinement ``dsnot``.

    ``cycles``: exchanges of a row at most. ``threshold``: a row whose expected error, summed over the tokens
    of a calibration window as in the published code, is no larger is left alone. ``power``: of the input's
    variance, which what is regrown is divided by.
    """

    cycles: int = 50
    threshold: float = 0.1
    power: float = 1.0
    name: str = "dsnot"
    needs: Statistic = Statistic.MEANS | Statistic.VARIANCES | Statistic.NORMS

    def __call__(self, problem: Problem, mask: Tensor) -> Tensor:
        """The mask after all exchanges; the same counts in every row and every N:M group. Raises NonFiniteError."""
        if problem.moments is None:
            raise ValueError("dsnot needs means, variances and norms of the layer's inputs")
        moments, weight = problem.moments, problem.weight
        sums = moments.means * moments.length
        spread, norms = moments.variances.pow(self.power), moments.norms
        refined = torch.empty_like(mask)
        step = max(1, _PIECE // mask.shape[1])
        for start in range(0, len(mask), step):
            part = weight[start : start + step].double()
            contribution = part * sums
            refined[start : start + step] = swap(
                contribution,
                contribution.abs() / spread,
                part.abs() * norms,
                mask[start : start + step],
                cycles=self.cycles,
                threshold=self.threshold,
                group=problem.budget.group,
            )
        return refined
