"""The methods at one target against each other: which pairs are judged, and the table of their verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from reports.comparison import DENSE, QUALITY_PHASE, Group, Key, Row
from reports.statistics import resamples_of
from reports.tables import Shown, Table
from reports.verdicts import (
    DIVERGENCE,
    PERPLEXITY,
    Measure,
    Pair,
    Sample,
    Values,
    Verdict,
    judge,
    measure_of,
    sample,
)
from reports.wording import MISSING, clean

ALL_PAIRS: Final = 6
"""Up to so many methods at a target, every pair is judged; of more, the first against each of the others.

The first is first by the very figures that are then tested, so p-values are corrected over every pair all the same.
"""
MOST_RIVALS: Final = 24
MOST_TASKS: Final = 4
FEW_PAIRS: Final = 2
MOST_TARGETS: Final = 24


def _notes(judged: Sequence[Contest]) -> tuple[str, ...]:
    """How the verdicts were reached, with what was used for these."""
    found = [verdict.difference for contest in judged for verdict in contest.verdicts.values()]
    used = sorted({resamples_of(difference.units) for difference in found if difference is not None})
    resamples = f" ({' or '.join(f'{count:,}' for count in used)} resamples; percentiles)" if used else ""
    chosen = any(len(contest.rows) > ALL_PAIRS and PERPLEXITY in contest.measures for contest in judged)
    return (
        (
            "A against B on the same windows or items, with 95 % intervals: the widest of a paired bootstrap's"
            f"{resamples} and of Student's t. With one seed they cover other text only; where a pair shares several "
            "calibration seeds, they cover other seeds too."
        ),
        (
            "p is two-sided, by Student's t over windows and seeds, and corrected by Holm over the pairs of the column"
            + (
                f"; of more than {ALL_PAIRS} methods only the best meets the others, and the correction is over all "
                "pairs that there are, since the best was found by these figures"
                if chosen
                else ""
            )
            + ". A pair is called not distinguishable from p = 0.05 on."
        ),
    )


@dataclass(frozen=True)
class Contest:
    """The rows at one target of a group, best first, and the verdicts on pairs of them by (place, place, measure)."""

    target: str
    rows: tuple[Row, ...]
    measures: tuple[Measure, ...]
    verdicts: Mapping[tuple[int, int, str], Verdict]

    def verdict(self, first: int, second: int, measure: Measure) -> Verdict | None:
        """The row at place `first` against that at `second`; None where the pair was not judged."""
        if (first, second, measure.name) in self.verdicts:
            return self.verdicts[first, second, measure.name]
        found = self.verdicts.get((second, first, measure.name))
        return None if found is None else found.mirrored()

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs judged, by place."""
        return tuple(dict.fromkeys((first, second) for first, second, _ in self.verdicts))


Contests = Mapping[Key, tuple[Contest, ...]]


def contests(groups: Sequence[Group], values: Values) -> Contests:
    """The contests of every group, all judged in one pass; p-values are corrected by target and measure."""
    planned: list[tuple[Key, str, tuple[Row, ...], tuple[Measure, ...], int]] = []
    tests: dict[int, int] = {}
    for group in groups:
        for target in group.targets[:MOST_TARGETS]:
            measures, rows = _field(group, target)
            if len(rows) > 1:
                planned.append((group.key, target, rows[: MOST_RIVALS + 1], measures, len(rows)))
    pairs: list[Pair] = []
    places: list[tuple[int, int, int, str]] = []
    family = 0
    for number, (_, _, rows, measures, running) in enumerate(planned):
        for measure in measures:
            samples: list[Sample | str] = [sample(row.records, values, measure) for row in rows]
            family += 1
            if running > ALL_PAIRS and PERPLEXITY in measures:
                tests[family] = math.comb(running, 2)
            for first, second in _matched(len(rows)):
                names = (clean(rows[first].name), clean(rows[second].name))
                pairs.append(Pair(names, measure, samples[first], samples[second], family))
                places.append((number, first, second, measure.name))
    found: dict[int, dict[tuple[int, int, str], Verdict]] = {}
    for (number, first, second, name), verdict in zip(places, judge(pairs, tests), strict=True):
        found.setdefault(number, {})[first, second, name] = verdict
    result: dict[Key, tuple[Contest, ...]] = {}
    for number, (key, target, rows, measures, _) in enumerate(planned):
        result[key] = (*result.get(key, ()), Contest(target, rows, measures, found.get(number, {})))
    return result


