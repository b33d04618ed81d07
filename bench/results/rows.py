"""Tidy rows: one figure a row, under column names that scripts may rely on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from bench.results.records import Record

COLUMNS: Final = (
    *("cell", "status", "model", "method", "target", "seed", "protocol"),
    *("metric", "unit", "value", "recovery"),
)

Value = str | int | float | None


def tidy(records: Iterable[Record]) -> Iterator[dict[str, Value]]:
    """One row per metric of every record, exactly `COLUMNS`, in the order given.

    A refused or failed phase gives one row whose metric, unit and value are empty strings. `seed` is None
    where the method draws no calibration text; `value` is None where the figure could not be measured;
    `recovery` says what trained the model after pruning, and is empty for one-shot results.
    """
    for record in records:
        fixed: dict[str, Value] = {
            "cell": record.cell,
            "status": record.status,
            "model": record.model,
            "method": record.method,
            "target": record.target,
            "seed": record.seed,
            "protocol": record.protocol,
        }
        recovery = {"recovery": str(record.parameters.get("recovery", ""))}
        if record.status != "done":
            yield {**fixed, "metric": "", "unit": "", "value": "", **recovery}
            continue
        for metric in record.metrics:
            yield {**fixed, "metric": metric.name, "unit": metric.unit, "value": metric.value, **recovery}
