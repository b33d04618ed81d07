"""The same share of every matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from methods.interface import BlockSource, Calibration, Run
from methods.layerwise.rule import Budget
from methods.layerwise.select import round_half_up
from methods.target import Target

__all__ = ["Uniform"]


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each matrix of N weights loses round(share · N), or keeps N of every M."""

    name: str = "uniform"
    needs_calibration: bool = False
    patterns: bool = True
    selects: bool = True

    def __call__(
        self, source: BlockSource, calibration: Calibration | None, target: Target, run: Run
    ) -> Mapping[tuple[int, str], Budget]:
        """One budget per selected (block, matrix name)."""
        budgets: dict[tuple[int, str], Budget] = {}
        for index, matrix in run.selected(source):
            if target.kind == "nm":
                budget = Budget(keep=target.keep, group=target.group)
            else:
                budget = Budget(remove=round_half_up(target.amount * matrix.size))
            budgets[index, matrix.name] = budget
        return budgets
