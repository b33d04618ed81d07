"""The overview in words: who keeps most quality at each target, by how much, and what remains open."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.comparison import (
    DENSE,
    QUALITY_PHASE,
    SIZE_PHASE,
    Comparison,
    Group,
    Row,
)
from reports.standings import BROKEN, Standing, missed_targets, single_seed, sparsity_of, standings
from reports.tables import change_of, figure_of, title_of
from reports.wording import clean


@dataclass(frozen=True)
class Finding:
    """One sentence or two on one target, the name that leads it apart so that a page can stress it."""

    target: str
    leader: str
    text: str


@dataclass(frozen=True)
class GroupOverview:
    """What one group shows, in words."""

    title: str
    dense: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def headline(comparison: Comparison) -> str:
    """How much was run and how it ended, in one sentence."""
    cells = {record.cell: "done" for record in comparison.records}
    cells |= {record.cell: record.status for record in comparison.problems}
    ends = [f"{list(cells.values()).count(status)} {status}" for status in ("done", "refused", "failed")]
    models = len({record.model for record in comparison.records})
    methods = len({record.method for record in comparison.records} - {DENSE})
    return (
        f"{_counted(len(cells), 'cell')} on {_counted(models, 'model')} with "
        f"{_counted(methods, 'pruning method')}: {', '.join(ends)}."
    )


def overview(comparison: Comparison) -> list[GroupOverview]:
    """One entry per group that was evaluated by perplexity."""
    return [
        _overview(group) for group in comparison.groups if any(row.perplexity.count for row in group.rows)
    ]


def _overview(group: Group) -> GroupOverview:
    dense = [row for row in group.dense if row.perplexity.mean is not None]
    figures = [
        f"{figure_of(row, QUALITY_PHASE, 'perplexity')}{f' ({clean(row.variant)})' if row.variant else ''}"
        for row in dense
    ]
    text = (
        f"The dense model has perplexity {' and '.join(figures)}."
        if dense
        else ("The dense model was not measured under this protocol, so no change can be given.")
    )
    return GroupOverview(
        title_of(group),
        text,
        tuple(_finding(standing) for standing in standings(group)),
        tuple(_notes(group)),
    )


def _finding(standing: Standing) -> Finding:
    first, *rest = standing.rows
    if not rest:
        return Finding(clean(standing.target), clean(first.name), f" has perplexity {_against(first)}.")
    following = ", ".join(f"{clean(row.name)} {_against(row)}" for row in rest)
    text = f" keeps most quality: perplexity {_against(first)}; then {following}."
    own, other = first.change.mean, rest[0].change.mean
    if own is not None and other is not None and 1 < own < other < math.inf:
        text += f" Its increase is {(own - 1) / (other - 1):.2f} of {clean(rest[0].name)}'s."
    if standing.note:
        text += f" {standing.note}"
    return Finding(clean(standing.target), clean(first.name), text)


def _against(row: Row) -> str:
    change = f" ({change_of(row)})" if row.change.mean is not None else ""
    return f"{figure_of(row, QUALITY_PHASE, 'perplexity')}{change}"


def _notes(group: Group) -> list[str]:
    notes = [
        f"{clean(row.name)} at {clean(row.target)} removed {figure_of(row, SIZE_PHASE, sparsity_of(row))} of the "
        f"{'prunable' if sparsity_of(row) == 'sparsity' else 'selected'} weights, not what the target asks for."
        for row in missed_targets(group)
    ]
    for row in group.rows:
        mean, change = row.perplexity.mean, row.change.mean
        if mean is not None and not math.isfinite(mean):
            notes.append(
                f"{clean(row.name)} at {clean(row.target)} has no finite perplexity: the model is broken."
            )
        elif change is not None and change > BROKEN:
            notes.append(
                f"{clean(row.name)} at {clean(row.target)} is more than {BROKEN:.0f} times dense: "
                "treat that model as broken, not as worse."
            )
    if group.key.recovered:
        notes.append(
            "Trained after pruning, each as long as its cost says: not to be ranked against one-shot results."
        )
    seeds = {row.seeds for row in group.rows if row.seeds}
    if single_seed(group.rows):
        alone = "one calibration seed" if len(seeds) == 1 else "one calibration seed for some rows"
        notes.append(f"Measured with {alone}: no interval exists, small differences may be chance.")
    elif seeds:
        notes.append("± is the half width of the 95 % Student interval over calibration seeds.")
    return notes


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
