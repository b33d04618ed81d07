"""The in-process executor: every cell of a plan, one after another, whatever happens to some of them."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.plan.cells import Cell, Plan
from bench.plan.observer import GridObserver
from bench.results.segments import Store
from bench.run.cell import CellRunner
from bench.run.live import LiveObserver, held
from methods.errors import MachineError, PruneBenchError, StoreError, UnsupportedModel, UnsupportedTarget

__all__ = ["Outcome", "execute", "termination"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many cells ended how."""

    done: int = 0
    cached: int = 0
    refused: int = 0
    failed: int = 0
    interrupted: bool = False


def execute(
    plan: Plan, out: Path, observer: GridObserver, *, force: bool = False, save: tuple[str, ...] = ()
) -> Outcome:
    """Run a plan into ``out``, pruned models kept in the forms ``save``; what is stored already is not done again.

    A cell that fails or is refused becomes a record and the grid goes on; Ctrl-C or SIGTERM leaves a state
    from which the same command goes on. Raises UserError where another run holds ``out``, MachineError and
    StoreError where results cannot be written.
    """
    with held(out), termination(), Store(out, create=True) as store:
        live = LiveObserver(out, observer, plan.settings.command)
        runner = CellRunner(out, store, live, plan.settings.command)
        counts = dict.fromkeys(("done", "cached", "refused", "failed"), 0)
        state = "interrupted"
        try:
            live.plan([*plan.cells, *(refusal.cell for refusal in plan.refusals)])
            for index, refusal in enumerate(plan.refusals, start=len(plan.cells)):
                runner.ended_badly(refusal.cell, "refused", refusal.reason)
                live.done(index, refusal.cell, "refused", refusal.reason)
                counts["refused"] += 1
            for index, cell in enumerate(plan.cells):
                live.cell(index, cell)
                counts[_run(runner, live, index, cell, force=force, save=save)] += 1
            state = "finished"
            if not counts["failed"]:
                runner.clear()
        except KeyboardInterrupt:
            pass
        finally:
            live.finish(state)
            live.close()
    return Outcome(**counts, interrupted=state == "interrupted")


def _run(
    runner: CellRunner, live: LiveObserver, index: int, cell: Cell, *, force: bool, save: tuple[str, ...]
) -> str:
    import torch

    torch.set_num_threads(cell.threads)
    try:
        ended = runner.run(cell, force=force, save=save)
    except StoreError:
        raise
    except PruneBenchError as error:
        status = "refused" if isinstance(error, UnsupportedModel | UnsupportedTarget) else "failed"
        return _badly(runner, live, index, cell, status, str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        mend = "use a smaller --hidden-budget, fewer samples or another device"
        reason = f"out of memory on {cell.device} ({_line(error)}); {mend}"
        return _badly(runner, live, index, cell, "failed", reason)
    except Exception as error:  # one broken cell must not take the grid down; the traceback is kept
        path = (
            runner.out / "errors" / f"{cell.model.rpartition('/')[2]}-{cell.method}-{os.getpid()}-{index}.txt"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8")
        reason = f"{type(error).__name__}: {_line(error)}; traceback in {path}"
        return _badly(runner, live, index, cell, "failed", reason)
    if ended.status == "cached":
        live.cached(index, cell)
    else:
        live.done(index, cell, "done", ended.summary)
    return ended.status


def _badly(runner: CellRunner, live: LiveObserver, index: int, cell: Cell, status: str, reason: str) -> str:
    try:
        runner.ended_badly(cell, status, reason)
    except MachineError as error:
        raise MachineError(f"{cell.name} failed ({reason}), and that cannot be stored: {error}") from error
    live.done(index, cell, status, reason)
    return status


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def termination() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: cleanly, with what is finished kept."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, where signals cannot be caught
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
