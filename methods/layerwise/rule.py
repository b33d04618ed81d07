"""What a layer-wise method is made of: a budget per matrix, a problem, a rule that solves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from methods.interface import BlockSource, Calibration, Matrix, Run
from methods.moments import Factor, Gram, factorise
from methods.target import Target

__all__ = ["Allocation", "Budget", "Budgets", "Moments", "Problem", "Rule", "Solution"]


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


class Moments:
    """Statistics of the input that a stage's linears share; one factorisation serves them all."""

    def __init__(self, gram: Gram, where: str) -> None:
        self.gram = gram
        self.where = where
        self._factors: dict[tuple[float, bool], Factor] = {}

    def factor(self, percdamp: float, *, reference: bool = False) -> Factor:
        """The inverse Hessian's factor at this damping. Raises HessianError, NonFiniteError."""
        key = (percdamp, reference)
        if key not in self._factors:
            self.gram.check(self.where)
            hessian = self.gram.hessian() if reference else self.gram.matrix
            self._factors[key] = factorise(hessian, percdamp, reference=reference, where=self.where)
        return self._factors[key]


@dataclass(frozen=True, slots=True)
class Problem:
    """One matrix to prune: ``weight`` [rows, columns] float32 (the rule may overwrite it), its budget, its inputs."""

    block: int
    matrix: Matrix
    weight: Tensor
    budget: Budget
    moments: Moments | None
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class Solution:
    """The pruned weight [rows, columns] float32, the mask of what was removed, and how the Hessian fared."""

    weight: Tensor
    mask: Tensor
    factor: Factor | None = None


class Rule(Protocol):
    """Prunes one matrix. Pure: tensors in, tensors out."""

    @property
    def name(self) -> str:
        """The method's name."""
        ...

    @property
    def needs_moments(self) -> bool:
        """Whether the rule reads statistics of the layer's inputs."""
        ...

    def solve(self, problem: Problem) -> Solution:
        """Remove what the budget says, and update what stays."""
        ...


class Allocation(Protocol):
    """Shares a target out over all matrices of a model.

    One that cannot share out every target has ``refuse(shape, target)`` too, as a pruner has.
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
        """An exact budget for every (block, matrix name)."""
        ...
