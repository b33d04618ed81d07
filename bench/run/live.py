"""A run while it goes on: one holder of its folder, a clean end, and a state file that `bench status` reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from bench.plan.cells import Cell
from bench.plan.observer import GridObserver
from bench.results.records import now
from bench.results.redact import redact_command
from methods.errors import MachineError, UserError
from methods.stream.sink import write_json

__all__ = ["LiveObserver", "deferred", "held", "termination"]

_PERIOD = 0.5


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a run's folder. Raises UserError naming the holder where another run has it, MachineError if unusable."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / "run.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"--out {out} is in use by {_holder(out)}; wait for it, stop it, or choose another --out"
        ) from None
    except OSError as error:
        raise MachineError(
            f"--out {out}: cannot be used ({error.strerror or error}); choose another folder"
        ) from None
    try:
        write_json(
            out / "run.holder.json", {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        )
        yield
    finally:
        with suppress(OSError):
            (out / "run.holder.json").unlink(missing_ok=True)
        lock.release()


def _holder(out: Path) -> str:
    try:
        holder = json.loads((out / "run.holder.json").read_text(encoding="utf-8"))
        return f"process {int(holder['pid'])} on {str(holder['host'])[:80]} since {str(holder['since'])[:19]}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another run"


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


@contextmanager
def deferred() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect at the end of the block only: KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be caught
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


class LiveObserver:
    """Passes progress on and keeps ``OUT/run.json`` up to date, twice a second at most."""

    def __init__(self, out: Path, inner: GridObserver, command: Sequence[str]) -> None:
        self.out = out
        self.inner = inner
        self.warnings: list[str] = []
        self._written = 0.0
        self._state: dict[str, Any] = {
            "state": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": now(),
            "command": redact_command(command),
            "cells": [],
        }
        self._current: dict[str, Any] = {}

    def plan(self, cells: Sequence[Cell]) -> None:
        """All cells, before the first begins."""
        self._state["cells"] = [
            {
                "model": cell.model,
                "method": cell.method,
                "target": cell.target,
                **({"recovery": cell.recovery} if cell.recovery else {}),
                "seed": cell.seed,
                "state": "waiting",
                "phase": "",
                "done": 0,
                "total": 0,
            }
            for cell in cells
        ]
        self._write()
        self.inner.plan(cells)

    def cell(self, index: int, cell: Cell) -> None:
        """Cell ``index`` begins."""
        self.warnings = []
        self._current = self._state["cells"][index]
        self._current["state"] = "running"
        self._write()
        self.inner.cell(index, cell)

    def focus(self, index: int) -> None:
        """What follows is of cell ``index``, of several that run at once."""
        self._current = self._state["cells"][index]
        self.inner.focus(index)

    def phase(self, name: str, total: int) -> None:
        """A phase begins."""
        self._current.update(phase=name, done=0, total=total)
        self._write()
        self.inner.phase(name, total)

    def step(self, done: int, note: str = "") -> None:
        """Steps of the phase are done."""
        self._current["done"] = done
        if time.monotonic() - self._written > _PERIOD:
            self._write()
        self.inner.step(done, note)

    def warning(self, text: str) -> None:
        """Kept for the record, too."""
        self.warnings.append(text)
        self.inner.warning(text)

    def cached(self, index: int, cell: Cell) -> None:
        """Nothing left to do for cell ``index``."""
        self._state["cells"][index]["state"] = "cached"
        self._write()
        self.inner.cached(index, cell)

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None:
        """Cell ``index`` ended."""
        self._state["cells"][index]["state"] = status
        self._write()
        self.inner.done(index, cell, status, summary)

    def close(self) -> None:
        """Leave the display."""
        self.inner.close()

    def finish(self, state: str) -> None:
        """Write the last state: ``finished`` or ``interrupted``."""
        self._state["state"] = state
        with suppress(MachineError):  # a full disk must not hide what ended the run
            self._write()

    def _write(self) -> None:
        self._state["updated"] = now()
        write_json(self.out / "run.json", self._state)
        self._written = time.monotonic()
