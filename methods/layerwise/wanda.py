"""Wanda: weights times the norms of their inputs, compared within each row (Sun et al., arXiv 2306.11695)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from methods.layerwise.rule import Budget, Problem, Solution, Statistic, keep
from methods.layerwise.select import smallest_in_groups, smallest_in_rows

__all__ = ["Wanda", "wanda_mask", "wanda_scores"]


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| · |X_j|₂ [rows, columns] float32, from weight [rows, columns] and the inputs' norms [columns]."""
    return weight.abs().float() * norms.float()


def wanda_mask(weight: Tensor, norms: Tensor, budget: Budget, *, reference: bool = False) -> Tensor:
    """Mask [rows, columns, bool] of what goes: each row's smallest scores, or each group's for N:M.

    Rows share an unstructured budget evenly, and add up to it exactly. ``reference`` follows the published
    code: every row loses ⌊columns · sparsity⌋, so where that is no whole number fewer weights go than asked.
    """
    scores = wanda_scores(weight, norms)
    if budget.group:
        return smallest_in_groups(scores, budget.keep, budget.group)
    rows, columns = scores.shape
    count = budget.remove
    if reference:
        count = rows * (Fraction(count * columns, scores.numel()).__floor__() if count else 0)
    return smallest_in_rows(scores, count)


@dataclass(frozen=True, slots=True)
class Wanda:
    """The rule ``wanda``: no update."""

    reference: bool = False
    name: str = "wanda"
    needs: Statistic = Statistic.NORMS

    def solve(self, problem: Problem) -> Solution:
        """Zero the lowest scores of every row. Raises NonFiniteError."""
        if problem.moments is None:
            raise ValueError("wanda needs the norms of the layer's inputs")
        mask = wanda_mask(problem.weight, problem.moments.norms, problem.budget, reference=self.reference)
        return keep(problem, mask)

    def update(self, problem: Problem, mask: Tensor) -> Solution:
        """Nothing moves."""
        return keep(problem, mask)
