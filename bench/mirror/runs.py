"""From the records of a store to the W&B runs that mirror them: plain values, no wandb."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from bench.results.current import current
from bench.results.keys import digest
from bench.results.records import MatrixFigures, Record, encode
from bench.results.rows import COLUMNS, tidy

__all__ = ["KERNELS", "Destination", "MirrorRun", "MirrorTable", "mirrored"]

FORMAT: Final = 1
"""Raised when a run would be written otherwise from the same records: every run is then written anew."""

KERNELS: Final = "kernels"
RECORD_COLUMNS: Final = (
    *("phase", "protocol", "status", "reason", "started", "finished", "superseded", "record"),
)
TABLE_ROWS: Final = 10_000
"""W&B writes no more rows of a table to its file, and cuts the rest without a word."""
_KERNEL_COLUMNS: Final = (
    *("format", "shape", "batch", "sparsity", "pattern", "dtype", "threads", "median_s", "setup_s"),
    *("speedup_vs_dense", "roofline_fraction", "max_rel_error", "verdict"),
)
_SPREAD: Final = ("min", "q25", "median", "q75", "max")
_DECODE_COLUMNS: Final = (
    *("model", "method", "target", "seed", "dtype", "protocol", "metric", "unit", "value"),
    *_SPREAD,
)
_CURVES: Final = ("heldout_error", "calibration_error")


@dataclass(frozen=True)
class Destination:
    """Where runs go: a W&B project and entity ("" is the account's default), and tags for every run."""

    project: str
    entity: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class MirrorTable:
    """A table: column names, and rows of text, numbers, true, false or None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class MirrorRun:
    """One W&B run, completely: writing it again gives the same run under the same id.

    `figures` are one row of numbers, `curves` one row a block; `reason` is what failed or was refused. No table has more
    than `TABLE_ROWS` rows: the rest of `results` is `results-2` and so on. `report` asks for the store's report as an
    artifact.
    """

    id: str
    name: str
    job_type: str
    group: str
    destination: Destination
    tags: tuple[str, ...]
    reason: str
    exit_code: int
    config: dict[str, Any]
    figures: dict[str, int | float | None]
    notes: dict[str, str] = field(default_factory=dict)
    curves: tuple[dict[str, int | float | None], ...] = ()
    tables: dict[str, MirrorTable] = field(default_factory=dict)
    report: bool = False

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal digits, of all that is written; NaN and infinities count too."""
        plain = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(plain.encode("ascii")).hexdigest()


def mirrored(
    history: Sequence[Record], *, store: str, name: str, destination: Destination
) -> Iterator[MirrorRun]:
    """The runs of a store: one a cell, in order of first record, then one for the whole of it.

    `history` holds every record in order of `finished`; `store` is the store's id, `name` the folder's. Kernel
    rows, each a cell of its own, lie in the last run's table. Ids depend on store and cell alone, so that runs of the
    same results are the same runs.
    """
    shared = {"group": f"{name[:80]}-{store}", "destination": destination}
    latest = {record.key: record for record in history}
    cells: dict[str, list[Record]] = {}
    for record in history:
        if record.phase != KERNELS:
            cells.setdefault(record.cell, []).append(record)
    for cell, records in cells.items():
        newest = [record for record in records if latest[record.key] is record]
        yield _cell_run(_run_id(store, cell), store, records, newest, shared)
    yield _whole_run(_run_id(store, ""), store, name, history, latest, shared)


def _run_id(store: str, cell: str) -> str:
    return digest({"store": store, "cell": cell})


def _cell_run(
    run_id: str, store: str, records: list[Record], newest: list[Record], shared: Mapping[str, Any]
) -> MirrorRun:
    last = newest[-1]
    status = _status(newest)
    figures: dict[str, int | float | None] = {}
    notes: dict[str, str] = {}
    for name, record in _named(newest):
        for metric in record.metrics:
            figures[f"{name}/{metric.name}"] = metric.value
        for part, value in record.seconds.items():
            figures[f"{name}/seconds/{part}"] = value
        notes[f"{name}/status"] = record.status
        if record.reason:
            notes[f"{name}/reason"] = record.reason
    matrices = next((record.matrices for record in reversed(newest) if record.matrices), ())
    tables = {"records": _records_table(records, newest)}
    if matrices:
        tables["matrices"] = _matrices_table(matrices)
    if decode := _decode_rows(newest):
        tables["decode"] = MirrorTable(_DECODE_COLUMNS, decode)
    seed = "" if last.seed is None else f" seed {last.seed}"
    recovery = str(last.parameters.get("recovery") or "")
    words = (last.model, last.method, last.target, *([f"+{recovery}"] if recovery else []))
    return MirrorRun(
        id=run_id,
        name=(" ".join(words) + seed)[:128],
        job_type="cell",
        tags=_tags(shared["destination"].tags, status),
        reason="; ".join(record.reason for record in newest if record.reason)[:1000],
        exit_code=1 if status == "failed" else 0,
        config=_config(store, status, newest),
        figures=figures,
        notes=notes,
        curves=tuple(_curves(matrices)),
        tables=dict(_numbered(tables)),
        **shared,
    )


def _whole_run(
    run_id: str,
    store: str,
    name: str,
    history: Sequence[Record],
    latest: Mapping[Any, Record],
    shared: Mapping[str, Any],
) -> MirrorRun:
    speaking = current(history)
    counts = {
        f"records/{status}": sum(record.status == status for record in speaking)
        for status in ("done", "refused", "failed")
    }
    results = tuple(tuple(row[column] for column in COLUMNS) for row in tidy(speaking))
    tables = {"results": MirrorTable(COLUMNS, results)}
    kernels = [record for record in history if record.phase == KERNELS]
    if kernels:
        newest = [record for record in kernels if latest[record.key] is record]
        tables["records"] = _records_table(kernels, newest)
        tables["kernels"] = _kernels_table(newest)
    if decode := _decode_rows(speaking):
        tables["decode"] = MirrorTable(_DECODE_COLUMNS, decode)
    return MirrorRun(
        id=run_id,
        name=f"{name[:100]}: report",
        job_type="report",
        tags=_tags(shared["destination"].tags, "report"),
        reason="",
        exit_code=0,
        # The history is part of what the report shows (superseded records): a new one must change the digest.
        config={"store": store, "records": len(history), "content": _content(history)},
        figures=dict(counts),
        tables=dict(_numbered(tables)),
        report=True,
        **shared,
    )


def _status(newest: Iterable[Record]) -> str:
    found = {record.status for record in newest}
    return next((status for status in ("failed", "refused") if status in found), "done")


def _tags(asked: tuple[str, ...], own: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*asked, own)))


