"""The overview in words: who keeps most quality at each target, by how much, and what remains open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reports.comparison import (
    DENSE,
    QUALITY_PHASE,
    SIZE_PHASE,
    Comparison,
    Group,
    Row,
)
from reports.contests import Contest, Contests, standing_of
from reports.kernels import kernel_headline
from reports.standings import BROKEN, Standing, missed_targets, single_seed, sparsity_of, standings
from reports.tables import change_of, figure_of, title_of
from reports.verdicts import DIVERGENCE, PERPLEXITY
from reports.wording import clean

MOST_NAMED: Final = 6
"""Rows behind the first that a sentence names."""


@dataclass(frozen=True)
class Finding:
    """What to take at one target: the name that leads it apart so that a page can stress it, how sure that is, the cost."""

    target: str
    leader: str
    text: str
    sure: str = ""
    cost: str = ""


@dataclass(frozen=True)
class GroupOverview:
    """What one group shows, in words."""

    title: str
    dense: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def headline(comparison: Comparison) -> str:
    """How much was run and how it ended, in one sentence for models and one for kernels."""
    said = []
    cells = {record.cell: "done" for record in comparison.records}
    cells |= {record.cell: record.status for record in comparison.problems}
    if cells or not comparison.kernels:
        ends = [f"{list(cells.values()).count(status)} {status}" for status in ("done", "refused", "failed")]
        models = len({record.model for record in comparison.records})
        methods = len({record.method for record in comparison.records} - {DENSE})
        said.append(
            f"{_counted(len(cells), 'cell')} on {_counted(models, 'model')} with "
            f"{_counted(methods, 'pruning method')}: {', '.join(ends)}."
        )
    if comparison.kernels:
        said.append(kernel_headline(comparison.kernels))
    return " ".join(said)


def overview(comparison: Comparison, judged: Contests | None = None) -> list[GroupOverview]:
    """One entry per group that was evaluated by perplexity; `judged` holds the verdicts on its methods."""
    return [
        _overview(group, (judged or {}).get(group.key, ()))
        for group in comparison.groups
        if any(row.perplexity.count for row in group.rows)
    ]


def _overview(group: Group, judged: Sequence[Contest]) -> GroupOverview:
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
        tuple(
            _finding(standing, next((entry for entry in judged if entry.target == standing.target), None))
            for standing in standings(group)
        ),
        tuple(_notes(group)),
    )


def _finding(standing: Standing, contest: Contest | None) -> Finding:
    first, *rest = standing.rows
    target, cost = clean(standing.target), _cost(first)
    if not rest:
        return Finding(target, clean(first.name), f" has perplexity {_against(first)}.", cost=cost)
    level = _level(contest)
    following = ", ".join(f"{clean(row.name)} {_against(row)}" for row in rest[:MOST_NAMED])
    following += f" and {len(rest) - MOST_NAMED} more" if len(rest) > MOST_NAMED else ""
    keeps = "has the lowest perplexity," if level else "keeps most quality: perplexity"
    text = f" {keeps} {_against(first)}; then {following}."
    own, other = first.change.mean, rest[0].change.mean
    if own is not None and other is not None and 1 < own < other < math.inf and not level:
        text += f" Its increase is {(own - 1) / (other - 1):.2f} of {clean(rest[0].name)}'s."
    sure = _sure(contest)
    if standing.note and not sure:
        text += f" {standing.note}"
    return Finding(target, clean(first.name), text, sure, cost)


def _level(contest: Contest | None) -> list[int]:
    """The places of rows that perplexity cannot tell from the first."""
    if contest is None:
        return []
    found = ((place, contest.verdict(0, place, PERPLEXITY)) for place in range(1, len(contest.rows)))
    return [place for place, verdict in found if verdict and verdict.outcome == "not distinguishable"]


def _sure(contest: Contest | None) -> str:
    """How the first stands to the others, by perplexity and by KL; empty where no pair could be judged."""
    if contest is None:
        return ""
    names = [clean(row.name) for row in contest.rows]
    said: dict[str, list[str]] = {}
    covered, refused, settled = "", [], []
    for place in range(1, len(names)):
        verdict = contest.verdict(0, place, PERPLEXITY)
        if verdict is None:
            continue
        if verdict.difference is None or verdict.ratio is None:
            refused.append(f"{names[place]} ({clean(verdict.reason, 120)})")
            continue
        covered = covered or verdict.beyond
        settled.append((place, verdict.outcome))
        figures = f"{names[place]} (perplexity {standing_of(verdict)} of its)"
        said.setdefault(verdict.outcome, []).append(
            figures if len(said.get(verdict.outcome, ())) < 2 else names[place]
        )
    parts = [
        f"{words} {_listed(said[outcome])}"
        for outcome, words in (
            ("better", "better than"),
            ("not distinguishable", "not distinguishable from"),
            ("worse", "worse than"),
        )
        if outcome in said
    ]
    if not parts:
        return ""
    text = f"{names[0]} is {'; '.join(parts)}; 95 % intervals over {covered}."
    text += _divergence(contest, settled, names)
    return text + (f" Not compared: {_listed(refused[:3])}." if refused else "")


def _divergence(contest: Contest, settled: Sequence[tuple[int, str]], names: Sequence[str]) -> str:
    """Whether KL to dense says the same as perplexity of the first against each of the others."""
    other: dict[str, list[str]] = {}
    for place, outcome in settled:
        verdict = contest.verdict(0, place, DIVERGENCE)
        if verdict is None or verdict.difference is None:
            return ""
        if verdict.outcome != outcome:
            other.setdefault(verdict.outcome, []).append(names[place])
    if not other:
        return " KL to dense says the same."
    words = {
        "better": "better than",
        "worse": "worse than",
        "not distinguishable": "not distinguishable from",
    }
    return f" By KL to dense it is {'; '.join(f'{words[key]} {_listed(found)}' for key, found in other.items())}."


def _cost(row: Row) -> str:
    """What the first took and what is left of the model, as far as it was measured."""
    known = {
        name
        for phase, name in row.figures
        if phase == SIZE_PHASE and row.figures[phase, name].mean is not None
    }
    memory = "added_memory" if "added_memory" in known else "peak_memory"
    took = [
        f"{figure_of(row, SIZE_PHASE, name)}{words}"
        for name, words in (
            ("prune_time", " to prune"),
            (memory, " of memory" if memory == "added_memory" else " at most"),
        )
        if name in known
    ]
    left = [
        f"{figure_of(row, SIZE_PHASE, name)} {words}"
        for name, words in (
            ("parameters_nonzero", "parameters not zero"),
            ("bytes", "stored dense"),
            ("bytes_bitmap", "stored as bitmaps"),
        )
        if name in known
    ]
    return "; ".join(part for part in (" and ".join(took), ", ".join(left)) if part)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
        notes.append(
            f"Measured with {alone}: no interval over calibration text exists, small differences may be chance."
        )
    elif seeds:
        notes.append("± is the half width of the 95 % Student interval over calibration seeds.")
    return notes


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
