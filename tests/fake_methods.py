"""An allocation, a refinement and two shorthands beside ours, for tests of what puts them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from methods import catalogue, registry
from methods.allocate.uniform import Uniform
from methods.entries import AllocationEntry, Parameter, RefinementEntry, Shorthand
from methods.layerwise.rule import Budget, Problem, Statistic


@dataclass(frozen=True)
class Rotate:
    """A refinement that moves every row's mask by some columns: exact, and easy to foresee."""

    by: int = 1
    lambda_: float = 0.0
    name: str = "rotate"
    needs: Statistic = Statistic.MEANS

    def __call__(self, problem: Problem, mask: Tensor) -> Tensor:
        return mask.roll(self.by, dims=1)


@dataclass(frozen=True)
class Skewed:
    """An allocation with a parameter; spreads like uniform."""

    lean: float = 0.0
    name: str = "skewed"
    needs_calibration: bool = True
    patterns: bool = False

    def __call__(
        self, source: Any, calibration: Any, target: Any, run: Any
    ) -> Mapping[tuple[int, str], Budget]:
        return Uniform()(source, calibration, target, run)


def add_to_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay them into the catalogue; whoever calls this clears ``registry._table`` afterwards."""
    skewed = AllocationEntry(
        name="skewed",
        summary="leans",
        paper="",
        factory="fake_methods:Skewed",
        parameters={"lean": Parameter(float, 0.0, "how far")},
    )
    rotate = RefinementEntry(
        name="rotate",
        summary="moves the mask",
        paper="",
        factory="fake_methods:Rotate",
        parameters={"by": Parameter(int, 1, "columns"), "lambda": Parameter(float, 0.0, "a word of Python")},
    )
    short = (
        Shorthand("skewed", "leaning", "sparsegpt@skewed", {"blocksize": 32, "skewed.lean": 0.5}),
        Shorthand("turned", "turning", "magnitude+rotate", {"rotate.by": 2}),
    )
    monkeypatch.setattr(catalogue, "ALLOCATIONS", (*catalogue.ALLOCATIONS, skewed))
    monkeypatch.setattr(catalogue, "REFINEMENTS", (*catalogue.REFINEMENTS, rotate))
    monkeypatch.setattr(catalogue, "SHORTHANDS", (*catalogue.SHORTHANDS, *short))
    registry._table.cache_clear()
