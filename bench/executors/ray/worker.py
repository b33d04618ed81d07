"""A cell on a node of the cluster: run by the same rules as in process, its records handed in at the desk."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from bench.executors.ray.desk import Delivery
from bench.executors.ray.needs import check_versions
from bench.plan.cells import Cell
from bench.results.records import Record, decode, encode
from bench.results.values import read_values, save_values
from methods.errors import MachineError

if TYPE_CHECKING:
    import numpy as np

    from bench.run.cell import Ended
    from bench.run.subject import Subjects

__all__ = ["RETRIES", "Job", "clean", "run_cell"]

RETRIES: Final = 3
"""How often a cell is begun again whose worker or node was lost; a failure of the cell itself is never repeated."""
_PERIOD: Final = 0.5
"""Seconds between two messages about the steps of one phase."""
_PATIENCE: Final = 30.0
"""Seconds that a lost attempt's process gets to end; Ray ends it as soon as it knows of the loss."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for every cell of a run. ``token``: a file in ``out`` by which a node sees that it shares it."""

    out: str
    token: str
    command: tuple[str, ...]
    force: bool
    save: tuple[str, ...]
    versions: dict[str, str]

    def folder(self) -> Path:
        """Where cells work on this node: the run's folder where the node sees it, else one of the node's own."""
        out = Path(self.out)
        return out if self.shared() else Path(tempfile.gettempdir()) / f"prune-bench-{self.token}"

    def shared(self) -> bool:
        """Whether this node sees the run's folder."""
        return (Path(self.out) / "work" / self.token).is_file()


class Superseded(BaseException):
    """Another attempt at this cell has begun: nothing of this one counts any more."""


_subjects: Subjects | None = None
"""Models that this process has loaded: Ray gives a process many cells, and most are of one model."""


def run_cell(desk: Any, job: Job, index: int, cell: Cell, known: tuple[bytes, ...]) -> tuple[str, str]:
    """Run what is missing of a cell; how it ended, and one line on it. ``known``: its records in the store.

    Raises MachineError where this node cannot serve it.
    """
    import ray

    from bench.executors.ray.team import Lost, hired
    from bench.run.attempt import attempt
    from bench.run.cell import CellRunner, Ended
    from bench.run.subject import Subjects

    global _subjects  # noqa: PLW0603 - what makes a process load a model once
    if _subjects is None:
        _subjects = Subjects()
    node = f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"
    check_versions(job.versions)
    if job.save and not job.shared():
        raise MachineError(
            f"node {node} does not see {job.out}, and --save keeps models there; give an --out that all nodes share"
        )
    number, delivered = ray.get(desk.begin.remote(index, node))
    # an attempt that was lost has done, by --force too, what it delivered
    earlier = () if job.force else known
    results = DeskResults(desk, job, index, number, [*earlier, *delivered])
    observer = DeskObserver(desk, index, number)
    force = job.force and not delivered
    with _folder(job, index) as folder:
        team = partial(hired, versions=job.versions)
        runner = CellRunner(folder, results, observer, job.command, _subjects, team)
        for left in reversed(range(RETRIES + 1)):
            try:
                ended: Ended = attempt(runner, cell, force=force, save=job.save, name=str(index))
                break
            except Lost as lost:
                reason = f"a worker that shares its calibration was lost ({lost})"
                if not left:
                    raise MachineError(
                        f"{reason}, {RETRIES + 1} times; is there enough memory on the nodes?"
                    ) from None
                observer.warning(f"begun again: {reason}")
                force = False
    if ended.status == "cached" and delivered:
        ended = Ended("done", ended.summary)
    return ended.status, ended.summary


@contextmanager
def _folder(job: Job, index: int) -> Iterator[Path]:
    """The folder to work in, held: a lost attempt at the same cell may still write for as long as it lives."""
    folder = job.folder()
    (folder / "work").mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "work" / f"{job.token}-{index}.lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        with tempfile.TemporaryDirectory(prefix=f"prune-bench-{job.token}-") as own:
            yield Path(own)
        return
    try:
        yield folder
    finally:
        lock.release()


def clean(job: Job) -> None:
    """Remove what cells left on a node that does not see the run's folder."""
    if not job.shared():
        shutil.rmtree(job.folder(), ignore_errors=True)


class DeskResults:
    """Results of one attempt at one cell, handed in at the desk; see ``bench.run.results``."""

    def __init__(self, desk: Any, job: Job, index: int, attempt: int, known: list[bytes]) -> None:
        self._desk = desk
        self._job = job
        self._index = index
        self._attempt = attempt
        self._known = known
        self._values: dict[str, bytes] = {}

    def records(self) -> list[Record]:
        """What the store and earlier attempts hold of this cell, the latest of every key."""
        return list({record.key: record for record in map(decode, self._known)}.values())

    def append(self, record: Record) -> None:
        """Hand a record in; returns once the desk has it."""
        import ray

        held = self._values.pop(record.values, b"")
        delivery = Delivery(encode(record), record.values if held else "", held)
        if not ray.get(self._desk.deliver.remote(self._index, self._attempt, delivery)):
            raise Superseded

    def save_values(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
        """Hold raw values, as the bytes of their side file, until the record that names them is handed in."""
        with tempfile.TemporaryDirectory(prefix="prune-bench-values-") as folder:
            name = save_values(Path(folder), arrays)
            self._values[name] = read_values(Path(folder), name)
        return name

    def keep_traceback(self, name: str, text: str) -> str:
        """Send a traceback home; where it will lie."""
        self._desk.tell.remote(self._index, self._attempt, "traceback", name, text)
        return str(Path(self._job.out) / "errors" / name)


class DeskObserver:
    """Progress of one attempt, sent to the desk; steps twice a second at most."""

    def __init__(self, desk: Any, index: int, attempt: int) -> None:
        self.warnings: list[str] = []
        self._desk = desk
        self._index = index
        self._attempt = attempt
        self._said = 0.0

    def phase(self, name: str, total: int) -> None:
        """A phase begins."""
        self._tell("phase", name, total)

    def step(self, done: int, note: str = "") -> None:
        """Steps of the phase are done."""
        if time.monotonic() - self._said > _PERIOD:
            self._tell("step", done, note)

    def warning(self, text: str) -> None:
        """Kept for the record, too."""
        self.warnings.append(text)
        self._tell("warning", text)

    def _tell(self, kind: str, *content: object) -> None:
        self._said = time.monotonic()
        self._desk.tell.remote(self._index, self._attempt, kind, *content)
