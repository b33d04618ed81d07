"""Progress of a grid: live on a terminal, plain lines when piped, JSON lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bench.cli.failures import one_line, say_error
from bench.cli.output import console, counted, duration_text, print_json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from bench.plan.cells import Cell
    from bench.plan.observer import GridObserver
    from bench.plan.settings import Settings

__all__ = ["JsonObserver", "LineObserver", "LiveDisplay", "QuietObserver", "observer_for"]

_EVERY = 10.0
"""Seconds between two plain lines about one phase."""


def observer_for(settings: Settings) -> GridObserver:
    """The observer that a run's settings and standard error ask for."""
    if settings.quiet:
        return QuietObserver()
    if settings.as_json:
        return JsonObserver()
    return LiveDisplay() if sys.stderr.isatty() else LineObserver()


class QuietObserver:
    """Says nothing but which cells failed."""

    def focus(self, index: int) -> None:
        """Nothing to show."""

    def plan(self, cells: Sequence[Cell]) -> None:
        """Nothing to show."""

    def cell(self, index: int, cell: Cell) -> None:
        """Nothing to show."""

    def phase(self, name: str, total: int) -> None:
        """Nothing to show."""

    def step(self, done: int, note: str = "") -> None:
        """Nothing to show."""

    def warning(self, text: str) -> None:
        """Nothing to show: warnings are in the records."""

    def cached(self, index: int, cell: Cell) -> None:
        """Nothing to show."""

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None:  # noqa: ARG002 - the protocol's
        """One error line for a cell that failed."""
        if status == "failed":
            say_error(f"{cell.name}: {summary}")

    def close(self) -> None:
        """Nothing to end."""


@dataclass(slots=True)
class _Shown:
    """What was last said of a cell at work."""

    started: float
    phase: str = ""
    steps: int = 0
    said: float = 0.0


