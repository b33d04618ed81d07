"""Taking a store into a leaderboard: everything that is missing is said at once; what is copied is checked and cleaned."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.results.current import current
from bench.results.files import fault, replace_file
from bench.results.records import Record
from bench.results.segments import Store
from bench.results.values import FOLDER, arrays_of, read_values
from methods.errors import MachineError, StoreError
from reports.comparison import DENSE, QUALITY_PHASE, SIZE_PHASE, evaluated_on, revision_of
from reports.leaderboard.private import private
from reports.wording import clean

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FILES",
    "STORES",
    "Submission",
    "accept",
    "check_name",
    "examine",
    "notes_of",
    "notes_on",
    "stores_of",
]

STORES: Final = "stores"
"""Where a leaderboard's folder keeps the stores that it took in."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FILES: Final = re.compile(
    rf"{STORES}/{NAME.pattern}/(store\.json|records/[A-Za-z0-9_-]{{1,200}}\.jsonl|{FOLDER}/[0-9a-f]{{64}}\.safetensors)"
)
"""What a store that was taken in is made of; nothing else is brought from a leaderboard at a URL."""
_STANDARD: Final = ("nano/", "lab/", "paper/")
_CLOSE: Final = 1e-6
"""Relative difference from the mean of single windows or items that rounding explains."""


