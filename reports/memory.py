"""Measured peaks of memory beside what was allowed, foretold and cannot be done without."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bench.results.records import Record
from reports.comparison import SIZE_PHASE, asked_of
from reports.tables import Table
from reports.wording import clean, escape_markdown, figure

__all__ = ["Held", "held", "markdown_lines", "memory_table"]

_COLUMNS: Final = (
    *("Model", "Method", "Target", "Layers", "Phase", "Type"),
    *("Budget", "Predicted", "Measured", "Bound", "Within"),
)
_SHARE: Final = 1.3
_NOTE: Final = (
    "Measured: the highest anonymous resident memory of the process (on a GPU: what torch allocated there), the interpreter "
    "and its libraries included. Bound: what the process held before, and 1.3 times a block, three of the largest float32 "
    "Hessian, the hidden states of the calibration windows and the token table. The model itself is in no term."
)


@dataclass(frozen=True, slots=True)
class Held:
    """A phase's memory in bytes; ``bound`` is None where none is stated, ``parameters`` and ``stored`` where not known."""

    record: Record
    budget: float
    predicted: float | None
    peak: float
    bound: float | None
    parameters: float | None
    stored: float | None


def held(records: Iterable[Record]) -> list[Held]:
    """Finished phases that a memory budget was set for, smallest model first."""
    found = [entry for record in records if (entry := _held(record)) is not None]
    return sorted(found, key=lambda entry: (entry.parameters or 0, entry.record.model, entry.record.method))


def memory_table(records: Iterable[Record]) -> Table:
    """A row a phase; no rows where no budget was set."""
    rows = [
        (
            *(clean(entry.record.model), clean(asked_of(entry.record)), clean(entry.record.target)),
            clean(entry.record.parameters.get("layers") or "all"),
            *(clean(entry.record.phase), clean(entry.record.dtype)),
            *(figure(value, "byte") for value in (entry.budget, entry.predicted, entry.peak, entry.bound)),
            _within(entry),
        )
        for entry in held(records)
    ]
    return Table(caption="Memory", columns=_COLUMNS, rows=tuple(rows), notes=(_NOTE,), headers=6)


def _held(record: Record) -> Held | None:
    facts = record.provenance.get("memory")
    if record.status != "done" or not isinstance(facts, dict):
        return None
    budget, peak = _number(facts.get("budget")), _number(facts.get("peak"))
    if budget is None or peak is None:
        return None
    least, base = facts.get("least"), _number(facts.get("base"))
    bound = None
    if isinstance(least, dict) and base is not None:
        terms = [_number(value) for value in least.values()]
        if None not in terms:
            bound = base + _SHARE * math.fsum(term for term in terms if term is not None)
    sized = record.phase == SIZE_PHASE
    return Held(
        record,
        budget,
        _number(facts.get("predicted")),
        peak,
        bound,
        record.metric("parameters") if sized else None,
        record.metric("bytes") if sized else None,
    )


def _within(entry: Held) -> str:
    limits = {"budget": entry.budget, "bound": entry.bound}
    over = [name for name, limit in limits.items() if limit is not None and entry.peak > limit]
    return f"over the {' and the '.join(over)}" if over else "yes"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        return None
    return float(value)


def markdown_lines(records: Iterable[Record]) -> list[str]:
    """The section in Markdown; nothing where no budget was set."""
    from reports.markdown import markdown_table

    table = memory_table(records)
    if not table.rows:
        return []
    return [f"## {table.caption}", "", *markdown_table(table), "", *map(escape_markdown, table.notes), ""]
