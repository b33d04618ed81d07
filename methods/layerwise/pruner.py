"""Makes a pruner out of a layer rule, an update, an allocation and refinements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import ClassVar

import torch
from torch import Tensor

from methods.allocate.uniform import Uniform
from methods.errors import UnsupportedTarget, UserError
from methods.families import family_of
from methods.interface import BlockSink, BlockSource, Calibration, Matrix, ModelShape, PruneReport, Run
from methods.layerwise.reach import SIZES, Inventory, sized
from methods.layerwise.rule import Allocation, Moments, Problem, Refinement, Rule, Solution, Statistic, Update
from methods.selection import EVERYTHING, Selection
from methods.stream.stopwatch import Stopwatch
from methods.stream.walk import SCHEDULES, walk
from methods.target import Target

__all__ = ["LayerwisePruner", "layerwise"]


@dataclass(frozen=True, slots=True)
class LayerwisePruner:
    """Prunes every linear of every block by ``rule``, with budgets from ``allocation``.

    With refinements, or an ``update`` of its own, the rule only chooses: its mask goes through the
    refinements in turn, and the update makes the kept weights from the dense ones. Matrices outside
    ``layers`` stay as they are, and the target is a share of those inside.
    """

    rule: Rule
    allocation: Allocation
    update: Update | None = None
    refinements: tuple[Refinement, ...] = ()
    layers: Selection = EVERYTHING
    shares_calibration: ClassVar[bool] = True
    """Whether ``run.workers`` are made use of."""

    @property
    def needs(self) -> Statistic:
        """What is gathered of every layer's inputs."""
        return reduce(or_, (refinement.needs for refinement in self.refinements), self.rule.needs)

    @property
    def needs_calibration(self) -> bool:
        """Whether results depend on calibration text (held-out errors do not count)."""
        return bool(self.needs) or self.allocation.needs_calibration

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """The reason this target cannot be reached on this model, or None."""
        if shape.slices is not None:
            return f"{self.rule.name} does not prune sliced models; prune the model it was made from"
        if target.kind not in ("unstructured", "nm", *SIZES):
            return f"{self.rule.name} removes weights in place and cannot reach {target}; use a share (50%) or N:M (2:4)"
        if target.bits and not self._quantises():
            return f"{self.rule.name} does not quantise; ask for {str(target).split('+')[0]} without +{target.bits}bit"
        matrices = family_of(shape).matrices(shape)
        if self.layers:
            if reason := self.layers.refuse(matrices, shape.blocks):
                return reason
            if not getattr(self.allocation, "selects", False):
                return f"@{self.allocation.name} spreads its budget over every matrix; leave out --layers {self.layers}"
        if target.kind in SIZES:
            try:
                target = sized(target, Inventory.of_shape(shape, self.layers))
            except UnsupportedTarget as error:
                return str(error)
        if target.kind == "nm":
            if not self.allocation.patterns:
                return f"{target} fixes the share of every matrix, which leaves nothing to @{self.allocation.name}"
            for _, matrix in self.layers.of(matrices, shape.blocks):
                if matrix.columns % target.group:
                    return (
                        f"{target} needs widths divisible by {target.group}; "
                        f"{matrix.name} has {matrix.columns} input columns"
                    )
        for part in (self.rule, self.allocation):
            refuse = getattr(part, "refuse", None)
            if refuse is not None and (reason := refuse(shape, target)):
                return str(reason)
        return None

    def prune(
        self, source: BlockSource, calibration: Calibration | None, target: Target, sink: BlockSink, run: Run
    ) -> PruneReport:
        """Prune every block. Raises UserError, NonFiniteError, HessianError, CheckpointError, MachineError."""
        if run.schedule not in SCHEDULES:
            raise UserError(f"schedule '{run.schedule}' is unknown; use {' or '.join(SCHEDULES)}")
        if calibration is None:
            raise UserError(f"{self.rule.name} needs calibration or held-out windows")
        run = replace(run, layers=self.layers)
        clock = Stopwatch(source.device)
        if target.kind in SIZES:
            target = sized(target, Inventory.of_source(source, self.layers))
        with clock("allocate"):
            budgets = self.allocation(source, calibration, target, run)
        clock.seconds["allocate"] += getattr(budgets, "earlier", 0.0)

        def solve(
            index: int, matrix: Matrix, weight: Tensor, moments: Moments | None, stored: torch.dtype
        ) -> Solution:
            budget, generator = budgets[index, matrix.name], run.generator(index, matrix.name)
            return self.solve(Problem(index, matrix, weight, budget, moments, generator, target.bits, stored))

        report = walk(source, calibration, solve, sink, run, needs=self.needs)
        return replace(report, seconds={**report.seconds, **clock.seconds})

    def _quantises(self) -> bool:
        """Whether what makes the kept weights rounds them to a grid too."""
        maker = self.rule if self.update is None else getattr(self.update, "__self__", None)
        return bool(getattr(maker, "quantises", False))

    def solve(self, problem: Problem) -> Solution:
        """One matrix: choose, refine, update. Raises NonFiniteError, HessianError, UserError."""
        if self.update is None:
            return self.rule.solve(problem)
        chosen = replace(problem, weight=problem.weight.clone())  # the rule may overwrite what it is given
        mask = self.rule.solve(chosen).mask
        del chosen
        for refinement in self.refinements:
            refined = refinement(problem, mask)
            _check_counts(refinement.name, problem, mask, refined)
            mask = refined
        return self.update(problem, mask)


def _check_counts(name: str, problem: Problem, before: Tensor, after: Tensor) -> None:
    """A refinement exchanges; it may not change how much goes, nor the counts of an N:M budget's groups."""
    group = problem.budget.group
    same = int(before.sum()) == int(after.sum())
    if same and group:
        same = torch.equal(before.reshape(-1, group).sum(dim=1), after.reshape(-1, group).sum(dim=1))
    if not same:
        raise UserError(
            f"refinement '{name}' changed how many weights of block {problem.block} {problem.matrix.name} go, "
            f"from {int(before.sum())} to {int(after.sum())}; a refinement may only exchange them"
        )


def layerwise(
    rule: Rule,
    update: Update | None = None,
    allocate: Allocation | None = None,
    refine: Sequence[Refinement] = (),
    layers: Selection = EVERYTHING,
) -> LayerwisePruner:
    """A pruner from a layer rule; budgets are uniform unless an allocation is given, ``layers`` all.

    ``update`` replaces the rule's own, as in Wanda's choice with SparseGPT's update:
    ``layerwise(Wanda(), SparseGPT().update)``. Raises UserError where refinements follow a rule that has no
    update for a fixed mask.
    """
    if refine and update is None:
        update = getattr(rule, "update", None)
        if update is None:
            raise UserError(
                f"method '{rule.name}' has no update for a fixed mask, so '+{refine[0].name}' cannot follow it; "
                "leave it out, or give the rule update(problem, mask) (methods.layerwise.rule.keep moves nothing)"
            )
    return LayerwisePruner(rule, allocate or Uniform(), update, tuple(refine), layers)
