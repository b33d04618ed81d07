"""Who keeps most quality at each target, and which rows did not do what was asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from reports.comparison import DENSE, SIZE_PHASE, Group, Row
from reports.statistics import Summary
from reports.targets import asked_sparsity

BROKEN: Final = 10.0
"""A perplexity beyond this many times the dense one is called broken rather than worse."""


@dataclass(frozen=True)
class Standing:
    """The methods at one target of one group, best first; `note` says what the figures cannot settle."""

    target: str
    rows: tuple[Row, ...]
    note: str


def standings(group: Group) -> list[Standing]:
    """Per target the rows that have a perplexity, best first, with a note on what overlap leaves open."""
    found: list[Standing] = []
    for target in group.targets:
        rows = [row for row in group.rows if row.target == target and row.method != DENSE and row.rank[0] < 2]
        if rows:
            found.append(Standing(target, tuple(sorted(rows, key=lambda row: row.rank)), _unsettled(rows)))
    return found


def _unsettled(rows: Sequence[Row]) -> str:
    finite = sorted((row for row in rows if row.rank[0] == 0), key=lambda row: row.rank)
    if len(finite) < 2:
        return ""
    first, second = finite[0].perplexity, finite[1].perplexity
    if first.mean == second.mean:
        return "The first two are level."
    intervals = [summary for summary in (first, second) if summary.half_width is not None]
    if intervals and (first.high or 0.0) >= (second.low or 0.0):
        return "The intervals over seeds overlap: the order of the first two is not settled."
    return ""


def single_seed(rows: Iterable[Row]) -> bool:
    """Whether some row that draws calibration text has one seed only, and so no interval."""
    return any(len(row.seeds) == 1 for row in rows)


def sparsity_of(row: Row) -> str:
    """The metric that a row's target speaks of: with `--layers` it is a share of the matrices selected."""
    selected = "sparsity_selected"
    return selected if (SIZE_PHASE, selected) in row.figures else "sparsity"


def missed_targets(group: Group) -> list[Row]:
    """Rows whose achieved sparsity is more than a tenth of a point off what the target asks for."""
    missed = []
    for row in group.rows:
        achieved = row.figures.get((SIZE_PHASE, sparsity_of(row)), Summary(None, None, 0)).mean
        asked = asked_sparsity(row.target)
        if achieved is not None and asked is not None and not abs(achieved - asked) <= 0.001:
            missed.append(row)
    return missed
