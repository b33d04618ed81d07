"""RIA: a weight's share of its row and of its column, times a power of its input's norm.

Source: Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
ICLR 2024. Its channel permutation is left out: what it keeps is N:M only in an order of columns that no
stored checkpoint has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.layerwise.rule import Budget, Problem, Solution, Statistic, keep
from methods.layerwise.select import at_or_below, lowest, smallest_in_rows

__all__ = ["RIA", "ria_mask", "ria_scores"]


def ria_scores(weight: Tensor, norms: Tensor, power: float = 0.5) -> Tensor:
    """(|W_ij| / Σ_j |W_ij| + |W_ij| / Σ_i |W_ij|) · |X_j|₂^power [rows, columns] float32.

    ``weight`` [rows, columns], ``norms`` [columns]. A row or column of zeros scores zero.
    """
    size = weight.abs().float()
    shares = _share(size, 1) + _share(size, 0)
    return shares * norms.pow(power).float()


def _share(size: Tensor, dim: int) -> Tensor:
    whole = size.sum(dim=dim, keepdim=True, dtype=torch.float64)
    return size * torch.where(whole > 0, 1 / whole, torch.zeros_like(whole)).float()


def ria_mask(
    weight: Tensor,
    norms: Tensor,
    budget: Budget,
    *,
    power: float = 0.5,
    per_row: bool = False,
    reference: bool = False,
) -> Tensor:
    """Mask [rows, columns, bool] of what goes: the smallest scores of the matrix, of each row, or of each N:M group.

    ``reference`` follows the published code: everything at or below the threshold goes, one weight more than
    asked at least (over the whole matrix only).
    """
    scores = ria_scores(weight, norms, power)
    if budget.group:
        return lowest(scores, budget)
    if per_row:
        return smallest_in_rows(scores, budget.remove)
    return at_or_below(scores, budget.remove) if reference else lowest(scores, budget)


@dataclass(frozen=True, slots=True)
class RIA:
    """The rule ``ria``: no update. ``power``: the paper's a; ``per_row``: compare within rows, as Wanda does."""

    power: float = 0.5
    per_row: bool = False
    reference: bool = False
    name: str = "ria"
    needs: Statistic = Statistic.NORMS

    def solve(self, problem: Problem) -> Solution:
        """Zero the lowest scores. Raises NonFiniteError."""
        if problem.moments is None:
            raise ValueError("ria needs the norms of the layer's inputs")
        mask = ria_mask(
            problem.weight,
            problem.moments.norms,
            problem.budget,
            power=self.power,
            per_row=self.per_row,
            reference=self.reference,
        )
        return keep(problem, mask)

    def update(self, problem: Problem, mask: Tensor) -> Solution:
        """Nothing moves."""
        return keep(problem, mask)
