"""Plug-ins that each break one clause of the contract, beside one that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from methods.allocate.uniform import Uniform
from methods.interface import Block, PruneReport
from methods.layerwise.magnitude import Magnitude
from methods.layerwise.pruner import layerwise
from methods.layerwise.rule import Budget, Problem, Solution, Statistic, keep
from methods.layerwise.select import lowest
from methods.registry import AllocationEntry, Method, Parameter, RefinementEntry


@dataclass(frozen=True)
class Honest:
    power: float = 1.0
    name: str = "honest"
    needs: Statistic = Statistic.NORMS

    def solve(self, problem: Problem) -> Solution:
        return self.update(problem, lowest(self.scores(problem), problem.budget))

    def scores(self, problem: Problem) -> Tensor:
        assert problem.moments is not None
        return problem.weight.abs() * problem.moments.norms.float()

    def update(self, problem: Problem, mask: Tensor) -> Solution:
        return keep(problem, mask)


class Greedy(Honest):
    """Removes one weight more than asked for."""

    def solve(self, problem: Problem) -> Solution:
        budget = replace(problem.budget, remove=problem.budget.remove + 1)
        return keep(problem, lowest(self.scores(problem), budget))


class Threshold(Honest):
    """Cuts at a threshold, ties and all."""

    def solve(self, problem: Problem) -> Solution:
        scores = self.scores(problem)
        if not problem.budget.remove:
            return keep(problem, torch.zeros_like(scores, dtype=torch.bool))
        return keep(problem, scores <= scores.flatten().kthvalue(problem.budget.remove).values)


class Gambler(Honest):
    """Draws from the global generator."""

    def scores(self, problem: Problem) -> Tensor:
        return torch.rand(problem.weight.shape)


@dataclass(frozen=True)
class Scribbler(Honest):
    """Writes into the moments that its neighbours read too."""

    needs: Statistic = Statistic.GRAM

    def scores(self, problem: Problem) -> Tensor:
        assert problem.moments is not None
        return problem.weight.abs() * problem.moments.gram.matrix.mul_(1.5).diagonal().sqrt()


class Counter(Honest):
    """Treats every other matrix it sees differently."""

    seen = 0

    def scores(self, problem: Problem) -> Tensor:
        type(self).seen += 1
        return super().scores(problem) * (1 if self.seen % 2 else -1)


@dataclass(frozen=True)
class Careless(Honest):
    """Breaks with a traceback on a parameter it did not check."""

    order: str = "abs"

    def scores(self, problem: Problem) -> Tensor:
        return {"abs": torch.abs, "square": torch.square}[self.order](problem.weight)


@dataclass(frozen=True)
class Whole:
    """A pruner of its own kind: magnitude, honestly."""

    inner: Any = field(default_factory=lambda: layerwise(Magnitude()))
    needs_calibration: bool = False

    def refuse(self, shape: Any, target: Any) -> str | None:
        reason: str | None = self.inner.refuse(shape, target)
        return reason

    def prune(self, source: Any, calibration: Any, target: Any, sink: Any, run: Any) -> PruneReport:
        report: PruneReport = self.inner.prune(source, calibration, target, sink, run)
        return report


class Refuser(Whole):
    """Raises where it should answer."""

    def refuse(self, shape: Any, target: Any) -> str | None:
        if target.kind == "nm" and shape.width % target.group:
            raise ValueError("bad width")
        return super().refuse(shape, target)


class Spoiler(Whole):
    """Writes into the checkpoint's own tensors."""

    def prune(self, source: Any, calibration: Any, target: Any, sink: Any, run: Any) -> PruneReport:
        report = super().prune(source, calibration, target, sink, run)
        for tensor in source.raw_block(0).values():
            tensor.mul_(2)
        return report


class Widener(Whole):
    """Stores float32 whatever it was given."""

    def prune(self, source: Any, calibration: Any, target: Any, sink: Any, run: Any) -> PruneReport:
        class Wide:
            def put(self, index: int, block: Block) -> None:
                sink.put(index, {name: tensor.float() for name, tensor in block.items()})

            def __contains__(self, index: int) -> bool:
                return index in sink

        return super().prune(source, calibration, target, Wide(), run)


class Forgetful(Whole):
    """Takes whatever lies in the work folder for its own, of whatever run."""

    def prune(self, source: Any, calibration: Any, target: Any, sink: Any, run: Any) -> PruneReport:
        return super().prune(source, calibration, target, sink, replace(run, identity="always"))


@dataclass(frozen=True)
class Lavish:
    """An allocation that asks every matrix for too much."""

    name: str = "lavish"
    needs_calibration: bool = False
    patterns: bool = False

    def __call__(self, source: Any, calibration: Any, target: Any, run: Any) -> Mapping[Any, Budget]:
        budgets = Uniform()(source, calibration, target, run)
        return {place: replace(budget, remove=budget.remove + 1) for place, budget in budgets.items()}


@dataclass(frozen=True)
class Mender:
    """A refinement that takes a weight back."""

    name: str = "mender"
    needs: Statistic = Statistic.NONE

    def __call__(self, problem: Problem, mask: Tensor) -> Tensor:
        fewer = mask.clone()
        fewer.view(-1)[mask.view(-1).nonzero()[:1, 0]] = False
        return fewer


def _method(made: type, **more: Any) -> Method:
    name = made.__name__.lower()
    layer = issubclass(made, Honest)
    return Method(
        name,
        "for tests",
        "",
        f"{__name__}:{made.__name__}",
        layerwise=layer,
        calibrated=layer,
        origin="bad",
        **more,
    )


_POWER = {"power": Parameter(float, 1.0, "an exponent")}
honest = _method(Honest, parameters=_POWER)
greedy = _method(Greedy)
threshold = _method(Threshold)
gambler = _method(Gambler)
scribbler = _method(Scribbler)
counter = _method(Counter)
careless = _method(Careless, parameters={"order": Parameter(str, "abs", "abs or square")})
whole = _method(Whole)
refuser = _method(Refuser)
spoiler = _method(Spoiler)
widener = _method(Widener)
forgetful = _method(Forgetful)
lavish = AllocationEntry("lavish", "for tests", "", f"{__name__}:Lavish", calibrated=False, origin="bad")
mender = RefinementEntry("mender", "for tests", "", f"{__name__}:Mender", calibrated=False, origin="bad")
