"""The in-process executor: every cell of a plan, one after another, whatever happens to some of them."""

from __future__ import annotations

from pathlib import Path

from bench.executors.grid import Outcome, running
from bench.plan.cells import Plan
from bench.plan.observer import GridObserver
from bench.run.attempt import attempt
from bench.run.live import held

__all__ = ["Outcome", "execute"]


def execute(
    plan: Plan, out: Path, observer: GridObserver, *, force: bool = False, save: tuple[str, ...] = ()
) -> Outcome:
    """Run a plan into ``out``, pruned models kept in the forms ``save``; what is stored already is not done again.

    A cell that fails or is refused becomes a record and the grid goes on; Ctrl-C or SIGTERM leaves a state
    from which the same command goes on. Raises UserError where another run holds ``out``, MachineError and
    StoreError where results cannot be written.
    """
    with held(out), running(plan, out, observer, plan.settings.command) as grid:
        for index, cell in enumerate(plan.cells):
            grid.live.cell(index, cell)
            grid.ended(index, cell, attempt(grid.runner, cell, force=force, save=save, name=str(index)))
    return grid.outcome
