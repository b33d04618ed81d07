"""The alarms that records hold: which cell, what kind, which block and matrix, how far beyond its limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench.results.records import Record
from reports.comparison import asked_of
from reports.tables import Table
from reports.wording import MISSING, clean, escape_markdown, figure

__all__ = ["guard_table", "markdown_lines"]

_COLUMNS = ("Model", "Method", "Target", "Seed", "Alarm", "Block", "Matrix", "Value", "Limit")


def guard_table(records: Iterable[Record]) -> Table:
    """One row per alarm of finished records, in their order."""
    rows = [row for record in records if record.status == "done" for row in _rows(record)]
    return Table(caption="Alarms", columns=_COLUMNS, rows=tuple(rows), headers=7)


def _rows(record: Record) -> Iterator[tuple[str, ...]]:
    found = record.provenance.get("guards")
    for alarm in found if isinstance(found, list) else ():
        if not isinstance(alarm, dict):
            continue
        block = alarm.get("block")
        yield (
            *(clean(record.model), clean(asked_of(record)), clean(record.target)),
            MISSING if record.seed is None else str(record.seed),
            clean(alarm.get("kind", "")).replace("-", " "),
            MISSING if block is None else clean(block),
            clean(alarm.get("matrix") or MISSING),
            *(_number(alarm.get(name)) for name in ("value", "limit")),
        )


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    return figure(value, "1")


def markdown_lines(records: Iterable[Record]) -> list[str]:
    """The section in Markdown; nothing where no record holds an alarm."""
    from reports.markdown import markdown_table

    table = guard_table(records)
    return [f"## {escape_markdown(table.caption)}", "", *markdown_table(table), ""] if table.rows else []
