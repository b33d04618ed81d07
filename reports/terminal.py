"""The comparison as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bench.results.records import Record
from reports.comparison import DENSE, QUALITY_PHASE, SIZE_PHASE, Group, Row, asked_of, compare
from reports.load import current
from reports.tables import NO_SUMMARY, SINGLE_NOTE, figure_of, measured_columns, title_of
from reports.wording import MISSING, clean, figure, percent_change

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as Grid


def terminal_table(records: Iterable[Record]) -> RenderableType:
    """The comparison for a terminal: one table per model and evaluation protocol, then the rest."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group as Stack
    from rich.table import Table as Grid
    from rich.text import Text

    comparison = compare(current(records))
    parts: list[Any] = []
    for group in comparison.groups:
        title = Text(title_of(group), style="bold")
        measured = [column for column in measured_columns(group) if not column[2].startswith("acc_norm/")]
        if measured and not any(row.perplexity.count for row in group.rows):
            parts += [title, _measured_grid(group, measured)]
            continue
        grid = Grid(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        heading, memory = ("Memory", "peak_memory")
        if any((SIZE_PHASE, "added_memory") in row.figures for row in group.rows):
            heading, memory = ("Added\nmemory", "added_memory")
        times = {"Prune": "prune_time"} | ({"Recover": "recover_time"} if group.key.recovered else {})
        columns = ("Method", "Target", "Perplexity", "Change", "KL", "Flips", "Sparse", *times, heading)
        for index, column in enumerate(columns):
            named = index < 2
            grid.add_column(column, justify="left" if named else "right", overflow="fold", no_wrap=not named)
        for row in group.rows:
            cells = (
                *(clean(row.name, 60), clean(row.target, 30)),
                *(figure_of(row, QUALITY_PHASE, "perplexity"), _mean_change(row)),
                *(_mean(row, QUALITY_PHASE, name) for name in ("kl_to_dense", "top1_flip_rate")),
                *(_mean(row, SIZE_PHASE, name) for name in ("sparsity", *times.values(), memory)),
            )
            grid.add_row(*(Text(cell) for cell in cells), style="bold" if row.method == DENSE else "")
        parts.append(grid)
    if comparison.groups:
        parts.append(Text(SINGLE_NOTE, style="dim"))
    if comparison.kernels:
        from reports.kernels import kernel_rows, terminal_kernels

        parts += [Text("Kernels", style="bold"), terminal_kernels(kernel_rows(comparison.kernels))]
    if comparison.problems:
        parts.append(Text("Refused and failed", style="bold"))
    for record in comparison.problems:
        seed = "" if record.seed is None else f" seed {record.seed}"
        where = f"{record.status:8} {record.model} {asked_of(record)} {record.target}{seed}"
        parts.append(Text(f"{clean(where)}: {clean(record.reason, 1000) or 'no reason recorded'}"))
    if not parts:
        parts.append(Text("No results yet."))
    return Stack(*parts)


def _measured_grid(group: Group, measured: Sequence[tuple[str, str, str]]) -> Grid:
    """Accuracies or speeds, a row for every figure, since a terminal has no room for many tasks side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("Method", "Target", "Figure", "Value"):
        grid.add_column(column, justify="right" if column == "Value" else "left", overflow="fold")
    for row in group.rows:
        for heading, phase, name in measured:
            if (phase, name) not in row.figures:
                continue
            cells = (clean(row.name, 60), clean(row.target, 30), heading, _mean(row, phase, name))
            grid.add_row(*(Text(cell) for cell in cells), style="bold" if row.method == DENSE else "")
    return grid


def _mean(row: Row, phase: str, name: str) -> str:
    # A terminal has no room for every interval: the page gives them.
    unit = row.units.get((phase, name), "1")
    mean = row.figures.get((phase, name), NO_SUMMARY).mean
    return figure(mean, "1" if unit == "nat/token" else unit, name, share_digits=1)


def _mean_change(row: Row) -> str:
    return MISSING if row.method == DENSE else percent_change(row.change.mean)
