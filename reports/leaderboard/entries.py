"""Results of many stores as entries: one method with its parameters on one ground, its seeds, its history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.results.keys import digest
from bench.results.records import Record, moment
from bench.results.segments import Store
from reports.comparison import DENSE, QUALITY_PHASE, SIZE_PHASE, evaluated_on, recovery_of, revision_of
from reports.statistics import Summary, geometric, summarise
from reports.verdicts import Values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Entry", "Ground", "Past", "Result", "collect", "family_of"]

_BY_MATRIX: Final = {"fc1": "OPT", "mlp.dense_h_to_4h": "BLOOM", "mlp.gate_proj": "LLaMA"}
"""Families by a matrix that no other family has."""
_BY_NAME: Final = {"opt": "OPT", "bloom": "BLOOM", "llama": "LLaMA", "smollm2": "LLaMA"}


class Ground(NamedTuple):
    """What entries must share to be ranked: model and its files, what was evaluated on what text, in which type."""

    family: str
    model: str
    revision: str
    protocol: str
    text: str
    dtype: str

    @property
    def identity(self) -> dict[str, str]:
        """All but the family, which is inferred, and may become known later."""
        return {name: value for name, value in self._asdict().items() if name != "family"}


@dataclass(frozen=True)
class Result:
    """One finished evaluation with the prune that it is of, and the store that holds them."""

    evaluation: Record
    prune: Record | None
    out: Path

    @property
    def name(self) -> str:
        """The store's name."""
        return self.out.resolve().name


@dataclass(frozen=True)
class Past:
    """What an entry's mean perplexity was on a day, and under which commit."""

    day: str
    commit: str
    perplexity: Summary


@dataclass(frozen=True)
class Entry:
    """One method at one target on one ground. `results` are the latest of every seed, `past` all days, oldest first.

    `link` never changes: a digest of ground, method, parameters, target and calibration.
    """

    ground: Ground
    method: str
    target: str
    calibration: str
    parameters: str
    results: tuple[Result, ...]
    past: tuple[Past, ...]
    label: str = ""
    variant: str = ""
    link: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The method as shown, with what tells it from its namesakes."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def seeds(self) -> tuple[int, ...]:
        """The calibration seeds; empty where the method draws none."""
        found = {result.evaluation.seed for result in self.results}
        return tuple(sorted(seed for seed in found if seed is not None))

    def figure(self, name: str, phase: str = QUALITY_PHASE) -> Summary:
        """One figure over seeds."""
        records = [result.evaluation if phase == QUALITY_PHASE else result.prune for result in self.results]
        return summarise([record.metric(name) if record is not None else None for record in records])


class Routed(Values):
    """The values files of many stores, found by the record they belong to."""

    def __init__(self, results: Iterable[Result]) -> None:
        super().__init__(Path())
        self._stores: dict[Path, Values] = {}
        self._of = {id(result.evaluation): result.out for result in results}

    def array(self, record: Record, name: str) -> NDArray[np.float64] | str:
        """As `Values.array`, out of the record's own store."""
        out = self._of[id(record)]
        return self._stores.setdefault(out, Values(out)).array(record, name)


def collect(stores: Sequence[Path]) -> tuple[list[Entry], list[Entry]]:
    """Every one-shot entry of the stores, and the dense ones. Raises `StoreError`, `MachineError`.

    Recovered models are left out: they are no one-shot results. Of one seed the latest result counts; it and the
    others are history.
    """
    found: dict[tuple[Ground, str, str, str, str], list[Result]] = {}
    families: dict[str, str] = {}
    for out in stores:
        history = [record for record in Store(out).history() if record.status == "done"]
        prunes = {record.cell: record for record in history if record.phase == SIZE_PHASE}
        for record in history:
            if record.matrices:
                families.setdefault(record.model, family_of(record))
        for record in history:
            if record.phase != QUALITY_PHASE or recovery_of(record):
                continue
            ground = Ground(
                "",
                record.model,
                revision_of(record),
                record.protocol,
                evaluated_on(record),
                record.dtype,
            )
            parameters = json.dumps(record.parameters, sort_keys=True)
            key = (ground, record.method, record.target, record.calibration, parameters)
            found.setdefault(key, []).append(Result(record, prunes.get(record.cell), out))
    entries = [
        _entry(key, results, families.get(key[0].model) or _named_family(key[0].model))
        for key, results in found.items()
    ]
    return (
        _tell_apart([entry for entry in entries if entry.method != DENSE]),
        [entry for entry in entries if entry.method == DENSE],
    )


def family_of(record: Record) -> str:
    """The model's family by the matrices that were pruned, else by its name; "other" where neither tells."""
    names = {matrix.name for matrix in record.matrices}
    found = [family for matrix, family in _BY_MATRIX.items() if matrix in names]
    return found[0] if len(found) == 1 else _named_family(record.model)


def _named_family(model: str) -> str:
    words = model.lower().split("-")
    return next((_BY_NAME[word] for word in words if word in _BY_NAME), "other")


def _entry(key: tuple[Ground, str, str, str, str], results: Sequence[Result], family: str) -> Entry:
    ground, method, target, calibration, parameters = key
    ground = ground._replace(family=family)
    results = sorted(results, key=lambda result: moment(result.evaluation.finished))
    latest: dict[int | None, Result] = {}
    for result in results:
        latest[result.evaluation.seed] = result
    identity = {
        **ground.identity,
        "method": method,
        "target": target,
        "calibration": calibration,
        "parameters": parameters,
    }
    label = next((_fact(result.evaluation, "label") for result in results), "")
    return Entry(
        ground,
        method,
        target,
        calibration,
        parameters,
        tuple(latest[seed] for seed in sorted(latest, key=lambda seed: -1 if seed is None else seed)),
        tuple(_past(results)),
        label=label,
        link=f"r-{digest(identity)}",
    )


def _past(results: Sequence[Result]) -> Iterable[Past]:
    """The mean over seeds as of the end of every (day, commit) on which something was measured."""
    seen: dict[int | None, float | None] = {}
    days: dict[tuple[str, str], Past] = {}
    for result in results:
        record = result.evaluation
        seen[record.seed] = record.metric("perplexity")
        day, commit = record.finished[:10], _short(_fact(record, "commit"))
        days[day, commit] = Past(day, commit, geometric(list(seen.values())))
    return days.values()


def _short(commit: str) -> str:
    """Twelve digits, and the mark of a tree with changes."""
    digits, mark, rest = commit.partition("+")
    return f"{digits[:12]}{mark}{rest}"


def _fact(record: Record, name: str) -> str:
    value = record.provenance.get(name)
    return value if isinstance(value, str) else ""


def _tell_apart(entries: Sequence[Entry]) -> list[Entry]:
    """Name the parameters and calibration in which entries of one method, target and ground differ."""
    groups: dict[tuple[Ground, str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.ground, entry.method, entry.target), []).append(entry)
    return [
        Entry(**{**vars(entry), "variant": _variant(entry, twins)}) if len(twins) > 1 else entry
        for twins in groups.values()
        for entry in twins
    ]


def _variant(entry: Entry, twins: Sequence[Entry]) -> str:
    said = [entry.calibration] if len({twin.calibration for twin in twins}) > 1 else []
    all_of: list[Mapping[str, object]] = [json.loads(twin.parameters) for twin in twins]
    own = json.loads(entry.parameters)
    differing = [
        name
        for name in sorted({name for other in all_of for name in other})
        if len({json.dumps(other.get(name)) for other in all_of}) > 1
    ]
    said += [f"{name}={own[name]}" if name in own else f"no {name} recorded" for name in differing]
    return ", ".join(said)
