"""Shares looked up in a level database: the least sum of relative layer errors under the budget.

The idea of a database of every layer's results at several levels is that of Frantar and Alistarh, "SPDY", arXiv
2201.13096; here curves are made convex, so that taking the cheapest step first is the optimum.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from methods import registry
from methods.allocate.database import Database, build, key_of, load, path_of, save
from methods.allocate.shares import MOST
from methods.errors import UserError
from methods.interface import BlockSource, Calibration, ModelShape, Run
from methods.layerwise.rule import Budget, Budgets
from methods.layerwise.select import round_half_up
from methods.target import Target

__all__ = ["Levels", "cheapest_counts", "convex", "grid"]

Curve = Sequence[tuple[int, float]]
"""(weights removed, error) of one matrix, ascending, from (0, 0)."""


def grid(steps: int) -> list[Fraction]:
    """Shares 1/steps, 2/steps, ... below 0.95, and 0.95 itself."""
    return [*(Fraction(n, steps) for n in range(1, steps) if Fraction(n, steps) < MOST), MOST]


def convex(curve: Curve) -> list[tuple[int, float]]:
    """The lower convex hull of a curve: its points at which the error per weight does not fall again."""
    hull: list[tuple[int, float]] = []
    for count, error in curve:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (count, error)):
            hull.pop()
        if hull and hull[-1][0] == count:
            continue
        hull.append((count, error))
    return hull


def _slope(start: tuple[int, float], stop: tuple[int, float]) -> float:
    return (stop[1] - start[1]) / (stop[0] - start[0])


def cheapest_counts(curves: Sequence[Curve], total: int) -> list[int]:
    """Weights to remove of every matrix, ``total`` in all, such that the sum of their convex curves is least.

    Steps of all hulls are taken by rising error per weight, equal ones by matrix; the last is taken in part,
    so at most one matrix ends between two points of its hull. ``total`` may not exceed what the curves reach.
    """
    steps = []
    for unit, curve in enumerate(curves):
        hull = convex(curve)
        steps += [(_slope(start, stop), unit, stop[0] - start[0]) for start, stop in itertools.pairwise(hull)]
    removed = [0] * len(curves)
    left = total
    for _, unit, size in sorted(steps):
        taken = min(left, size)
        removed[unit] += taken
        left -= taken
    return removed


@dataclass(frozen=True, slots=True)
class Levels:
    """The allocation ``levels``.

    ``rule``: whose errors the database holds, with its default parameters, whichever rule prunes in the end;
    ``steps``: levels are its multiples of 1/steps, up to 95 %. The database lies in the run's folder, and
    serves every target. Its errors are those of dense inputs, each matrix pruned alone.
    """

    rule: str = "sparsegpt"
    steps: int = 10
    name: str = "levels"
    needs_calibration: bool = True
    patterns: bool = False
    selects: bool = True

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """Why this target cannot be shared out, or None."""
        if target.kind == "unstructured" and target.amount > MOST:
            return (
                f"@levels leaves every matrix {float(1 - MOST):.0%} of its weights and cannot reach {target}"
            )
        return None

    def __call__(
        self, source: BlockSource, calibration: Calibration | None, target: Target, run: Run
    ) -> Mapping[tuple[int, str], Budget]:
        """One budget per selected (block, matrix name). Raises UserError, HessianError, NonFiniteError, MachineError."""
        if calibration is None or not len(calibration.tokens):
            raise UserError("@levels needs calibration windows; this run draws none")
        budgets = Budgets()
        database, budgets.earlier = self._database(source, calibration, run)
        selected = {(index, matrix.name) for index, matrix in run.selected(source)}
        kept = {key: errors for key, errors in database.errors.items() if key in selected}
        sizes = {matrix.name: matrix.size for matrix in source.family.matrices(source.shape)}
        levels = [Fraction(level) for level in database.key.levels]
        curves = [
            [
                (0, 0.0),
                *(
                    (round_half_up(level * sizes[name]), error)
                    for level, error in zip(levels, errors, strict=True)
                ),
            ]
            for (_, name), errors in kept.items()
        ]
        total = sum(round_half_up(target.amount * sizes[name]) for _, name in kept)
        most = sum(curve[-1][0] for curve in curves)
        removed = cheapest_counts(curves, min(total, most))
        for unit in range(
            total - min(total, most)
        ):  # rounding may leave 95 % of every matrix a few weights short
            removed[unit] += 1
        budgets.update({key: Budget(remove=count) for key, count in zip(kept, removed, strict=True)})
        return budgets

    def _database(self, source: BlockSource, calibration: Calibration, run: Run) -> tuple[Database, float]:
        """The database, and the seconds that another cell of this run spent on it."""
        rule = registry.rule(self.rule)
        key = key_of(source, calibration.tokens, rule, grid(self.steps), run)
        path = path_of(run.shared, key) if run.shared is not None and run.model else None
        if path is not None and path.exists():
            with contextlib.suppress(UserError):  # damaged: computed again, and written over
                found = load(path, key, source)
                return found, found.seconds
        made = build(source, calibration.tokens, rule, key, run)
        if path is not None:
            save(path, made)
        return made, 0.0
