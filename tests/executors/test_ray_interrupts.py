"""`bench run --executor ray` stopped by signals: a clean end, no process left, and the same command goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_clusters import Killer, figures, run

from bench.results.segments import Store

# Processes start slowly where every core is busy
pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

FLAGS = {
    "models": "nano-opt",
    "methods": "magnitude,sparsegpt",
    "sparsity": "0.5,0.7",
    "samples": "4",
    "length": "64",
    "eval_length": "64",
    "windows": "4",
}
CELLS = 5
PATIENCE = 300.0
"""Seconds until a start, an end or a record is taken for one that never comes."""

GONE = 60.0
"""Seconds that processes get to follow the one that started them."""


@dataclass(frozen=True)
class Command:
    """`bench run` on a Ray cluster of its own; ``mark`` is in the environment of all that it starts."""

    words: list[str]
    out: Path
    process: subprocess.Popen[str]
    mark: str

    def records(self) -> int:
        return len(Store(self.out).history()) if (self.out / "store.json").is_file() else 0

    def left(self) -> list[str]:
        """What still runs of this command, the process itself apart."""
        return [
            f"{process.pid} {process.name()}"
            for process in _marked(self.mark)
            if process.pid != self.process.pid
        ]

    def resume(self) -> str:
        return f"error: interrupted; finished work is kept, resume with: {shlex.join(['bench', *self.words])}"

    def wait_for(self, what: str, there: Callable[[], bool], patience: float = PATIENCE) -> None:
        until = time.monotonic() + patience
        while not there():
            assert time.monotonic() < until, f"no {what} within {patience:g} s; running: {self.left()}"
            time.sleep(0.05)

    def wait_for_a_record(self) -> None:
        self.wait_for("record", lambda: self.records() > 0 or self.process.poll() is not None)
        assert self.process.poll() is None, self.ended()

    def ended(self) -> tuple[int, list[str]]:
        """Exit code and lines of standard error."""
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err.splitlines()


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("BENCH_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Command]]:
    """Start the command, the same at every call; whatever a failed test left is killed."""
    started: list[Command] = []
    out = tmp_path / "out"
    options = [word for name, value in FLAGS.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["run", "--executor", "ray", "--threads", "1", *options, "--out", str(out), "--quiet"]

    def begin() -> Command:
        mark = uuid.uuid4().hex
        environment = {name: value for name, value in os.environ.items() if name != "BENCH_DATA_DIR"}
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", *words],
            env={**environment, "BENCH_TEST_MARK": mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own, as a shell gives a command
        )
        started.append(Command(words, out, process, mark))
        return started[-1]

    yield begin
    for command in started:
        for process in _marked(command.mark):
            with suppress(psutil.Error):
                process.kill()
        command.process.communicate()


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The figures of the same cells, run in this process."""
    out = tmp_path_factory.mktemp("serial")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BENCH_DATA_DIR", raising=False)
        assert run(out, Killer(None, ()), **FLAGS).done == CELLS
    return figures(out)


def _interrupt(command: Command) -> None:
    command.process.send_signal(signal.SIGINT)


def _terminate(command: Command) -> None:
    command.process.send_signal(signal.SIGTERM)


def _twice(command: Command) -> None:
    for _ in range(2):
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.3)


def _terminal(command: Command) -> None:
    os.killpg(command.process.pid, signal.SIGINT)


@pytest.mark.parametrize("stop", [_interrupt, _terminate, _twice, _terminal])
def test_an_interrupted_run_ends_cleanly_and_goes_on(
    stop: Callable[[Command], None], start: Callable[[], Command], serial: Any
) -> None:
    first = start()
    first.wait_for_a_record()
    before, began = first.records(), time.monotonic()
    stop(first)
    code, said = first.ended()
    print(f"{stop.__name__}: ended after {time.monotonic() - began:.1f} s, {first.records()} records, {said}")
    assert code == 130
    assert said == [first.resume()]
    first.wait_for("end of all processes", lambda: not first.left(), GONE)
    print(f"all gone after {time.monotonic() - began:.1f} s")
    assert before <= first.records() < 2 * CELLS
    _goes_on(start, serial)


@pytest.mark.parametrize("stop", [_interrupt, _terminate])
def test_a_run_that_is_stopped_while_its_cluster_starts_leaves_nothing(
    stop: Callable[[Command], None], start: Callable[[], Command]
) -> None:
    command = start()
    command.wait_for("process of Ray", lambda: bool(command.left()))
    stop(command)
    assert command.ended() == (130, [command.resume()])
    command.wait_for("end of all processes", lambda: not command.left(), GONE)


def test_a_killed_run_takes_its_cluster_with_it_and_goes_on(
    start: Callable[[], Command], serial: Any
) -> None:
    first = start()
    first.wait_for_a_record()
    began = time.monotonic()
    first.process.kill()
    first.wait_for("end of all processes", lambda: not first.left(), GONE)
    print(f"killed: all gone after {time.monotonic() - began:.1f} s, {first.records()} records")
    assert 0 < first.records() < 2 * CELLS
    _goes_on(start, serial)


def _goes_on(start: Callable[[], Command], serial: Any) -> None:
    again = start()
    code, said = again.ended()
    assert (code, said) == (0, [])
    again.wait_for("end of all processes", lambda: not again.left(), GONE)
    assert figures(again.out) == serial
