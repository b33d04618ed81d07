"""ALPS: layer-wise pruning as an ℓ0-constrained least-squares problem, by ADMM and conjugate gradients.

Source: Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language
Models", arXiv 2406.07831, algorithms 1 and 2. All is done in coordinates where the damped Hessian N has a unit
diagonal: V_ij = W_ij · scale_j.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.layerwise.rule import Budget, Problem, Solution, Statistic
from methods.layerwise.select import lowest
from methods.moments import Eigen, Gram

__all__ = ["ALPS", "admm", "conjugate_gradients"]

_EVERY = 3
"""Iterations between two looks at the support."""
_FIRST = 30
"""Iterations before a nearly settled support ends the loop."""
_SETTLED = 3e-4
_STIRRED = 5e-3
"""Share of the support that must change before ρ grows."""
_SMALLEST, _LARGEST = 1e-6, 1e6
_GRADIENT = 1e-6
"""A residual this small beside the right-hand side's is solved."""


def admm(
    dense: Tensor, eigen: Eigen, budget: Budget, *, rho: float = 0.1, iterations: int = 300
) -> tuple[Tensor, Tensor]:
    """ADMM on min ½|V - dense|²_N with the budget's support: values [rows, columns], and the mask of what goes.

    ``dense`` [rows, columns] float32 in normalised coordinates. Every iteration solves
    B = (dense·N - Y + ρD)(N + ρI)⁻¹, projects D = P(B + Y/ρ) on the support and moves Y by ρ(B - D). ρ grows
    by 1.3, 1.2 or 1.1 with the share of the support that changed in three iterations; where the first ρ holds
    the start fast, all begins again with a fifth of it. Selections are exact, ties by index.
    """
    target = dense @ eigen.normalised
    start = lowest(dense.square(), budget)
    kept = int((~start).sum())
    primal, values, multiplier = dense, dense.masked_fill(start, 0), torch.zeros_like(dense)
    support, moved = start, False
    inverse = eigen.inverse(rho)
    for iteration in range(1, iterations + 1):
        primal = (target - multiplier + rho * values) @ inverse
        free = primal + multiplier / rho
        mask = lowest(free.square(), budget)
        values = free.masked_fill_(mask, 0)
        multiplier += rho * (primal - values)
        if iteration % _EVERY:
            continue
        changed = int((mask ^ support).sum())
        support = mask
        moved = moved or changed / kept > _STIRRED
        if moved and (not changed or (iteration > _FIRST and changed / kept < _SETTLED)):
            break
        if moved:
            rho *= 1.3 if changed / kept > 0.1 else 1.2 if changed / kept > _STIRRED else 1.1
        else:
            rho /= 5
            values, multiplier, support = dense.masked_fill(start, 0), torch.zeros_like(dense), start
        rho = min(max(rho, _SMALLEST), _LARGEST)
        inverse = eigen.inverse(rho)
    mask = lowest(primal.square(), budget)
    return primal.masked_fill(mask, 0), mask


def conjugate_gradients(start: Tensor, dense: Tensor, normalised: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Least squares |V - dense|²_N over V that are zero under ``mask``, from ``start``; all [rows, columns] float32.

    Every row is a system of its own, ``steps`` steps at most. The preconditioner is N's diagonal, which is one.
    """
    values = start.masked_fill(mask, 0)
    residual = ((dense - values) @ normalised).masked_fill_(mask, 0)
    direction = residual.clone()
    old = residual.square().sum(dim=1, keepdim=True)
    enough = (dense @ normalised).square().sum(dim=1, keepdim=True) * _GRADIENT**2
    for _ in range(steps):
        going = old > enough
        if not bool(going.any()):
            break
        image = (direction @ normalised).masked_fill_(mask, 0)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        step = torch.where(going & (curvature > 0), old / curvature, torch.zeros_like(old))
        values += step * direction
        residual -= step * image
        new = residual.square().sum(dim=1, keepdim=True)
        direction = residual + torch.where(going, new / old, torch.zeros_like(old)) * direction
        old = torch.where(going, new, old)
    return values


@dataclass(frozen=True, slots=True)
class ALPS:
    """The rule ``alps``.

    ``percdamp``: damping as a share of the Hessian's mean diagonal; ``rho``: ADMM's first penalty;
    ``iterations`` of ADMM at most; ``steps`` of conjugate gradients on the support found, ten times as many
    where the support is given.
    """

    percdamp: float = 0.01
    rho: float = 0.1
    iterations: int = 300
    steps: int = 10
    name: str = "alps"
    needs: Statistic = Statistic.GRAM

    def solve(self, problem: Problem) -> Solution:
        """Choose the support and solve on it; never worse on the calibration inputs than ADMM's start without update.

        The start keeps the largest |W_ij|·scale_j. Raises HessianError, NonFiniteError.
        """
        eigen, gram = self._eigen(problem)
        dense = _living(problem.weight * eigen.scale, eigen)
        start = lowest(dense.square(), problem.budget)
        if not bool(start.any()) or bool(start.all()):
            return Solution(problem.weight.masked_fill(start, 0), start, eigen)
        values, mask = admm(dense, eigen, problem.budget, rho=self.rho, iterations=self.iterations)
        found = self._solve(problem, eigen, values, mask, self.steps)
        plain = problem.weight.masked_fill(start, 0)
        if gram.energy(problem.weight - found.weight) <= gram.energy(problem.weight - plain):
            return found
        found = self._solve(problem, eigen, dense, start, self.steps)
        better = gram.energy(problem.weight - found.weight) <= gram.energy(problem.weight - plain)
        return found if better else Solution(plain, start, eigen)

    def update(self, problem: Problem, mask: Tensor) -> Solution:
        """Solve on a support that is given. Raises HessianError, NonFiniteError."""
        eigen, _ = self._eigen(problem)
        dense = _living(problem.weight * eigen.scale, eigen)
        return self._solve(problem, eigen, dense, mask, 10 * self.steps)

    def _eigen(self, problem: Problem) -> tuple[Eigen, Gram]:
        if problem.moments is None:
            raise ValueError("alps needs moments of the layer's inputs")
        return problem.moments.eigen(self.percdamp), problem.moments.gram

    def _solve(self, problem: Problem, eigen: Eigen, start: Tensor, mask: Tensor, steps: int) -> Solution:
        dense = _living(problem.weight * eigen.scale, eigen)
        solved = conjugate_gradients(start, dense, eigen.normalised, mask, steps) / eigen.scale
        # a weight without input moves nothing, and is not moved
        weight = torch.where(eigen.dead, problem.weight, solved).masked_fill_(mask, 0)
        if not bool(torch.isfinite(weight).all()):
            where = problem.moments.where if problem.moments is not None else problem.matrix.name
            raise NonFiniteError(
                f"{where}: {problem.matrix.name} became NaN or infinite while pruning; "
                f"raise the damping (--set alps.percdamp={self.percdamp * 10:g})"
            )
        return Solution(weight, mask, eigen)


def _living(dense: Tensor, eigen: Eigen) -> Tensor:
    """Weights without input count as zero, so that they go first."""
    return dense.masked_fill(eigen.dead, 0)
