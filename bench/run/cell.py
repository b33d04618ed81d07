"""One cell: what is missing is computed, and every finished phase becomes a record at once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.measure.machine import commit, environment
from bench.plan.cells import Cell
from bench.plan.saving import forms_of, refused
from bench.results.records import Record, moment, now
from bench.run import phases, saved
from bench.run.evaluations import EVALUATIONS, Weights
from bench.run.results import CellObserver, Results
from bench.run.subject import Keys, Subject, Subjects, keys_without_model
from methods.errors import UnsupportedTarget
from methods.stream.shares import Worker
from methods.stream.sink import BlockFolder

__all__ = ["CellRunner", "Ended"]

_SUMMARY = (
    ("perplexity", "perplexity {:.4g}"),
    ("sparsity", "sparsity {:.4g}"),
    ("decode_tokens_per_second", "{:.4g} token/s"),
    ("decode_speedup", "{:.3g} x as fast packed"),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a cell ended: ``done`` or ``cached``, and one line on it."""

    status: str
    summary: str


class CellRunner:
    """Runs cells of one plan: what is known of them comes from ``results``, and every finished phase goes there.

    ``out`` holds work in progress and saved models; ``subjects`` are models that earlier cells loaded; ``team`` hires
    the workers that share a cell's calibration, for as long as it is pruned.
    """

    def __init__(
        self,
        out: Path,
        results: Results,
        observer: CellObserver,
        command: tuple[str, ...],
        subjects: Subjects | None = None,
        team: Callable[[Cell], AbstractContextManager[Sequence[Worker]]] = lambda _: nullcontext(()),
    ) -> None:
        self.out = out
        self.results = results
        self.observer = observer
        self.command = command
        self.subjects = subjects if subjects is not None else Subjects()
        self._team = team
        self._known: dict[str, list[Record]] = {}
        known = results.records()
        self._latest = max((moment(record.finished) for record in known), default=None)
        for record in known:
            self._known.setdefault(record.cell, []).append(record)
        self.done = {record.key for records in self._known.values() for record in records if record.settled}
        self._obtainable: dict[tuple[str, int], bool] = {}
        self._keys: Keys | None = None
        self._phase = "prune"

    def run(self, cell: Cell, *, force: bool, save: tuple[str, ...]) -> Ended:
        """Run what is missing of a cell, its model kept in the forms ``save``. Raises PruneBenchError."""
        self._keys, self._phase = None, "prune"
        machine = environment(cell.device, cell.threads)
        self.subjects.keep_only(cell.model)
        subject = self.subjects.get(cell.model)
        keys = self._keys = subject.keys(cell, machine)
        if force:
            shutil.rmtree(self._work(keys), ignore_errors=True)
        wanted = [
            phase for phase in ("prune", *cell.evaluations) if force or not self._stands(cell, keys, phase)
        ]
        unsaved = self._unsaved(cell, keys, machine, save, force=force)
        if not wanted and not unsaved:
            shutil.rmtree(self._work(keys), ignore_errors=True)
            return Ended("cached", self._summary(keys))
        overlay = saved.kept(self.out, cell, keys)
        if "prune" in wanted or overlay is None or "quantised" in unsaved:  # only pruning leaves grids
            overlay = self._prune(cell, subject, keys, machine, wanted=wanted)
        for form in unsaved:
            self._save(form, cell, subject, keys, machine, overlay)
        run = phases.run_of(cell, self._work(keys), keys.environment, self.observer)
        for evaluation in (phase for phase in wanted if phase != "prune"):
            with self._recording(cell, subject, keys, machine, evaluation) as result:
                weights = Weights(cell, subject, overlay, self._dense_states(subject, cell, keys))
                result.append(EVALUATIONS[evaluation](weights, run))
        shutil.rmtree(self._work(keys), ignore_errors=True)
        return Ended("done", self._summary(keys))

    def _stands(self, cell: Cell, keys: Keys, phase: str) -> bool:
        """Whether a phase is done, and lacks nothing that can be had by now."""
        key = self._key(cell, keys, phase)
        if key in self.done:
            return True
        known = next((record for record in self._known.get(keys.cell, ()) if record.key == key), None)
        if known is None or known.status != "done":
            return False
        from bench.evaluate.zeroshot.loading import obtainable

        for task in known.awaited:
            # asked once, so that the cells of a grid get the same answer
            if (task, cell.shots) not in self._obtainable:
                self._obtainable[task, cell.shots] = obtainable(task, cell.shots)
            if self._obtainable[task, cell.shots]:
                return False
        lacking = ", ".join(known.awaited)
        self.observer.warning(f"{cell.name}: still without {lacking}, which the hub does not give")
        return True

    def ended_badly(self, cell: Cell, status: str, reason: str) -> None:
        """Record a refusal or a failure of a cell, unless the last word on it is the very same."""
        machine = environment(cell.device, cell.threads)
        keys = (
            self._keys
            if self._keys is not None and status != "refused"
            else keys_without_model(cell, machine)
        )
        phase = self._phase if keys is self._keys else "prune"
        asked = self._identity(cell, keys, phase)["parameters"]
        wanted = (cell.model, cell.method, cell.target, cell.seed, asked)
        known = [r for records in self._known.values() for r in records]
        mine = [r for r in known if (r.model, r.method, r.target, r.seed, r.parameters) == wanted]
        last = max(mine, key=lambda record: record.finished, default=None)
        if last is not None and (last.cell, last.status, last.reason) == (keys.cell, status, reason):
            return
        self._append(self._ended(cell, keys, machine, phase, status, reason))

    def _ended(
        self, cell: Cell, keys: Keys, machine: dict[str, Any], phase: str, status: str, reason: str
    ) -> Record:
        ended = now()
        return Record(
            **self._identity(cell, keys, phase),
            status=status,  # type: ignore[arg-type]
            reason=reason,
            provenance=self._provenance(None, machine),
            started=ended,
            finished=ended,
        )

    def clear(self) -> None:
        """Drop what only a running grid needs, and what killed runs of older code left."""
        shutil.rmtree(self.out / "work", ignore_errors=True)

    def _append(self, record: Record) -> None:
        record = self._after_all(record)
        self.results.append(record)
        known = [other for other in self._known.get(record.cell, []) if other.key != record.key]
        self._known[record.cell] = [*known, record]
        if record.settled:
            self.done.add(record.key)

    def _after_all(self, record: Record) -> Record:
        """The record, finished after every other: the last word is told by the time, and clocks may go back."""
        finished = moment(record.finished)
        if self._latest is not None and finished <= self._latest:
            said = f"the clock went back: it said {record.finished}, when a record of {self._latest.isoformat()} was stored"
            finished = self._latest + timedelta(microseconds=1)
            moved = {
                "finished": finished.isoformat(timespec="microseconds"),
                "warnings": (*record.warnings, said),
            }
            record = record.model_copy(update=moved)
        self._latest = finished
        return record

    def _prune(
        self, cell: Cell, subject: Subject, keys: Keys, machine: dict[str, Any], *, wanted: list[str]
    ) -> Path | None:
        """Folder of the cell's pruned blocks (None for the dense model), with a record where one is missing."""
        if cell.dense:
            if "prune" in wanted:
                with self._recording(cell, subject, keys, machine, "prune") as result:
                    result.append(phases.dense_figures(cell, subject))
            return None
        work = self._work(keys)
        blocks = BlockFolder(work / "blocks")
        run = phases.run_of(
            cell,
            work,
            # other batches round otherwise, and a resumed prune is bit for bit an unbroken one
            f"{keys.cell}/{keys.environment}/{cell.placement.batch_tokens}",
            self.observer,
            shared=self.out,
            model=subject.checkpoint.revision,
        )
        with self._team(cell) as workers:
            run = replace(run, workers=workers)
            if "prune" in wanted:
                with self._recording(cell, subject, keys, machine, "prune") as result:
                    result.append(phases.prune(cell, subject, run, blocks))
            else:
                # its record stands; only the weights are needed again
                phases.prune(cell, subject, run, blocks)
        return blocks.folder

    def _unsaved(
        self, cell: Cell, keys: Keys, machine: dict[str, Any], asked: tuple[str, ...], *, force: bool
    ) -> list[str]:
        """Forms still to be written; a form that the cell has no model for becomes a refusal, once."""
        found = []
        for form in forms_of(cell, asked):
            key = self._key(cell, keys, f"save/{form}")
            reason = refused(cell, form)
            if reason is not None:
                self._refuse_form(cell, keys, machine, form, reason)
            elif force or not self._settled(key, saved.folder_of(self.out, cell, keys, form)):
                found.append(form)
        return found

    def _settled(self, key: tuple[str, str, str, str], folder: Path) -> bool:
        known = (record for record in self._known.get(key[0], ()) if record.key == key)
        return any(record.status == "refused" for record in known) or (key in self.done and folder.exists())

    def _save(
        self,
        form: str,
        cell: Cell,
        subject: Subject,
        keys: Keys,
        machine: dict[str, Any],
        overlay: Path | None,
    ) -> None:
        """Write one form and record what it takes; one that cannot hold this model is refused, and the cell goes on."""
        folder = saved.folder_of(self.out, cell, keys, form)
        self.observer.phase("save", 1)
        try:
            with self._recording(cell, subject, keys, machine, f"save/{form}") as result:
                result.append(saved.save(form, phases.source_of(cell, subject, overlay), folder))
        except UnsupportedTarget as error:
            self._refuse_form(cell, keys, machine, form, str(error))
        self.observer.step(1, str(folder))

    def _refuse_form(self, cell: Cell, keys: Keys, machine: dict[str, Any], form: str, reason: str) -> None:
        phase = f"save/{form}"
        key = self._key(cell, keys, phase)
        last = next((r for r in self._known.get(keys.cell, ()) if r.key == key), None)
        if last is not None and (last.status, last.reason) == ("refused", reason):
            return
        self.observer.warning(f"{cell.name}: not saved: {reason}")
        self._append(self._ended(cell, keys, machine, phase, "refused", reason))

    @contextmanager
    def _recording(
        self, cell: Cell, subject: Subject, keys: Keys, machine: dict[str, Any], phase: str
    ) -> Iterator[list[phases.Figures]]:
        started, began = now(), time.perf_counter()
        self._phase = phase
        self.observer.warnings = []
        result: list[phases.Figures] = []
        yield result
        figures = result[0]
        values = self.results.save_values(figures.arrays) if figures.arrays else ""
        record = Record(
            **self._identity(cell, keys, phase),
            status="done",
            metrics=figures.metrics,
            matrices=figures.matrices,
            seconds={**figures.seconds, "wall": time.perf_counter() - began},
            provenance={**self._provenance(subject, machine), **figures.provenance},
            warnings=tuple(dict.fromkeys((*self.observer.warnings, *figures.warnings))),
            values=values,
            started=started,
            finished=now(),
        )
        self._append(record)

    def _identity(self, cell: Cell, keys: Keys, phase: str) -> dict[str, Any]:
        return {
            "phase": phase.partition("/")[0],
            "cell": keys.cell,
            "subject": keys.subjects[phase],
            "environment": keys.environment,
            "sources": keys.phases[phase],
            "model": cell.model,
            "method": cell.method,
            "target": cell.target,
            "seed": cell.seed,
            "dtype": cell.dtype,
            "calibration": cell.calibration.id if cell.calibration else "",
            "protocol": cell.protocol(phase),
            "parameters": cell.recorded(),
        }

    def _provenance(self, subject: Subject | None, machine: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "environment": machine,
            "commit": commit(),
            "command": ["bench", *self.command],
        }
        if subject is not None:
            checkpoint = subject.checkpoint
            found["model"] = {
                "id": checkpoint.id,
                "source": checkpoint.source,
                "revision": checkpoint.revision,
                "files": checkpoint.files,
            }
            if checkpoint.label:
                found["label"] = checkpoint.label
        return found

    def _key(self, cell: Cell, keys: Keys, phase: str) -> tuple[str, str, str, str]:
        return (keys.cell, phase.partition("/")[0], cell.protocol(phase), keys.phases[phase])

    def _work(self, keys: Keys) -> Path:
        return self.out / "work" / keys.cell

    def _dense_states(self, subject: Subject, cell: Cell, keys: Keys) -> Path:
        scored = keys.phases.get("perplexity", "")
        name = f"{subject.checkpoint.revision.replace(':', '-')}-{cell.dtype}-{scored}"
        return self.out / "work" / "dense" / name

    def _summary(self, keys: Keys) -> str:
        shown = []
        for record in self._known.get(keys.cell, ()):
            for name, spelled in _SUMMARY:
                value = record.metric(name)
                if value is not None:
                    shown.append(spelled.format(value))
            accuracies = [entry.value for entry in record.metrics if entry.name.startswith("acc/")]
            if accuracies:
                shown.append(f"mean accuracy {fmean(value for value in accuracies if value is not None):.4g}")
        return ", ".join(sorted(shown))
