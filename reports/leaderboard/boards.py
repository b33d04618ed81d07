"""Places: entries of one ground and target by perplexity, level where nothing tells them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from reports.leaderboard.entries import Entry, Ground, Routed, collect
from reports.statistics import Summary, geometric
from reports.targets import target_order
from reports.verdicts import PERPLEXITY, Pair, Sample, judge, sample

__all__ = ["Board", "Placed", "boards", "perplexity"]


@dataclass(frozen=True)
class Placed:
    """An entry with its place; `shared` where others hold it too. `why` says what the place of a tie rests on."""

    entry: Entry
    place: int
    shared: bool
    why: str = ""


@dataclass(frozen=True)
class Board:
    """All one-shot methods at one target on one ground, best first; `dense` is the unpruned model's perplexity."""

    ground: Ground
    target: str
    label: str
    placed: tuple[Placed, ...]
    dense: float | None

    @property
    def link(self) -> str:
        """The anchor of the board: its first entries may change, its name does not."""
        from bench.results.keys import digest

        return f"b-{digest({**self.ground.identity, 'target': self.target})}"


def perplexity(entry: Entry) -> Summary:
    """Perplexity over seeds: the geometric mean, by which entries stand in the order of their mean losses."""
    return geometric([result.evaluation.metric("perplexity") for result in entry.results])


def boards(stores: Sequence[Path]) -> list[Board]:
    """Every board that the stores give, by family, model, protocol and target. Raises `StoreError`, `MachineError`."""
    entries, dense = collect(stores)
    grouped: dict[tuple[Ground, str], list[Entry]] = {}
    for entry in entries:
        if perplexity(entry).mean is not None:
            grouped.setdefault((entry.ground, entry.target), []).append(entry)
    unpruned = {entry.ground: perplexity(entry).mean for entry in dense}
    routed = Routed(result for entry in entries for result in entry.results)
    ordered = sorted(grouped, key=lambda key: (*key[0], target_order(key[1])))
    samples = {
        entry.link: sample([result.evaluation for result in entry.results], routed, PERPLEXITY, entry.name)
        for key in ordered
        for entry in grouped[key]
    }
    level = _level([grouped[key] for key in ordered], samples)
    return [
        Board(
            key[0],
            key[1],
            next((entry.label for entry in grouped[key] if entry.label), ""),
            _places(grouped[key], level),
            unpruned.get(key[0]),
        )
        for key in ordered
    ]


def _level(groups: Sequence[Sequence[Entry]], samples: dict[str, Sample | str]) -> dict[frozenset[str], str]:
    """Pairs that nothing tells apart, with what was tried; corrected within each group."""
    pairs: list[Pair] = []
    members: list[tuple[Entry, Entry]] = []
    for family, group in enumerate(groups):
        for a, b in combinations(group, 2):
            pairs.append(Pair((a.name, b.name), PERPLEXITY, samples[a.link], samples[b.link], family))
            members.append((a, b))
    found: dict[frozenset[str], str] = {}
    for (a, b), verdict in zip(members, judge(pairs), strict=True):
        if verdict.outcome == "not distinguishable":
            found[frozenset((a.link, b.link))] = "the same windows do not tell them apart"
        elif verdict.outcome == ("better" if _order(a) > _order(b) else "worse"):
            # All seeds of both make the order; the windows speak of those that both have.
            found[frozenset((a.link, b.link))] = (
                "on the seeds that both have the order is the other way round"
            )
        elif _overlap(a, b):
            found[frozenset((a.link, b.link))] = "their intervals over seeds overlap"
        elif verdict.outcome == "not comparable" and not _intervals(a, b):
            found[frozenset((a.link, b.link))] = f"nothing tells them apart: {verdict.reason}"
    return found


def _intervals(a: Entry, b: Entry) -> bool:
    return all(perplexity(entry).half_width is not None for entry in (a, b))


def _overlap(a: Entry, b: Entry) -> bool:
    """Whether the seeds' intervals overlap; one without an interval stands for its value alone."""
    first, second = perplexity(a), perplexity(b)
    if first.half_width is None and second.half_width is None:
        return False
    ends = (first.low, first.high, second.low, second.high)
    if any(end is None or not math.isfinite(end) for end in ends):
        return False
    return (first.low or 0.0) <= (second.high or 0.0) and (second.low or 0.0) <= (first.high or 0.0)


def _order(entry: Entry) -> tuple[bool, float, str]:
    value = perplexity(entry).mean
    finite = value is not None and math.isfinite(value)
    return (not finite, value if finite and value is not None else 0.0, entry.name)


def _places(entries: Sequence[Entry], level: dict[frozenset[str], str]) -> tuple[Placed, ...]:
    """Standard competition places (1, 2, 2, 4): level with the best of a place is in that place."""

    ranked = sorted(entries, key=_order)
    placed: list[tuple[Entry, int, str]] = []
    leader, place = ranked[0], 1
    for index, entry in enumerate(ranked):
        why = level.get(frozenset((leader.link, entry.link)), "") if index else ""
        if index and not why:
            leader, place = entry, index + 1
        placed.append((entry, place, why))
    counts = [number for _, number, _ in placed]
    return tuple(Placed(entry, number, counts.count(number) > 1, why) for entry, number, why in placed)
