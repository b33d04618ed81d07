"""A comparison of two stores for a terminal, for a pull request, and for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from bench.results.records import Record
from reports.compare.verdicts import Change, Changes
from reports.comparison import asked_of
from reports.markdown import markdown_table
from reports.tables import Table
from reports.wording import MISSING, clean, escape_markdown, figure, metric_title
from reports.writing import number

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["as_json", "change_table", "headline", "markdown_summary", "terminal_summary"]

_MOST_ROWS: Final = 200
"""Rows of one table of a pull request's comment, which may have 65,536 characters."""
_COLUMNS: Final = ("Model", "Method", "Target", "Seed", "Figure", "BASE", "NEW", "Change", "Tolerance", "p")
_LOST: Final = ("Model", "Method", "Target", "Seed", "Phase", "What became of it")
_NOTE: Final = (
    "Times are ratios to a reference operator timed in the same run, and compared in equal environments only. "
    "p is corrected by Holm; a dash where the tolerance alone decides."
)


def headline(changes: Changes) -> str:
    """The outcome in one sentence."""
    counts = [
        (len(changes.of("regressed")), "regressed"),
        (len(changes.missing), "missing in NEW"),
        (len(changes.of("improved")), "improved"),
        (len(changes.of("unchanged")), "unchanged"),
        (len(changes.of("not comparable")), "not comparable"),
        (len(changes.new), "new"),
        (len(changes.damage), "damaged in NEW"),
    ]
    told = ", ".join(f"{count:,} {name}" for count, name in counts if count)
    return f"{'Regression' if changes.regressed else 'No regression'}: {told or 'nothing to compare'}."


def change_table(caption: str, found: Sequence[Change]) -> Table:
    """Figures that moved, or all of them."""
    return Table(caption, (*_COLUMNS, "Note"), tuple(map(_cells, found)), headers=5, words=1)


def _cells(change: Change) -> tuple[str, ...]:
    tested = change.difference
    return (
        clean(change.model, 60),
        clean(change.method, 60),
        clean(change.target, 40),
        MISSING if change.seed is None else clean(change.seed, 20),
        _title(change),
        *(_figure(value, change) for value in (change.before, change.after)),
        _moved(change),
        _tolerance(change),
        MISSING if tested is None else _chance(tested.adjusted),
        clean(change.reason, 400),
    )


def _title(change: Change) -> str:
    title = metric_title(change.metric)
    return f"{title} / {clean(change.reference, 60)}" if change.reference else title


def _figure(value: float | None, change: Change) -> str:
    return figure(value, change.unit, change.metric)


def _moved(change: Change) -> str:
    if change.relative is not None:
        size = abs(100 * change.relative)
        return f"{100 * change.relative:+.{1 if size >= 10 else 2 if size >= 0.1 else 3}f} %" if size else "0"
    if change.before is None or change.after is None:
        return MISSING
    moved = change.after - change.before
    return f"{moved:+.3g}" if math.isfinite(moved) else "not finite"


def _tolerance(change: Change) -> str:
    if change.verdict == "not comparable" or change.before is None or not change.allowed:
        return MISSING
    if change.before and math.isfinite(change.before):
        return f"{100 * change.allowed / abs(change.before):.3g} %"
    return f"{change.allowed:.3g}"


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _lost_table(caption: str, lost: Iterable[tuple[Record, str]]) -> Table:
    rows = [
        (
            *(clean(part, 60) for part in (record.model, asked_of(record), record.target)),
            MISSING if record.seed is None else clean(record.seed, 20),
            f"{record.phase} {clean(record.protocol, 40)}".strip(),
            clean(reason, 400),
        )
        for record, reason in lost
    ]
    return Table(caption, _LOST, tuple(rows), headers=4, words=2)


