"""Magnitude pruning: the smallest weights go, nothing else moves (Han et al., arXiv 1506.02626)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.layerwise.rule import Budget, Problem, Solution, Statistic, keep
from methods.layerwise.select import at_or_below, lowest

__all__ = ["Magnitude", "magnitude_mask"]


def magnitude_mask(weight: Tensor, budget: Budget, *, reference: bool = False) -> Tensor:
    """Mask [rows, columns, bool] of the smallest |w|, compared in float32.

    ``reference`` follows SparseGPT's ``--gmp``: everything at or below the element ⌊numel · sparsity⌋ of the
    sorted magnitudes, so at least one weight more than asked (unstructured only; N:M has one rule).
    """
    scores = weight.abs().float()
    if reference and not budget.group:
        return at_or_below(scores, budget.remove)
    return lowest(scores, budget)


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The rule ``magnitude``: score |w|, no update."""

    reference: bool = False
    name: str = "magnitude"
    needs: Statistic = Statistic.NONE

    def solve(self, problem: Problem) -> Solution:
        """Zero the smallest weights of the matrix."""
        mask = magnitude_mask(problem.weight, problem.budget, reference=self.reference)
        return keep(problem, mask)

    def update(self, problem: Problem, mask: Tensor) -> Solution:
        """Nothing moves."""
        return keep(problem, mask)