def _named(newest: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    """Records by phase, and by phase@protocol too where a phase was done under several; the latest has the bare name."""
    for record in newest:
        alike = [other for other in newest if other.phase == record.phase]
        if len(alike) > 1:
            yield f"{record.phase}@{record.protocol}", record
        if alike[-1] is record:
            yield record.phase, record


def _config(store: str, status: str, newest: Sequence[Record]) -> dict[str, Any]:
    last = newest[-1]
    phases = {}
    for name, record in _named(newest):
        plain = json.loads(encode(record))
        fields = ("protocol", "status", "environment", "sources", "started", "finished", "provenance")
        phases[name] = {entry: plain[entry] for entry in fields} | {"warnings": list(record.warnings)}
    drawn = next((record.calibration for record in newest if record.calibration), "")
    return {
        "store": store,
        "cell": last.cell,
        "subject": last.subject,
        "status": status,
        "model": last.model,
        "method": last.method,
        "target": last.target,
        "seed": last.seed,
        "dtype": last.dtype,
        "calibration": drawn,
        "parameters": json.loads(encode(last))["parameters"],
        "phases": phases,
    }


def _numbered(tables: Mapping[str, MirrorTable]) -> Iterator[tuple[str, MirrorTable]]:
    for name, table in tables.items():
        for part, begin in enumerate(range(0, max(1, len(table.rows)), TABLE_ROWS), 1):
            rows = table.rows[begin : begin + TABLE_ROWS]
            yield (name if part == 1 else f"{name}-{part}"), MirrorTable(table.columns, rows)


def _records_table(records: Sequence[Record], newest: Sequence[Record]) -> MirrorTable:
    speaking = {id(record) for record in newest}
    rows = tuple(
        (
            *(record.phase, record.protocol, record.status, record.reason, record.started, record.finished),
            id(record) not in speaking,
            encode(record).decode("ascii"),
        )
        for record in records
    )
    return MirrorTable(RECORD_COLUMNS, rows)


def _matrices_table(matrices: Sequence[MatrixFigures]) -> MirrorTable:
    columns = tuple(field.name for field in fields(MatrixFigures))
    return MirrorTable(
        columns, tuple(tuple(getattr(matrix, name) for name in columns) for matrix in matrices)
    )


def _curves(matrices: Sequence[MatrixFigures]) -> Iterator[dict[str, int | float | None]]:
    """One row a block: sums over its matrices, the mean of their relative errors, and each matrix by its name."""
    blocks: dict[int, list[MatrixFigures]] = {}
    for matrix in matrices:
        blocks.setdefault(matrix.block, []).append(matrix)
    for block, inside in sorted(blocks.items()):
        size = sum(matrix.rows * matrix.columns for matrix in inside)
        removed = sum(matrix.removed for matrix in inside)
        row: dict[str, int | float | None] = {
            "block": block,
            "block/sparsity": removed / size if size else None,
            "block/seconds": sum(matrix.seconds for matrix in inside),
        }
        for error in _CURVES:
            values = [getattr(matrix, error) for matrix in inside]
            measured = [value for value in values if value is not None]
            if measured:
                row[f"block/{error}_mean"] = sum(measured) / len(measured)
            row |= {
                f"block/{error}/{matrix.name}": value
                for matrix, value in zip(inside, values, strict=True)
                if value is not None
            }
        yield row


def _decode_rows(records: Iterable[Record]) -> tuple[tuple[Any, ...], ...]:
    rows = []
    for record in records:
        if record.phase != "decode" or record.status != "done":
            continue
        spreads = record.provenance.get("spread")
        for metric in record.metrics:
            spread = spreads.get(metric.name) if isinstance(spreads, dict) else None
            found = spread if isinstance(spread, dict) else {}
            rows.append(
                (
                    *(record.model, record.method, record.target, record.seed, record.dtype, record.protocol),
                    *(metric.name, metric.unit, metric.value),
                    *(_scalar(found.get(name)) for name in _SPREAD),
                )
            )
    return tuple(rows)


def _kernels_table(newest: Iterable[Record]) -> MirrorTable:
    """The rows as `bench kernels` prints them; fields a row lacks are None."""
    rows = [record.provenance.get("row") for record in newest if record.status == "done"]
    found = [row for row in rows if isinstance(row, dict)]
    more = sorted({name for row in found for name in row} - set(_KERNEL_COLUMNS))
    columns = (*_KERNEL_COLUMNS, *more)
    return MirrorTable(columns, tuple(tuple(_scalar(row.get(name)) for name in columns) for row in found))


def _scalar(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, sort_keys=True)


def _content(history: Iterable[Record]) -> str:
    """Digest of all records, whatever their order."""
    lines = sorted(hashlib.sha256(encode(record)).hexdigest() for record in history)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()
