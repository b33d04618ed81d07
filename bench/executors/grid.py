"""What every executor does around its cells: one holder, one writer, refusals recorded, progress, a clean end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.plan.cells import Cell, Plan
from bench.plan.observer import GridObserver
from bench.results.segments import Store
from bench.run.attempt import ended_badly
from bench.run.cell import CellRunner, Ended
from bench.run.live import LiveObserver, termination
from bench.run.results import StoreResults

__all__ = ["Grid", "Outcome", "running"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many cells ended how."""

    done: int = 0
    cached: int = 0
    refused: int = 0
    failed: int = 0
    interrupted: bool = False


@dataclass(slots=True)
class Grid:
    """A plan in progress; ``results`` is the one store, ``runner`` runs or ends cells in this process."""

    plan: Plan
    live: LiveObserver
    results: StoreResults
    runner: CellRunner
    outcome: Outcome = field(default_factory=Outcome)

    def ended(self, index: int, cell: Cell, ended: Ended) -> None:
        """Count a cell's end, and tell who watches."""
        count = getattr(self.outcome, ended.status) + 1
        self.outcome = replace(self.outcome, **{ended.status: count})
        if ended.status == "cached":
            self.live.cached(index, cell)
        else:
            self.live.done(index, cell, ended.status, ended.summary)

    def fail(self, index: int, cell: Cell, reason: str, status: str = "failed") -> None:
        """End a cell that this process did not run, or that did not come back. Raises MachineError."""
        self.ended(index, cell, ended_badly(self.runner, cell, status, reason))


@contextmanager
def running(plan: Plan, out: Path, observer: GridObserver, command: tuple[str, ...]) -> Iterator[Grid]:
    """A grid in the folder ``out``, which the caller holds; what the plan refuses is recorded first.

    ``command`` goes into the records. Ctrl-C or SIGTERM inside ends it as interrupted, and the same command
    goes on later. Raises MachineError and StoreError where results cannot be written.
    """
    with termination(), Store(out, create=True) as store:
        live = LiveObserver(out, observer, plan.settings.command)
        results = StoreResults(out, store)
        grid = Grid(plan, live, results, CellRunner(out, results, live, command))
        state = "interrupted"
        try:
            live.plan([*plan.cells, *(refusal.cell for refusal in plan.refusals)])
            for index, refusal in enumerate(plan.refusals, start=len(plan.cells)):
                grid.fail(index, refusal.cell, refusal.reason, "refused")
            yield grid
            state = "finished"
            if not grid.outcome.failed:
                grid.runner.clear()
        except KeyboardInterrupt:
            grid.outcome = replace(grid.outcome, interrupted=True)
        finally:
            live.finish(state)
            live.close()
