"""Makes a pruner out of a layer rule and an allocation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from methods.allocate.uniform import Uniform
from methods.errors import UnsupportedTarget, UserError
from methods.families import family_of
from methods.interface import BlockSink, BlockSource, Calibration, Matrix, ModelShape, PruneReport, Run
from methods.layerwise.reach import SIZES, Inventory, sized
from methods.layerwise.rule import Allocation, Moments, Problem, Rule, Solution
from methods.stream.stopwatch import Stopwatch
from methods.stream.walk import SCHEDULES, walk
from methods.target import Target

__all__ = ["LayerwisePruner", "layerwise"]


@dataclass(frozen=True, slots=True)
class LayerwisePruner:
    """Prunes every linear of every block by ``rule``, with budgets from ``allocation``."""

    rule: Rule
    allocation: Allocation

    @property
    def needs_calibration(self) -> bool:
        """Whether results depend on calibration text (held-out errors do not count)."""
        return self.rule.needs_moments or self.allocation.needs_calibration

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """The reason this target cannot be reached on this model, or None."""
        if shape.slices is not None:
            return f"{self.rule.name} does not prune sliced models; prune the model it was made from"
        if target.kind in SIZES:
            try:
                sized(target, Inventory.of_shape(shape))
            except UnsupportedTarget as error:
                return str(error)
        elif target.kind not in ("unstructured", "nm"):
            return f"{self.rule.name} removes weights in place and cannot reach {target}; use a share (50%) or N:M (2:4)"
        if target.bits:
            return f"{self.rule.name} does not quantise; ask for {str(target).split('+')[0]} without +{target.bits}bit"
        if target.kind == "nm":
            if self.allocation.name != "uniform":
                return f"{target} fixes the share of every matrix, which leaves nothing to @{self.allocation.name}"
            for matrix in family_of(shape).matrices(shape):
                if matrix.columns % target.group:
                    return (
                        f"{target} needs widths divisible by {target.group}; "
                        f"{matrix.name} has {matrix.columns} input columns"
                    )
        return None

    def prune(
        self, source: BlockSource, calibration: Calibration | None, target: Target, sink: BlockSink, run: Run
    ) -> PruneReport:
        """Prune every block. Raises UserError, NonFiniteError, HessianError, CheckpointError, MachineError."""
        if run.schedule not in SCHEDULES:
            raise UserError(f"schedule '{run.schedule}' is unknown; use {' or '.join(SCHEDULES)}")
        if calibration is None:
            raise UserError(f"{self.rule.name} needs calibration or held-out windows")
        clock = Stopwatch(source.device)
        if target.kind in SIZES:
            target = sized(target, Inventory.of_source(source))
        with clock("allocate"):
            budgets = self.allocation(source, calibration, target, run)

        def solve(index: int, matrix: Matrix, weight: Tensor, moments: Moments | None) -> Solution:
            budget = budgets[index, matrix.name]
            return self.rule.solve(
                Problem(index, matrix, weight, budget, moments, run.generator(index, matrix.name))
            )

        report = walk(source, calibration, solve, sink, run, needs_moments=self.rule.needs_moments)
        return replace(report, seconds={**report.seconds, **clock.seconds})


def layerwise(rule: Rule, allocation: Allocation | None = None) -> LayerwisePruner:
    """A pruner from a layer rule; budgets are uniform unless an allocation is given."""
    return LayerwisePruner(rule, allocation or Uniform())