def _field(group: Group, target: str) -> tuple[tuple[Measure, ...], tuple[Row, ...]]:
    """What the rows at a target are compared by, and all its rows that can be, best first."""
    rows = [row for row in group.rows if row.target == target and row.method != DENSE]
    measured = [row for row in rows if row.perplexity.mean is not None]
    if measured:
        measures = [PERPLEXITY]
        if any((QUALITY_PHASE, "kl_to_dense") in row.figures for row in measured):
            measures.append(DIVERGENCE)
        return tuple(measures), tuple(sorted(measured, key=lambda row: row.rank))
    tasks = list(dict.fromkeys(name for row in rows for _, name in row.figures if name.startswith("acc/")))[
        :MOST_TASKS
    ]
    return tuple(measure_of(task) for task in tasks), tuple(rows) if tasks else ()


def _matched(count: int) -> Iterator[tuple[int, int]]:
    for first in range(count if count <= ALL_PAIRS else 1):
        for second in range(first + 1, count):
            yield first, second


def verdict_tables(judged: Sequence[Contest]) -> list[Table]:
    """One line a pair: how A stands to B by every measure, and whether that is settled; a table a target, or one for all
    where targets have few pairs. The last carries the notes."""
    held = [contest for contest in judged if contest.pairs]
    if not held:
        return []
    together = len({contest.measures for contest in held}) == 1 and all(
        len(c.pairs) <= FEW_PAIRS for c in held
    )
    if together and len(held) > 1:
        rows = tuple((clean(contest.target), *row) for contest in held for row in _lines(contest))
        columns = ("Target", *_columns(held[0]))
        return [Table("Pair by pair at each target", columns, rows, 3, notes=_notes(held))]
    tables = [
        Table(f"Pair by pair at {clean(contest.target)}", _columns(contest), tuple(_lines(contest)), 2)
        for contest in held
    ]
    return [*tables[:-1], replace(tables[-1], notes=_notes(held))]


def _columns(contest: Contest) -> tuple[str, ...]:
    columns = ["A", "B"]
    for measure in contest.measures:
        columns += [_heading(measure), f"A, by {clean(_spoken(measure), 40)}"]
    return tuple(columns)


def _lines(contest: Contest) -> Iterator[tuple[str, ...]]:
    for first, second in contest.pairs:
        cells: list[str] = [clean(contest.rows[place].name) for place in (first, second)]
        for measure in contest.measures:
            verdict = contest.verdict(first, second, measure)
            cells += [MISSING, MISSING] if verdict is None else [standing_of(verdict), outcome_of(verdict)]
        yield tuple(cells)


def _spoken(measure: Measure) -> str:
    return measure.name.partition("/")[2] or measure.name


def _heading(measure: Measure) -> str:
    if measure == PERPLEXITY:
        return "Perplexity, A / B"
    if measure == DIVERGENCE:
        return "KL to dense, A - B, nat/token"
    return f"{clean(_spoken(measure), 40)}, A - B, points"


def standing_of(verdict: Verdict) -> str:
    """The ratio or difference with its interval; the reason where the two were not compared."""
    if verdict.difference is None:
        return MISSING
    if verdict.ratio is not None:
        mean, low, high = (_scaled(value) for value in verdict.ratio)
        return Shown(f"{mean} ({low} to {high})", verdict.ratio[0])
    found = verdict.difference
    scale, digits = (100, 1) if verdict.measure.higher_is_better else (1, 3)
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in (found.mean, found.low, found.high))
    return Shown(f"{mean} ({low} to {high})", found.mean)


def _scaled(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= value < 10 else f"{value:.3g}"


def outcome_of(verdict: Verdict) -> str:
    """The verdict in words, with its corrected p-value, or why there is none."""
    if verdict.difference is None:
        return f"not comparable: {clean(verdict.reason, 200)}"
    p = verdict.difference.adjusted
    return Shown(f"{verdict.outcome}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}", p)
