"""Runs the problems of `bench kernels`: rows that are stored are read, the others measured and stored one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.measure.machine import commit, environment
from bench.plan.kernels import KernelSettings, Problem, Row, needs
from bench.results.keys import cell_key, environment_key, subject_key
from bench.results.records import Metric, Record, now
from bench.results.segments import Store
from bench.results.values import save_values
from bench.run.sources import kernel_sources

if TYPE_CHECKING:
    from bench.measure.ceiling import Ceilings
    from bench.measure.kernels import Measured

__all__ = ["FIELDS", "Figure", "Outcome", "run", "without_memory"]

PHASE: Final = "kernels"
_SEED: Final = 0
FIELDS: Final = (
    *("format", "shape", "batch", "sparsity", "pattern", "dtype", "threads", "median_s", "setup_s"),
    *("speedup_vs_dense", "roofline_fraction", "max_rel_error", "verdict"),
)
"""What every row has, in this order; what follows is for who looks closer."""
_MORE: Final = (
    *("q25_s", "q75_s", "bytes", "best_dense", "best_dense_s", "speedup_vs_own_dense", "allowed_error"),
    *("bandwidth_bytes_per_s", "rate_flop_per_s", "copies", "repeats"),
)

Figure = dict[str, Any]
"""One row as `--json` prints it."""
Watch = Callable[[str], None]


@dataclass(slots=True)
class Outcome:
    """Rows measured, read from the store, refused, and wrong ones among the first two."""

    done: int = 0
    cached: int = 0
    refused: int = 0
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Digests of one row."""

    cell: str
    subject: str
    environment: str
    sources: str
    protocol: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.cell, PHASE, self.protocol, self.sources)


def run(
    settings: KernelSettings,
    wanted: Sequence[Problem],
    store: Store,
    outcome: Outcome,
    *,
    watch: Watch,
    command: tuple[str, ...] = (),
) -> Iterator[Figure]:
    """Yield every row wanted, in order, counting in ``outcome``; ``watch`` is told what goes on, a line at a time.

    Raises KeyboardInterrupt through; what was yielded before is stored.
    """
    import torch

    from bench.measure import ceiling
    from bench.measure.kernels import prepare

    torch.set_num_threads(settings.threads)
    machine = environment("cpu", settings.threads)
    stored = {record.key: record for record in store.records()}
    highest: dict[torch.dtype, Ceilings] = {}
    for number, problem in enumerate(wanted, 1):
        for name, reason in problem.refused:
            outcome.refused += 1
            watch(f"{problem} {name}: refused, {reason}")
            _refuse(store, stored, problem, name, reason, settings, machine, command)
        places = {row: _place(problem, row, settings, machine) for row in problem.wanted}
        missing = [
            row for row, place in places.items() if settings.force or _stored(stored.get(place.key)) is None
        ]
        if missing:
            watch(f"[{number}/{len(wanted)}] {problem}: {len(missing)} rows")
            prepared = prepare(problem)
            seen = ceiling.measure(prepared.dtype)
            ceilings = highest[prepared.dtype] = seen.raised(highest.get(prepared.dtype, seen))
        for batch in dict.fromkeys(row.batch for row in problem.wanted):
            rows = [row for row in problem.wanted if row.batch == batch]
            fresh = [row for row in rows if row in missing]
            if fresh:
                began = now()
                measured = prepared.measure([row.format for row in fresh], batch, settings.repeats, ceilings)
                for row, found in zip(fresh, measured, strict=True):
                    figure = _figure(problem, found, settings, ceilings, prepared.copies)
                    place = places[row]
                    stored[place.key] = _record(
                        store, problem, row, place, found, figure, machine, command, began
                    )
                    outcome.done += 1
            for row in rows:
                held = _stored(stored[places[row].key])
                outcome.cached += row not in fresh
                if held is not None:
                    outcome.wrong += held["verdict"] == "wrong"
                    yield held
        if missing:
            del prepared


def without_memory(problem: Problem, settings: KernelSettings, free: int) -> Problem:
    """The problem, all of its formats refused where it takes more than ``free`` bytes of memory."""
    memory = needs(problem, settings).memory
    if memory <= free or not problem.wanted:
        return problem
    reason = f"needs about {memory / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
    formats = dict.fromkeys(row.format for row in problem.wanted)
    return replace(problem, wanted=(), refused=(*problem.refused, *((name, reason) for name in formats)))


