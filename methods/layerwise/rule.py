"""What a layer-wise method is made of: a budget per matrix, a problem, a rule that solves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from methods.interface import BlockSource, Calibration, Matrix, Run
from methods.moments import Eigen, Factor, Moments, Statistic
from methods.quantise.grid import MatrixGrid
from methods.target import Target

__all__ = [
    "Allocation",
    "Budget",
    "Budgets",
    "Moments",
    "Problem",
    "Refinement",
    "Rule",
    "Solution",
    "Statistic",
    "Update",
    "keep",
]


@dataclass(frozen=True, slots=True)
class Budget:
    """What one matrix loses: exactly ``remove`` weights, or all but ``keep`` of every ``group``."""

    remove: int = 0
    keep: int = 0
    group: int = 0

    def count(self, matrix: Matrix) -> int:
        """Weights removed from this matrix."""
        return matrix.size // self.group * (self.group - self.keep) if self.group else self.remove


class Budgets(dict[tuple[int, str], Budget]):
    """A budget for every (block, matrix name).

    ``earlier``: seconds of an allocation's work that an earlier cell did for this one too; they count as this
    method's all the same.
    """

    earlier: float = 0.0


@dataclass(frozen=True, slots=True)
class Problem:
    """One matrix to prune: ``weight`` [rows, columns] float32 (the rule may overwrite it), its budget, its inputs.

    ``bits``: width of the grid that what stays is rounded to, or None; ``stored``: the dtype it will be kept in.
    """

    block: int
    matrix: Matrix
    weight: Tensor
    budget: Budget
    moments: Moments | None
    generator: torch.Generator
    bits: int | None = None
    stored: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True)
class Solution:
    """The pruned weight [rows, columns] float32, the mask of what was removed, and how the Hessian fared.

    ``grid``: what every weight lies on, where the rule quantised.
    """

    weight: Tensor
    mask: Tensor
    factor: Factor | Eigen | None = None
    grid: MatrixGrid | None = None


class Rule(Protocol):
    """Prunes one matrix: a saliency chooses, an update betters what stays. Pure: tensors in, tensors out.

    A rule that a refinement may follow has ``update(problem, mask)`` too, an ``Update``. One that rounds to
    ``problem.bits`` says so by ``quantises = True`` and gives the solution's grid. One that cannot reach every
    target has ``refuse(shape, target)``, as a pruner has.
    """

    @property
    def name(self) -> str:
        """The method's name."""
        ...

    @property
    def needs(self) -> Statistic:
        """What the rule reads of the layer's inputs; nothing else is gathered."""
        ...

    def solve(self, problem: Problem) -> Solution:
        """Remove what the budget says, and update what stays."""
        ...


class Update(Protocol):
    """The weights that stay under a fixed mask, made from the dense weight."""

    def __call__(self, problem: Problem, mask: Tensor) -> Solution:
        """Solve for the kept weights; ``mask`` [rows, columns, bool] marks what is removed."""
        ...


def keep(problem: Problem, mask: Tensor) -> Solution:
    """The update that moves nothing: what is masked is zero, the rest stays as it was."""
    return Solution(problem.weight.masked_fill(mask, 0), mask)


class Refinement(Protocol):
    """Betters a mask before the update, by exchange: every count of the budget stays as it was."""

    @property
    def name(self) -> str:
        """As spelled behind ``+``."""
        ...

    @property
    def needs(self) -> Statistic:
        """What it reads of the layer's inputs."""
        ...

    def __call__(self, problem: Problem, mask: Tensor) -> Tensor:
        """The mask [rows, columns, bool] to use instead of ``mask``; ``problem.weight`` is dense, only read."""
        ...


class Allocation(Protocol):
    """Shares a target out over all matrices of a model.

    One that cannot share out every target has ``refuse(shape, target)`` too, as a pruner has; one that keeps to
    ``run.selected(source)`` says so by ``selects = True``.
    """

    @property
    def name(self) -> str:
        """As spelled behind ``@``."""
        ...

    @property
    def needs_calibration(self) -> bool:
        """Whether budgets depend on calibration text."""
        ...

    @property
    def patterns(self) -> bool:
        """Whether it can spread an N:M target; others leave such targets to ``uniform``."""
        ...

    def __call__(
        self, source: BlockSource, calibration: Calibration | None, target: Target, run: Run
    ) -> Mapping[tuple[int, str], Budget]:
        """An exact budget for every selected (block, matrix name); the target is a share of these."""
        ...
