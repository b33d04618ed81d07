"""One cell, whatever happens to it: a refusal or a failure becomes a record with a reason of one line."""

from __future__ import annotations

import os
import traceback

from bench.plan.cells import Cell
from bench.run.cell import CellRunner, Ended
from methods.errors import (
    MachineError,
    PruneBenchError,
    StoreError,
    UnsupportedModel,
    UnsupportedTarget,
    reason_of,
)

__all__ = ["attempt", "ended_badly"]


def attempt(runner: CellRunner, cell: Cell, *, force: bool, save: tuple[str, ...], name: str) -> Ended:
    """Run a cell with its threads set. ``name`` tells the traceback of an unforeseen failure from others.

    Raises StoreError and MachineError where results cannot be kept, KeyboardInterrupt.
    """
    import torch

    torch.set_num_threads(cell.threads)
    try:
        return runner.run(cell, force=force, save=save)
    except StoreError:
        raise
    except PruneBenchError as error:
        status = "refused" if isinstance(error, UnsupportedModel | UnsupportedTarget) else "failed"
        reason = str(error)
    except (MemoryError, torch.OutOfMemoryError) as error:
        mend = "use a smaller --hidden-budget, fewer samples or another device"
        status, reason = "failed", f"out of memory on {cell.device} ({reason_of(error)}); {mend}"
    except Exception as error:  # one broken cell must not take the grid down; the traceback is kept
        file = f"{cell.model.rpartition('/')[2]}-{cell.method}-{os.getpid()}-{name}.txt"
        path = runner.results.keep_traceback(file, traceback.format_exc())
        status, reason = "failed", f"{type(error).__name__}: {reason_of(error)}; traceback in {path}"
    return ended_badly(runner, cell, status, reason)


def ended_badly(runner: CellRunner, cell: Cell, status: str, reason: str) -> Ended:
    """Record a refusal or a failure. Raises MachineError where that cannot be stored either."""
    try:
        runner.ended_badly(cell, status, reason)
    except MachineError as error:
        raise MachineError(f"{cell.name} failed ({reason}), and that cannot be stored: {error}") from error
    return Ended(status, reason)
