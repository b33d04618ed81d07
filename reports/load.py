"""From a store to what a report shows: the records that count, and tidy data frames of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results.current import current
from bench.results.files import fault, replace_file
from bench.results.records import Record
from bench.results.rows import COLUMNS, tidy
from bench.results.segments import Store

__all__ = ["Loaded", "current", "figures_frame", "load", "matrices_frame", "write_parquet"]

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Loaded:
    """The current records of a store, how many older ones they replace, a line for every damaged piece."""

    records: tuple[Record, ...]
    superseded: int
    damage: tuple[str, ...]


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


def write_parquet(out: Path) -> Path:
    """Write the tidy rows of the store in `out` to OUT/report/results.parquet and return its path.

    Text is kept as it is: a Parquet file has no formulas. Raises `StoreError`, `MachineError`.
    """
    import io

    frame = figures_frame(load(out).records)
    # Refused and failed phases have an empty figure in CSV; a column of numbers has none.
    frame = frame.assign(
        value=_numbers(frame["value"]), seed=frame["seed"].astype("Int64"), metric=frame["metric"].astype(str)
    )
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    path = Path(out) / "report" / "results.parquet"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, buffer.getvalue())
    except OSError as error:
        raise fault("write", path, error) from error
    return path


def _numbers(column: pd.Series) -> pd.Series:
    """The column as float64, missing where it holds no number."""
    import pandas as pd

    return pd.to_numeric(column, errors="coerce").astype("float64")


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