def _tables(changes: Changes, everything: bool) -> list[Table]:
    found = [
        change_table("Regressed", changes.of("regressed")),
        _lost_table("Missing in NEW", [(entry.base, entry.reason) for entry in changes.missing]),
        change_table("Improved", changes.of("improved")),
    ]
    if everything:
        found += [
            change_table("Unchanged", changes.of("unchanged")),
            change_table("Not comparable", changes.of("not comparable")),
            _lost_table("New", [(record, "not in BASE") for record in changes.new]),
        ]
    return [table for table in found if table.rows]


def _reasons(changes: Changes) -> list[str]:
    """Why figures were not compared, each reason once with its count."""
    counted = Counter(change.reason for change in changes.of("not comparable"))
    return [
        f"{count:,} {'figure' if count == 1 else 'figures'} not compared: {clean(reason, 400)}"
        for reason, count in counted.most_common(12)
    ]


def terminal_summary(changes: Changes, *, everything: bool = False) -> RenderableType:
    """What moved, as tables; `everything` adds what did not."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    parts: list[Any] = []
    for table in _tables(changes, everything):
        grid = Grid(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        kept = [
            index for index in range(len(table.columns)) if index < 4 or any(row[index] for row in table.rows)
        ]
        for index in kept:
            right = index in table.figures
            grid.add_column(table.columns[index], justify="right" if right else "left", overflow="fold")
        for row in table.rows:
            grid.add_row(*(Text(row[index]) for index in kept))
        parts += [Text(table.caption, style="bold"), grid, Text("")]
    parts += [Text(reason, style="dim") for reason in _reasons(changes)]
    parts += [Text(f"warning: {clean(piece, 400)}") for piece in changes.damage]
    parts.append(Text(headline(changes), style="bold red" if changes.regressed else "bold"))
    return Group(*parts)


def markdown_summary(changes: Changes, *, everything: bool = False, title: str = "Comparison") -> str:
    """The same for a pull request or an issue; every name and reason is shown as text."""
    base, new = (escape_markdown(name) for name in changes.names)
    lines = [f"## {escape_markdown(title)}", "", f"**{headline(changes)}** BASE: {base}; NEW: {new}.", ""]
    for table in _tables(changes, everything):
        shown = Table(table.caption, table.columns, table.rows[:_MOST_ROWS], table.headers, table.words)
        lines += [f"### {table.caption}", "", *markdown_table(shown), ""]
        if len(table.rows) > _MOST_ROWS:
            lines += [f"And {len(table.rows) - _MOST_ROWS:,} more.", ""]
    lines += [f"- {escape_markdown(reason)}" for reason in _reasons(changes)]
    lines += [f"- Damaged: {escape_markdown(piece)}" for piece in changes.damage[:20]]
    lines += ["", _NOTE, ""]
    return "\n".join(lines)


def as_json(changes: Changes) -> dict[str, Any]:
    """One JSON object: `regressed`, counts, every figure with its verdict, missing and new cells."""
    return {
        "base": changes.names[0],
        "new": changes.names[1],
        "regressed": changes.regressed,
        "summary": headline(changes),
        "level": changes.level,
        "figures": [_json_change(change) for change in changes.figures],
        "missing": [{**_json_cell(entry.base), "reason": entry.reason} for entry in changes.missing],
        "added": [_json_cell(record) for record in changes.new],
        "damage": list(changes.damage),
    }


def _json_change(change: Change) -> dict[str, Any]:
    tested = change.difference
    return {
        "subject": change.subject,
        "phase": change.phase,
        "model": change.model,
        "method": change.method,
        "target": change.target,
        "seed": change.seed,
        "metric": change.metric,
        "unit": change.unit,
        "kind": change.kind,
        "base": number(change.before),
        "new": number(change.after),
        "relative": change.relative,
        "allowed": number(change.allowed),
        "reference": change.reference,
        "cells": change.cells,
        "p": None if tested is None else tested.adjusted,
        "verdict": change.verdict,
        "reason": change.reason,
    }


def _json_cell(record: Record) -> dict[str, Any]:
    return {
        "subject": record.subject,
        "phase": record.phase,
        "protocol": record.protocol,
        "model": record.model,
        "method": asked_of(record),
        "target": record.target,
        "seed": record.seed,
    }