def _figure(
    problem: Problem, found: Measured, settings: KernelSettings, ceilings: Ceilings, copies: int
) -> Figure:
    lower, upper = (float(value) for value in np.quantile(found.times, (0.25, 0.75)))
    finite = np.isfinite(found.error)
    return {
        "format": found.format,
        "shape": problem.shape,
        "batch": found.batch,
        "sparsity": problem.sparsity,
        "pattern": problem.pattern,
        "dtype": problem.dtype,
        "threads": settings.threads,
        "median_s": found.median,
        "setup_s": found.setup,
        "speedup_vs_dense": found.speedup,
        "roofline_fraction": found.roofline,
        "max_rel_error": found.error if finite else None,
        "verdict": found.verdict,
        "q25_s": lower,
        "q75_s": upper,
        "bytes": found.nbytes,
        "best_dense": found.baseline,
        "best_dense_s": float(np.median(found.baseline_times)),
        "speedup_vs_own_dense": float(np.median(found.own_times)) / found.median,
        "allowed_error": found.allowed,
        "bandwidth_bytes_per_s": ceilings.bandwidth,
        "rate_flop_per_s": ceilings.rate,
        "copies": copies,
        "repeats": settings.repeats,
    }


def _record(
    store: Store,
    problem: Problem,
    row: Row,
    place: _Place,
    found: Measured,
    figure: Figure,
    machine: dict[str, Any],
    command: tuple[str, ...],
    began: str,
) -> Record:
    arrays = {
        "times": found.times,
        "best_dense_times": found.baseline_times,
        "own_dense_times": found.own_times,
        "reference_times": found.reference_times,
        "cpu_times": found.cpu_times,
        "reference_cpu_times": found.reference_cpu_times,
    }
    wrong = figure["verdict"] == "wrong"
    units = {
        "median_s": "s",
        "setup_s": "s",
        "speedup_vs_dense": "1",
        "roofline_fraction": "1",
        "max_rel_error": "1",
        "bytes": "byte",
    }
    record = Record(
        **_identity(problem, row, place, figure["threads"]),
        status="done",
        metrics=tuple(Metric(name=name, unit=unit, value=figure[name]) for name, unit in units.items()),
        seconds={"measure": float(found.times.sum())},
        provenance={"row": figure, "machine": machine, "commit": commit(), "command": list(command)},
        warnings=(
            (f"error {found.error:.3g} of the largest output exceeds {found.allowed:.3g}",) if wrong else ()
        ),
        values=save_values(store.out, arrays),
        started=began,
        finished=now(),
    )
    store.append(record)
    return record


def _refuse(
    store: Store,
    stored: dict[tuple[str, str, str, str], Record],
    problem: Problem,
    name: str,
    reason: str,
    settings: KernelSettings,
    machine: dict[str, Any],
    command: tuple[str, ...],
) -> None:
    row = Row(name, 0)
    place = _place(problem, row, settings, machine)
    known = stored.get(place.key)
    if known is not None and (known.status, known.reason) == ("refused", reason):
        return
    moment = now()
    record = Record(
        **_identity(problem, row, place, settings.threads),
        status="refused",
        reason=reason,
        provenance={"machine": machine, "commit": commit(), "command": list(command)},
        started=moment,
        finished=moment,
    )
    store.append(record)
    stored[place.key] = record


def _identity(problem: Problem, row: Row, place: _Place, threads: int) -> dict[str, Any]:
    return {
        "phase": PHASE,
        "cell": place.cell,
        "subject": place.subject,
        "environment": place.environment,
        "sources": place.sources,
        "model": problem.shape,
        "method": row.format,
        "target": problem.target,
        "seed": _SEED,
        "dtype": problem.dtype,
        "protocol": place.protocol,
        "parameters": {"threads": threads},
    }


def _place(problem: Problem, row: Row, settings: KernelSettings, machine: dict[str, Any]) -> _Place:
    protocol = f"kernels/batch={row.batch}" if row.batch else "kernels"
    subject = subject_key(
        model=problem.shape,
        revision="",
        method=row.format,
        parameters={"threads": settings.threads},
        target=problem.target,
        seed=_SEED,
        dtype=problem.dtype,
        calibration="",
        evaluation=protocol,
    )
    where = environment_key(machine)
    sources = kernel_sources()
    return _Place(cell_key(subject, sources), subject, where, sources + where, protocol)


def _stored(record: Record | None) -> Figure | None:
    """The row that a finished record holds, None where there is none."""
    row = record.provenance.get("row") if record is not None and record.status == "done" else None
    if not isinstance(row, dict):
        return None
    return {name: row[name] for name in (*FIELDS, *_MORE) if name in row}
