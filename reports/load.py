"""From a store to what a report shows: the records that count, and tidy data frames of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results.records import Record, moment
from bench.results.rows import COLUMNS, tidy
from bench.results.segments import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Loaded:
    """The current records of a store, how many older ones they replace, a line for every damaged piece."""

    records: tuple[Record, ...]
    superseded: int
    damage: tuple[str, ...]


def current(records: Iterable[Record]) -> list[Record]:
    """Of every (subject, phase, protocol) the latest finished record, in the order they first appeared.

    A rerun under changed code has another cell but the same subject: the figures of the older code stay in
    the store, and out of the comparison. So does a refusal or failure of what was asked for again and done
    since.
    """
    latest: dict[tuple[str, str, str], Record] = {}
    finished: dict[tuple[str, ...], Record] = {}
    for record in sorted(records, key=lambda record: moment(record.finished)):
        latest[record.subject, record.phase, record.protocol] = record
        if record.status == "done":
            finished[_asked(record)] = record
    return [record for record in latest.values() if not _made_good(record, finished.get(_asked(record)))]


def _asked(record: Record) -> tuple[str, ...]:
    """What was asked for, whatever came of it: a cell whose model was missing has no revision to go by."""
    parameters = json.dumps(record.parameters, sort_keys=True)
    return (
        record.model,
        record.method,
        record.target,
        str(record.seed),
        record.dtype,
        record.calibration,
        parameters,
    )


def _made_good(record: Record, later: Record | None) -> bool:
    return record.status != "done" and later is not None and moment(later.finished) > moment(record.finished)


def load(out: Path) -> Loaded:
    """Read the store of an output folder. Raises `StoreError` (none, or a newer one), `MachineError`."""
    store = Store(out)
    history = store.history()
    records = current(history)
    return Loaded(tuple(records), len(history) - len(records), tuple(str(piece) for piece in store.torn))


def figures_frame(records: Sequence[Record]) -> pd.DataFrame:
    """The tidy rows of `records` as a frame with exactly the columns of `bench report --format csv`."""
    import pandas as pd

    return pd.DataFrame.from_records(list(tidy(records)), columns=list(COLUMNS))


def matrices_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per weight matrix of every pruned cell: names, shape, removed weights and relative errors."""
    import pandas as pd

    columns = [
        *("model", "method", "target", "seed", "block", "name", "rows", "columns", "removed"),
        *("calibration_error", "heldout_error", "damping", "dead_columns", "escalations"),
    ]
    rows = [
        {
            "model": record.model,
            "method": record.method,
            "target": record.target,
            "seed": record.seed,
            **{name: getattr(matrix, name) for name in columns[4:]},
        }
        for record in records
        if record.status == "done"
        for matrix in record.matrices
    ]
    return pd.DataFrame.from_records(rows, columns=columns)
