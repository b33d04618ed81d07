"""What the page shows of one group: its tables, verdicts and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from reports.comparison import Group
from reports.contests import Contest, verdict_table
from reports.figures.layers import error_map, sparsity_map
from reports.figures.pareto import pareto_charts
from reports.figures.quality import quality_chart, seeds_chart
from reports.figures.style import Chart
from reports.tables import Table, cost_table, other_table, quality_table, title_of
from reports.wording import clean

MOST_ROWS: Final = 120
"""Rows of one table on the overview page; the page of all results holds every one."""


@dataclass(frozen=True)
class Section:
    """What the page shows of one group; `fronts` are small plots that stand side by side."""

    name: str
    title: str
    note: str
    quality: Table
    verdicts: tuple[Table, ...]
    cost: Table
    other: Table
    charts: tuple[Chart, ...]
    fronts: tuple[Chart, ...]
    maps: tuple[Chart, ...]

    @property
    def drawn(self) -> tuple[Chart, ...]:
        """All plots of the section."""
        return (*self.charts, *self.fronts, *self.maps)


def section(index: int, group: Group, judged: Sequence[Contest], beside: Sequence[Group]) -> Section:
    """The section of one group; `beside` are the groups that may hold speeds of the same models."""
    name = f"group-{index}"
    charts, maps = [], []
    quality = quality_chart(group)
    if quality is not None:
        caption = "Perplexity by target and method; the dashed line is the dense model."
        charts.append(Chart(f"{name}-quality", caption, quality))
    seeds = seeds_chart(group)
    if seeds is not None:
        charts.append(Chart(f"{name}-seeds", seeds[1], seeds[0]))
    for kind, drawn in (("sparsity", sparsity_map(group)), ("errors", error_map(group))):
        if drawn is not None:
            maps.append(Chart(f"{name}-{kind}", drawn[1], drawn[0]))
    fronts = [
        Chart(f"{name}-front-{number}", caption, specification)
        for number, (_, specification, caption) in enumerate(pareto_charts(group, beside), 1)
    ]
    return Section(
        name=name,
        title=title_of(group),
        note=f"Model revision {clean(group.revision)}." if group.revision else "",
        quality=_cut(quality_table(group)),
        verdicts=tuple(_cut(verdict_table(contest)) for contest in judged if contest.pairs),
        cost=_cut(cost_table(group)),
        other=_cut(other_table(group)),
        charts=tuple(charts),
        fronts=tuple(fronts),
        maps=tuple(maps),
    )


def _cut(table: Table) -> Table:
    if len(table.rows) <= MOST_ROWS:
        return table
    note = f"The first {MOST_ROWS} of {len(table.rows):,} rows; all figures stand in results.csv."
    return replace(table, rows=table.rows[:MOST_ROWS], notes=(note, *table.notes))