@dataclass(frozen=True)
class Submission:
    """A store as it was looked through: `missing` is what keeps it out, `notes` what readers will be told."""

    out: Path
    records: tuple[Record, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def examine(out: Path) -> Submission:
    """Look a store through. Raises `StoreError` where there is none, or one of a newer format, and `MachineError`."""
    store = Store(out)
    history = store.history()
    records = tuple(current(history))
    done = [record for record in records if record.status == "done"]
    missing = [f"damaged: {clean(piece, 200)}" for piece in store.torn]
    missing += [
        f"{_named(record)}: {record.phase} failed ({clean(record.reason, 200) or 'no reason recorded'}): run it again"
        for record in records
        if record.status == "failed"
    ]
    evaluated = [record for record in done if record.phase == QUALITY_PHASE]
    if not any(record.method != DENSE for record in evaluated):
        missing.append("no pruned model was evaluated: run with --eval perplexity")
    missing += _problems(done, evaluated, out)
    return Submission(out, records, tuple(dict.fromkeys(missing)), notes_on(records))


def notes_on(records: Sequence[Record]) -> tuple[str, ...]:
    """What readers of a board should know of a store's current records."""
    evaluated = [record for record in records if record.status == "done" and record.phase == QUALITY_PHASE]
    changed = sum(str(record.provenance.get("commit", "")).endswith("+changes") for record in evaluated)
    return (f"{changed} of {len(evaluated)} evaluations ran from a changed source tree",) if changed else ()


def notes_of(stores: Sequence[Path]) -> list[str]:
    """The notes on every store, each behind the store's name. Raises as `examine`."""
    return [
        f"{clean(out.resolve().name, 80)}: {note}"
        for out in stores
        for note in notes_on(current(Store(out).history()))
    ]


def _problems(done: Sequence[Record], evaluated: Sequence[Record], out: Path) -> Iterator[str]:
    prunes = {record.cell for record in done if record.phase == SIZE_PHASE}
    dense = {_ground(record) for record in evaluated if record.method == DENSE}
    for record in evaluated:
        where = _named(record)
        if not record.protocol.startswith(_STANDARD) or "[" in record.protocol:
            yield (
                f"{where}: protocol {clean(record.protocol, 80) or 'none'} is no whole standard one; "
                "use nano, lab or paper without --windows, --length or --text of your own"
            )
        if record.cell not in prunes:
            yield f"{where}: the record of its pruning is not in the store"
        if record.method != DENSE and _ground(record) not in dense:
            yield f"{where}: the dense model was not evaluated under {clean(record.protocol, 80)} in {record.dtype}"
        if record.calibration and record.seed is None:
            yield f"{where}: calibrated, but no seed is recorded"
        for fact, known in _provenance(record):
            if not known:
                yield f"{where}: {fact} is not recorded"
        if not record.values:
            yield f"{where}: values of single windows are not recorded: run it again with --force"
    for record in done:
        if record.values:
            try:
                arrays = arrays_of(read_values(out, record.values, links=False), record.values)
            except (StoreError, MachineError) as error:
                yield f"{_named(record)}: {clean(error, 300)}"
                continue
            for what in _unlike(record, arrays):
                yield f"{_named(record)}: {what}"


def _unlike(record: Record, arrays: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """Figures that are not the means of their own windows or items."""
    if record.phase == QUALITY_PHASE and "nll" not in arrays:
        yield "losses of single windows (nll) are not recorded: run it again with --force"
    for metric in record.metrics:
        array = arrays.get("nll" if metric.name == "perplexity" else metric.name)
        if record.phase not in (QUALITY_PHASE, "zeroshot") or array is None or metric.value is None:
            continue
        mean = _mean(array)
        own = _exp(mean) if metric.name == "perplexity" else mean
        same = math.isclose(own, metric.value, rel_tol=_CLOSE, abs_tol=1e-9)
        if not (same or (math.isnan(own) and math.isnan(metric.value))):
            yield f"{clean(metric.name, 60)} is {metric.value:.6g}, its windows or items give {own:.6g}"


def _mean(array: NDArray[Any]) -> float:
    import numpy as np

    return float(np.asarray(array, np.float64).mean()) if array.size else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _provenance(record: Record) -> Iterator[tuple[str, bool]]:
    facts = record.provenance
    environment, model = facts.get("environment"), facts.get("model")
    versions = environment.get("versions") if isinstance(environment, dict) else None
    yield "the commit of the code", bool(facts.get("commit"))
    yield "the processor", isinstance(environment, dict) and bool(environment.get("processor"))
    yield "the version of torch", isinstance(versions, dict) and bool(versions.get("torch"))
    yield "the model's revision", bool(revision_of(record))
    yield "the hashes of the model's files", isinstance(model, dict) and bool(model.get("files"))
    yield "the hash of the evaluated text", bool(evaluated_on(record))


def _ground(record: Record) -> tuple[str, ...]:
    return (record.model, revision_of(record), record.protocol, evaluated_on(record), record.dtype)


def _named(record: Record) -> str:
    seed = "" if record.seed is None else f" seed {record.seed}"
    return clean(f"{record.model} {record.method} {record.target}{seed}", 160)


def stores_of(board: Path) -> list[Path]:
    """The stores that a leaderboard's folder has taken in, by name."""
    folder = board / STORES
    return (
        sorted(
            path for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / "store.json").is_file()
        )
        if folder.is_dir()
        else []
    )


def check_name(name: str) -> None:
    """Raises ValueError for what is no name of a store on a leaderboard."""
    if not NAME.fullmatch(name):
        raise ValueError(f"name {name!r:.80}: use letters, digits, dots, dashes and underscores")


def accept(submission: Submission, board: Path, name: str) -> Path:
    """Copy a store that lacks nothing to BOARD/stores/NAME and return that folder.

    Only records that were read, and values of finished ones as they are verified while they are copied, are written
    anew; commands, reasons and warnings lose the folders of their machine. A store of that name is replaced once the
    new one is whole. Raises ValueError for what lacks something or a name that is none, `StoreError` for values that
    changed since, `MachineError` where files cannot be written.
    """
    if submission.missing:
        raise ValueError(f"{len(submission.missing)} things are missing")
    check_name(name)
    folder = board / STORES / name
    fresh, former = (board / STORES / f".{name}.{state}" for state in ("new", "old"))
    try:
        _restore(folder, former)
        shutil.rmtree(fresh, ignore_errors=True)
        with Store(fresh, create=True, writer=re.sub(r"[^A-Za-z0-9_-]", "-", name)) as store:
            for record in submission.records:
                store.append(private(record))
        (fresh / FOLDER).mkdir(exist_ok=True)
        kept = {record.values for record in submission.records if record.status == "done" and record.values}
        for values in sorted(kept):
            replace_file(fresh / FOLDER / values, read_values(submission.out, values, links=False))
        if folder.exists():
            folder.rename(former)
        try:
            fresh.rename(folder)
        except BaseException:
            _restore(folder, former)
            raise
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise fault("write", folder, error) from error
    return folder


def _restore(folder: Path, former: Path) -> None:
    """Put back the store that a replacement, cut short, had moved out of the way."""
    if former.is_dir() and not folder.exists():
        former.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def as_json(submission: Submission) -> dict[str, Any]:
    """What was found, for programs."""
    return {
        "store": str(submission.out),
        "accepted": not submission.missing,
        "missing": list(submission.missing),
        "notes": list(submission.notes),
    }


def listed(missing: Iterable[str]) -> str:
    """One line a thing, for a terminal."""
    return "\n".join(f"- {entry}" for entry in missing)
