"""Watches over the worker: signs of life, silence, crashes, and the last thing it said."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from methods.errors import MachineError, OutsideError
from methods.interface import Observer

__all__ = ["run_worker"]

_WORKER = Path(__file__).with_name("worker.py")
_SHOWN = 200


def run_worker(
    python: str,
    job: Path,
    *,
    silence: float,
    environment: Mapping[str, str],
    matrices: int,
    observer: Observer,
) -> None:
    """Run the worker on ``job``; returns when it has ended well. It never outlives this call.

    ``silence``: seconds without a sign of life after which it is ended. Raises OutsideError with the last line
    of its standard error, which is kept in ``worker.log`` beside the job; MachineError where it cannot start.
    """
    log = job.with_name("worker.log")
    try:
        with log.open("wb") as errors:
            child = subprocess.Popen(
                [python, str(_WORKER), str(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                start_new_session=True,
            )
    except OSError as error:
        raise MachineError(f"llm-compressor cannot be started ({error.strerror}): {python}") from None
    try:
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
        phase = _follow(lines, silence, matrices, observer)
        if phase is None:
            _end(child)
            raise OutsideError(
                f"llm-compressor gave no sign of life for {silence:g} s and was ended{_last(log)}"
            )
        code = _code(child, silence)
        if code != 0 or phase != "done":
            raise OutsideError(f"llm-compressor {_ending(code, phase)}{_last(log)}")
    finally:
        _end(child)


def _read(stream: IO[bytes] | None, lines: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in stream or ():
            lines.put(line)
    lines.put(None)


def _follow(
    lines: queue.SimpleQueue[bytes | None], silence: float, matrices: int, observer: Observer
) -> str | None:
    """Show the worker's progress until it says no more; returns its last phase, or None where it fell silent."""
    phase, done = "start", 0
    observer.phase("calibrate", matrices)
    while True:
        try:
            line = _next(lines, silence)
        except queue.Empty:
            return None
        if line is None:
            return phase
        said = _message(line)
        phase = str(said.get("phase", phase))
        if "matrix" in said:
            done = min(done + 1, matrices)
            observer.step(done, str(said["matrix"])[:_SHOWN])


def _next(lines: queue.SimpleQueue[bytes | None], silence: float) -> bytes | None:
    """What the worker says next. Raises queue.Empty after ``silence`` seconds, waited in two halves.

    A machine that slept wakes with the first half over: the second lets a worker that slept too speak first.
    """
    with contextlib.suppress(queue.Empty):
        return lines.get(timeout=silence / 2)
    return lines.get(timeout=silence / 2)


def _message(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _code(child: subprocess.Popen[bytes], silence: float) -> int | None:
    try:
        return child.wait(timeout=silence)
    except subprocess.TimeoutExpired:
        return None


def _ending(code: int | None, phase: str) -> str:
    if code is None:
        return f"said no more after {phase} and did not end"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        memory = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"was ended by {name} after {phase}{memory}"
    return f"ended with code {code} after {phase}"


def _last(log: Path) -> str:
    """The last line of the worker's standard error, and where the rest is."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    last = "".join(char if char.isprintable() else "?" for char in lines[-1])[:_SHOWN] if lines else ""
    return f": {last}" if last else ""


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the worker and all it started, unless it has ended."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    child.wait()
