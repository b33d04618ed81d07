"""Every figure of two stores, judged: improved, regressed, unchanged, or not comparable and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from bench.results.records import Metric, Record
from methods.errors import UserError
from reports.compare.join import Missing, Pair, join
from reports.compare.paired import paired
from reports.compare.reference import Ratios, ratios
from reports.compare.timing import FEWEST_CELLS, FEWEST_REPEATS, of_cells, of_repeats
from reports.compare.tolerances import Limit, Tolerances
from reports.comparison import asked_of, derived
from reports.load import load
from reports.statistics import Difference, differences, holm
from reports.verdicts import Values
from reports.wording import clean

__all__ = ["Change", "Changes", "Verdict", "compare_stores"]

Verdict = Literal["regressed", "improved", "unchanged", "not comparable"]

_UNTESTED: Final = "no windows to test on: judged by the tolerance alone"


@dataclass(frozen=True)
class Change:
    """One figure in both stores. `after` and `before` are ratios to `reference` where that is named.

    `allowed` is the largest change that does not count, in the figure's unit; `difference` the test, where there was
    one: NEW - BASE, of logarithms for times. `cells`: how many cells stand behind it.
    """

    subject: str
    phase: str
    model: str
    method: str
    target: str
    seed: int | None
    metric: str
    unit: str
    kind: str
    before: float | None
    after: float | None
    verdict: Verdict
    reason: str = ""
    allowed: float = 0.0
    reference: str = ""
    cells: int = 1
    difference: Difference | None = None

    @property
    def relative(self) -> float | None:
        """The change as a share of BASE; None where that is no number."""
        if self.before is None or self.after is None or self.before == 0:
            return None
        found = self.after / self.before - 1
        return found if math.isfinite(found) else None


@dataclass(frozen=True)
class Changes:
    """What a comparison of two stores found. `missing` cells count as regressions unless that was waived.

    `damage`: a line for every piece of NEW that is no record; what it held is lost, which no waiver covers.
    """

    figures: tuple[Change, ...]
    missing: tuple[Missing, ...]
    new: tuple[Record, ...]
    level: float
    names: tuple[str, str] = ("BASE", "NEW")
    damage: tuple[str, ...] = field(default=(), repr=False)
    missing_allowed: bool = False

    def of(self, verdict: Verdict) -> tuple[Change, ...]:
        """The figures with that verdict."""
        return tuple(change for change in self.figures if change.verdict == verdict)

    @property
    def regressed(self) -> bool:
        """Whether anything got worse, or was lost."""
        return bool(self.of("regressed") or self.damage or (self.missing and not self.missing_allowed))

    @property
    def compared(self) -> int:
        """How many figures were compared at all."""
        return sum(change.verdict != "not comparable" for change in self.figures)


def compare_stores(base: Path, new: Path, limits: Tolerances, *, missing_allowed: bool = False) -> Changes:
    """Judge NEW against BASE. Raises `StoreError` and `MachineError` for stores that cannot be read.

    Raises `UserError` for a damaged BASE: what it lost would never be missed.
    """
    before, after = load(base), load(new)
    if before.damage:
        more = f" and {len(before.damage) - 1} more" if before.damage[1:] else ""
        raise UserError(
            f"BASE '{clean(base, 200)}' is damaged ({clean(before.damage[0], 200)}{more}): restore it, or measure it anew"
        )
    joined = join(before.records, after.records)
    stores = (Values(base), Values(new))
    found: list[_Open] = []
    for pair in joined.pairs:
        found += _figures(pair, limits, stores)
    return Changes(
        figures=tuple(_judged(found, limits.level)),
        missing=joined.missing,
        new=joined.new,
        level=limits.level,
        names=(str(base), str(new)),
        damage=after.damage,
        missing_allowed=missing_allowed,
    )


@dataclass(frozen=True)
class _Open:
    """A figure still to be judged: with what its test needs, or decided already (`limit` None).

    `windows`: NEW - BASE float64 [windows]; `repeats`: ratios of both; `pool`: what times are taken together by,
    their limit included.
    """

    change: Change
    limit: Limit | None = None
    windows: NDArray[np.float64] | None = None
    repeats: tuple[Ratios, Ratios] | None = None
    pool: tuple[str | Limit, ...] = ()


def _figures(pair: Pair, limits: Tolerances, stores: tuple[Values, Values]) -> Iterator[_Open]:
    base, new = pair.base, pair.new
    if pair.apart:
        alarm = limits.lost((metric.name for metric in _metrics(base)), base.model, base.method, base.target)
        change = _change(base, "all figures", "", "quality" if alarm else "", None, None, pair.apart)
        yield _Open(replace(change, verdict="regressed" if alarm else "not comparable"))
        return
    after = {metric.name: metric for metric in _metrics(new)}
    for metric in _metrics(base):
        limit = limits.limit(metric.name, base.model, base.method, base.target)
        if limit is None or metric.value is None:
            continue
        other = after.get(metric.name)
        value = other.value if other is not None else None
        change = _change(base, metric.name, metric.unit, limit.kind, metric.value, value, "")
        if other is not None and other.unit != metric.unit:
            yield _Open(replace(change, reason=f"units differ: {metric.unit} and {other.unit}"))
        elif limit.kind in ("time", "memory") and pair.elsewhere:
            yield _Open(replace(change, reason=pair.elsewhere))
        elif value is None:
            lost: Verdict = "regressed" if limit.kind == "quality" else "not comparable"
            yield _Open(replace(change, verdict=lost, reason="not measured in NEW"))
        elif limit.kind == "time":
            yield _timed(pair, change, limit, stores)
        else:
            windows = paired(pair, metric.name, stores) if limit.significant else None
            yield _Open(change, limit, windows=windows)


def _metrics(record: Record) -> tuple[Metric, ...]:
    return (*record.metrics, *derived(record))


def _change(
    base: Record,
    metric: str,
    unit: str,
    kind: str,
    before: float | None,
    after: float | None,
    reason: str,
) -> Change:
    target = base.target if base.phase != "kernels" else f"{base.target}, {base.protocol.partition('/')[2]}"
    return Change(
        subject=base.subject,
        phase=base.phase,
        model=base.model,
        method=asked_of(base),
        target=target,
        seed=base.seed,
        metric=metric,
        unit=unit,
        kind=kind,
        before=before,
        after=after,
        verdict="not comparable",
        reason=reason,
    )


def _timed(pair: Pair, change: Change, limit: Limit, stores: tuple[Values, Values]) -> _Open:
    records = (pair.base, pair.new)
    first, second = (
        ratios(record, change.metric, store.out) for store, record in zip(stores, records, strict=True)
    )
    if first.missing or second.missing:
        side = "BASE" if first.missing else "NEW"
        return _Open(replace(change, reason=f"{side}: {first.missing or second.missing}"))
    if first.reference != second.reference:
        return _Open(
            replace(change, reason=f"reference operators differ: {first.reference}; {second.reference}")
        )
    change = replace(change, before=first.median, after=second.median, unit="1", reference=first.reference)
    base = pair.base
    pool = (base.phase, change.metric, change.method, base.dtype, first.reference, base.environment, limit)
    several = min(len(first.values), len(second.values)) >= FEWEST_REPEATS
    return _Open(change, limit, repeats=(first, second) if several else None, pool=pool)


def _judged(found: Sequence[_Open], level: float) -> Iterator[Change]:
    """Quality, times over cells and times of single cells are families of tests, corrected each by itself."""
    tested = [entry for entry in found if entry.windows is not None and np.ptp(entry.windows) != 0]
    samples = [entry.windows[None] for entry in tested if entry.windows is not None]
    tests = dict(zip(map(id, tested), differences(samples), strict=True))
    repeated = [entry for entry in found if entry.repeats is not None]
    own = [of_repeats(*(side.values for side in entry.repeats)) for entry in repeated if entry.repeats]
    tests |= dict(zip(map(id, repeated), holm(own), strict=True))
    pools: dict[tuple[str | Limit, ...], list[_Open]] = {}
    for entry in found:
        if entry.pool:
            pools.setdefault(entry.pool, []).append(entry)
    large = {key: members for key, members in pools.items() if len(members) >= FEWEST_CELLS}
    for entry in found:
        if entry.limit is None:
            yield entry.change
        elif not entry.pool:
            yield _settled(entry, tests.get(id(entry)), level)
        elif entry.repeats is not None:
            alone = entry.limit.model_copy(update={"relative": entry.limit.alone})
            single = replace(entry, limit=alone) if entry.pool in large else entry
            yield _settled(single, tests.get(id(entry)), level)
        elif entry.pool not in large:
            few = f"single times of {len(pools[entry.pool])} cells, {FEWEST_CELLS} are needed"
            yield replace(entry.change, reason=few)
    together = [of_cells([_logarithm(entry.change) for entry in members]) for members in large.values()]
    for members, difference in zip(large.values(), holm(together), strict=True):
        yield _settled(_pooled(members), difference, level)


def _logarithm(change: Change) -> float:
    return math.log((change.after or math.nan) / (change.before or math.nan))


def _pooled(members: Sequence[_Open]) -> _Open:
    """The times of one method's cells as one figure: the geometric mean of their ratios."""
    first = members[0].change
    models = dict.fromkeys(entry.change.model for entry in members)
    before, after = (
        math.exp(math.fsum(math.log(value or math.nan) for value in side) / len(members))
        for side in (
            [entry.change.before for entry in members],
            [entry.change.after for entry in members],
        )
    )
    change = replace(
        first,
        model=first.model
        if len(models) == 1
        else f"{len(models)} {'shapes' if first.phase == 'kernels' else 'models'}",
        target=f"{len(members)} cells",
        seed=None,
        before=before,
        after=after,
        cells=len(members),
    )
    return _Open(change, members[0].limit)


def _settled(entry: _Open, difference: Difference | None, level: float) -> Change:
    """The verdict: beyond the tolerance, and significant where that is asked for."""
    change, limit = entry.change, entry.limit
    before, after = change.before, change.after
    if limit is None or before is None or after is None:
        raise ValueError(f"{change.metric}: nothing to judge")
    allowed = limit.allowed(before) if math.isfinite(before) else 0.0
    change = replace(change, allowed=allowed, difference=difference)
    if not (math.isfinite(before) and math.isfinite(after)):
        if math.isfinite(before) == math.isfinite(after):
            return replace(change, verdict="unchanged", reason="not finite in both")
        worse = math.isfinite(before)
        return replace(
            change,
            verdict="regressed" if worse else "improved",
            reason="no longer finite" if worse else "finite now",
        )
    moved = after - before
    if abs(moved) <= allowed:
        return replace(change, verdict="unchanged")
    reason = ""
    if limit.significant:
        if difference is None:
            reason = _UNTESTED
        elif not difference.adjusted < level:
            return replace(change, verdict="unchanged", reason="beyond the tolerance, but not significant")
    return replace(
        change, verdict="regressed" if (moved > 0) == (limit.better == "lower") else "improved", reason=reason
    )
