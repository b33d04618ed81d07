"""Two stores joined on the subject: pairs that compare, pairs that do not and why, what is missing, what is new."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.results.records import Record
from reports.comparison import evaluated_on, revision_of
from reports.wording import clean

__all__ = ["Joined", "Missing", "Pair", "join", "machine_of", "machines_differ"]

_MOST_DIFFERENCES: Final = 3

Asked = tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """One phase of one subject in both stores; `apart` says why its figures do not compare, empty where they do."""

    base: Record
    new: Record
    apart: str = ""

    @property
    def elsewhere(self) -> str:
        """How the environments differ, which times and memory need equal; empty where they do not."""
        if self.base.environment == self.new.environment:
            return ""
        return machines_differ(self.base, self.new)


@dataclass(frozen=True)
class Missing:
    """What BASE had done and NEW has not, and what NEW says about it."""

    base: Record
    reason: str


@dataclass(frozen=True)
class Joined:
    """All of both stores, in the order of BASE."""

    pairs: tuple[Pair, ...]
    missing: tuple[Missing, ...]
    new: tuple[Record, ...]


def join(base: Sequence[Record], new: Sequence[Record]) -> Joined:
    """Join current records (see `reports.load.current`) on (subject, phase, protocol).

    What is asked for alike but is another subject, because the model's files differ, is a pair that does not
    compare; a cell that failed or was refused is missing.
    """
    there = {_place(record): record for record in new if record.status == "done"}
    asked: dict[Asked, Record] = {_asked(record): record for record in there.values()}
    trouble: dict[Asked, Record] = {}
    alike: dict[Asked, Record] = {}
    for record in new:
        if record.status != "done":
            trouble.setdefault((*_request(record), record.phase), record)
        elif record.phase != "kernels":
            alike.setdefault(_request(record)[:-1], record)
    pairs: list[Pair] = []
    missing: list[Missing] = []
    met: set[int] = set()
    for record in base:
        if record.status != "done":
            continue
        other = there.get(_place(record)) or asked.get(_asked(record))
        if other is None:
            request = _request(record)
            # A cell whose pruning failed or was refused has no phase behind it.
            found = trouble.get((*request, record.phase)) or trouble.get((*request, "prune"))
            missing.append(Missing(record, _why(record, found, alike.get(request[:-1]))))
            continue
        met.add(id(other))
        pairs.append(Pair(record, other, _apart(record, other)))
    fresh = tuple(record for record in there.values() if id(record) not in met)
    return Joined(tuple(pairs), tuple(missing), fresh)


def _place(record: Record) -> Asked:
    return (record.subject, record.phase, record.protocol)


def _asked(record: Record) -> Asked:
    form = "" if record.phase != "save" else ",".join(sorted(entry.name for entry in record.metrics))
    return (*_request(record), record.phase, record.protocol, form)


def _request(record: Record) -> Asked:
    parameters = json.dumps(record.parameters, sort_keys=True)
    seed = "" if record.seed is None else str(record.seed)
    return (
        record.model,
        record.method,
        record.target,
        seed,
        record.dtype,
        record.calibration,
        parameters,
    )


def _why(record: Record, trouble: Record | None, alike: Record | None) -> str:
    if trouble is not None:
        return f"{trouble.status} in NEW: {clean(trouble.reason, 400) or 'no reason recorded'}"
    if alike is not None and alike.parameters != record.parameters:
        own, other = record.parameters, alike.parameters
        names = [name for name in sorted({*own, *other}) if own.get(name) != other.get(name)]
        told = (f"{clean(name, 40)} {_value(own, name)} and {_value(other, name)}" for name in names)
        return f"NEW has it with other parameters: {', '.join(list(told)[:_MOST_DIFFERENCES])}"
    return "not in NEW"


def _value(parameters: Mapping[str, Any], name: str) -> str:
    return clean(parameters[name], 40) if name in parameters else "none"


def _apart(base: Record, new: Record) -> str:
    own, other = evaluated_on(base), evaluated_on(new)
    if own != other:
        return "evaluated on different text under one protocol's name"
    if base.subject == new.subject:
        return ""
    before, after = revision_of(base), revision_of(new)
    if before != after:
        return (
            f"the model's files differ: {clean(before, 60) or 'unknown'} and {clean(after, 60) or 'unknown'}"
        )
    return "subjects differ though all that is recorded of them is alike"


def machine_of(record: Record) -> Mapping[str, Any]:
    """What a record says of the machine and software it was measured on."""
    for name in ("environment", "machine"):
        found = record.provenance.get(name)
        if isinstance(found, dict):
            return found
    return {}


def machines_differ(base: Record, new: Record) -> str:
    """The first few facts that differ between two environments, both values named."""
    before, after = (dict(_flat(machine_of(record))) for record in (base, new))
    names = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    told = [
        f"{clean(name, 40)} {clean(before.get(name, 'unknown'), 60)} and {clean(after.get(name, 'unknown'), 60)}"
        for name in names[:_MOST_DIFFERENCES]
    ]
    more = f" and {len(names) - len(told)} more" if len(names) > len(told) else ""
    return f"environments differ: {', '.join(told) or 'in what is not recorded'}{more}"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
