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
from reports.tables import NO_SUMMARY, change_of, figure_of, title_of
from reports.verdicts import DIVERGENCE, PERPLEXITY
from reports.wording import clean, figure

MEAN_NOTE: Final = (
    "± is the half width of the 95 % Student interval over calibration seeds; perplexities over seeds are geometric "
    "means, the exponential of the mean loss."
)
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
    level = _unbeaten(contest)
    following = ", ".join(f"{clean(row.name)} {_against(row)}" for row in rest[:MOST_NAMED])
    following += f" and {len(rest) - MOST_NAMED} more" if len(rest) > MOST_NAMED else ""
    keeps = "has the lowest perplexity," if level else "keeps most quality: perplexity"
    text = f" {keeps} {_against(first)}; then {following}."
    sure = _sure(contest)
    own, other = first.change.mean, rest[0].change.mean
    if own is not None and other is not None and 1 < own < other < math.inf and not sure:
        text += f" Its increase is {(own - 1) / (other - 1):.2f} of {clean(rest[0].name)}'s."
    if standing.note and not sure:
        text += f" {standing.note}"
    return Finding(target, clean(first.name), text, sure, cost)


def _unbeaten(contest: Contest | None) -> list[int]:
    """The places of rows that the first is not known to beat: level with it, or better on the seeds that both have."""
    if contest is None:
        return []
    found = ((place, contest.verdict(0, place, PERPLEXITY)) for place in range(1, len(contest.rows)))
    return [
        place for place, verdict in found if verdict and verdict.outcome in ("not distinguishable", "worse")
    ]


def _sure(contest: Contest | None) -> str:
    """How the first stands to the others, by perplexity and by KL; empty where no pair could be judged."""
    if contest is None:
        return ""
    names = [clean(row.name) for row in contest.rows]
    said: dict[str, list[str]] = {}
    refused, settled = [], []
    covered: dict[str, list[str]] = {}
    for place in range(1, len(names)):
        verdict = contest.verdict(0, place, PERPLEXITY)
        if verdict is None:
            continue
        if verdict.difference is None or verdict.ratio is None:
            refused.append(f"{names[place]} ({clean(verdict.reason, 120)})")
            continue
        covered.setdefault(verdict.beyond, []).append(names[place])
        settled.append((place, verdict.outcome))
        figures = f"{names[place]} (perplexity ratio {standing_of(verdict).replace(' (', ', ').rstrip(')')})"
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
    text = f"{names[0]} is {'; '.join(parts)}; 95 % intervals over {_covered(covered)}."
    text += _divergence(contest, settled, names)
    return text + (f" Not compared: {_listed(refused[:3])}." if refused else "")


def _covered(found: dict[str, list[str]]) -> str:
    """What the intervals cover, with the names that each holds for where pairs differ in that."""
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{covered} ({_listed(names)})" for covered, names in found.items())


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

    def known(name: str) -> float | None:
        return row.figures.get((SIZE_PHASE, name), NO_SUMMARY).mean

    def shown(name: str) -> str:
        mean = known(name)
        # Seven digits of a count say no more than three, and intervals of costs stand in the tables.
        if mean and mean >= 1e6 and name.startswith("parameters"):
            return f"{mean / 1e6:,.1f} M"
        return figure(mean, row.units.get((SIZE_PHASE, name), "1"), name)

    took = [] if known("prune_time") is None else [shown("prune_time")]
    memory = next((name for name in ("added_memory", "peak_memory") if known(name) is not None), None)
    if memory is not None:
        took.append(f"{shown(memory)} of {'added' if memory == 'added_memory' else 'peak'} memory")
    said = [f"{' and '.join(took)} to prune"] if took else []
    if known("parameters_nonzero") is not None:
        of = f" of {shown('parameters')}" if known("parameters") is not None else ""
        said.append(f"{shown('parameters_nonzero')}{of} parameters are not zero")
    stored = [
        f"{shown(name)} {words}"
        for name, words in (("bytes", "stored dense"), ("bytes_bitmap", "as bitmaps"))
        if known(name) is not None
    ]
    return "; ".join([*said, *([", ".join(stored)] if stored else [])])


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
    beyond: dict[str, list[str]] = {}
    for row in group.rows:
        mean, change = row.perplexity.mean, row.change.mean
        if mean is not None and not math.isfinite(mean):
            notes.append(
                f"{clean(row.name)} at {clean(row.target)} has no finite perplexity: the model is broken."
            )
        elif change is not None and change > BROKEN:
            beyond.setdefault(clean(row.name), []).append(clean(row.target))
    notes += [
        f"{name} at {_listed(targets)} is more than {BROKEN:.0f} times dense: treat that as broken, not as worse."
        for name, targets in beyond.items()
    ]
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
        notes.append(MEAN_NOTE)
    return notes


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