class LineObserver:
    """Plain lines with the time in front, on standard error: cells and phases, and a step now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = 0
        self._at_work: dict[int, _Shown] = {}
        self._index = 0

    def plan(self, cells: Sequence[Cell]) -> None:
        """How many cells there are."""
        self._total = len(cells)
        self._say(f"{counted(self._total, 'cell')}")

    def cell(self, index: int, cell: Cell) -> None:
        """A cell begins."""
        self._index = index
        self._at_work[index] = _Shown(started=self._clock())
        self._say(f"{self._at(index)} {cell.name}")

    def focus(self, index: int) -> None:
        """What follows is of that cell."""
        self._index = index

    def phase(self, name: str, total: int) -> None:
        """A phase begins; it gets a line only once it has lasted."""
        shown = self._shown()
        shown.phase, shown.steps, shown.said = name, total, self._clock()

    def step(self, done: int, note: str = "") -> None:
        """A line where none was written for a while."""
        shown = self._shown()
        if self._clock() - shown.said >= _EVERY:
            shown.said = self._clock()
            self._say(f"  {self._which()}{shown.phase} {done}/{shown.steps}{' ' + note if note else ''}")

    def warning(self, text: str) -> None:
        """A warning."""
        self._say(f"  {self._which()}warning: {text}")

    def cached(self, index: int, cell: Cell) -> None:
        """A cell that was finished before."""
        self._at_work.pop(index, None)
        self._say(f"{self._at(index)} {cell.name}: stored already")

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None:
        """A cell ended."""
        began = self._at_work.pop(index, None)
        took = f" ({duration_text(self._clock() - began.started)})" if status == "done" and began else ""
        self._say(f"{self._at(index)} {cell.name}: {status}{took}{'; ' + summary if summary else ''}")

    def close(self) -> None:
        """Nothing to end."""

    def _shown(self) -> _Shown:
        return self._at_work.setdefault(self._index, _Shown(started=self._clock()))

    def _which(self) -> str:
        """Which cell a line is about, where several are at work."""
        return f"{self._at(self._index)} " if len(self._at_work) > 1 else ""

    def _at(self, index: int) -> str:
        return f"[{index + 1}/{self._total}]"

    def _say(self, text: str) -> None:
        stamp = datetime.now().astimezone().strftime("%H:%M:%S")
        indent = text[: len(text) - len(text.lstrip())]
        print(f"{stamp} {indent}{one_line(text)}", file=sys.stderr, flush=True)


class JsonObserver:
    """One JSON object a line on standard output; steps are left out, phases are not."""

    def __init__(self) -> None:
        self._index = -1

    def plan(self, cells: Sequence[Cell]) -> None:
        """Event ``plan``."""
        self._emit("plan", cells=len(cells))

    def cell(self, index: int, cell: Cell) -> None:
        """Event ``cell-started``."""
        self._index = index
        self._emit("cell-started", **_named(index, cell))

    def focus(self, index: int) -> None:
        """What follows is of that cell."""
        self._index = index

    def phase(self, name: str, total: int) -> None:
        """Event ``phase``."""
        self._emit("phase", index=self._index, phase=name, total=total)

    def step(self, done: int, note: str = "") -> None:
        """Nothing: steps would drown the rest."""

    def warning(self, text: str) -> None:
        """Event ``warning``."""
        self._emit("warning", index=self._index, text=text)

    def cached(self, index: int, cell: Cell) -> None:
        """Event ``cell-cached``."""
        self._emit("cell-cached", **_named(index, cell))

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None:
        """Event ``cell-finished``."""
        self._emit("cell-finished", **_named(index, cell), status=status, summary=summary)

    def close(self) -> None:
        """Nothing to end: the command prints the summary."""

    def _emit(self, event: str, **more: Any) -> None:
        print_json(
            {"event": event, "time": datetime.now().astimezone().isoformat(timespec="seconds"), **more}
        )


class LiveDisplay:
    """Nested bars on standard error: the grid, the cell's phase, and the block or window in it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console(stderr=True),
            transient=True,
        )
        self._grid: TaskID | None = None
        self._phases: dict[int, TaskID] = {}
        self._names: dict[int, str] = {}
        self._index = 0
        self._total = 0
        self._ended = 0

    def plan(self, cells: Sequence[Cell]) -> None:
        """Show the bar of the grid."""
        self._total = len(cells)
        self._grid = self._progress.add_task("grid", total=self._total, note="")
        self._progress.start()

    def cell(self, index: int, cell: Cell) -> None:
        """Name the cell beside the grid's bar."""
        self._drop_phase(index)
        self._index = index
        self._names[index] = one_line(cell.name)
        if self._grid is not None:
            self._progress.update(self._grid, note=one_line(cell.name), completed=self._ended)

    def focus(self, index: int) -> None:
        """What follows is of that cell: each at work has a bar."""
        self._index = index

    def phase(self, name: str, total: int) -> None:
        """Start the phase's bar, named after its cell where several are at work."""
        self._drop_phase(self._index)
        which = f"{self._names.get(self._index, '')} " if len(self._names) > 1 else ""
        self._phases[self._index] = self._progress.add_task(
            f"  {which}{one_line(name)}", total=total, note=""
        )

    def step(self, done: int, note: str = "") -> None:
        """Move the phase's bar."""
        if self._index in self._phases:
            self._progress.update(self._phases[self._index], completed=done, note=one_line(note))

    def warning(self, text: str) -> None:
        """A line above the bars."""
        self._line(f"warning: {text}", "yellow")

    def cached(self, index: int, cell: Cell) -> None:
        """A line above the bars; the grid moves on."""
        self._advance(index, f"[{index + 1}/{self._total}] {cell.name}: stored already", "dim")

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None:
        """A line above the bars; the grid moves on."""
        style = {"done": "green", "refused": "yellow"}.get(status, "red")
        self._advance(
            index,
            f"[{index + 1}/{self._total}] {cell.name}: {status}{'; ' + summary if summary else ''}",
            style,
        )

    def close(self) -> None:
        """Take the bars away."""
        self._progress.stop()

    def _advance(self, index: int, text: str, style: str) -> None:
        self._drop_phase(index)
        self._names.pop(index, None)
        self._ended += 1
        if self._grid is not None:
            self._progress.update(self._grid, completed=self._ended, note="")
        self._line(text, style)

    def _drop_phase(self, index: int) -> None:
        if index in self._phases:
            self._progress.remove_task(self._phases.pop(index))

    def _line(self, text: str, style: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text(one_line(text), style=style))


def _named(index: int, cell: Cell) -> dict[str, Any]:
    return {
        "index": index,
        "model": cell.model,
        "method": cell.method,
        **({"recovery": cell.recovery} if cell.recovery else {}),
        "target": cell.target,
        "seed": cell.seed,
    }
