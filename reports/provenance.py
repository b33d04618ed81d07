"""Where figures come from: the facts all records share, those of one model, and those that differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from bench.results.records import Record
from reports.tables import Table
from reports.wording import MISSING, clean

_MOST_VALUES: Final = 6
_MOST_FACTS: Final = 400


def facts_table(records: Sequence[Record]) -> Table:
    """Every recorded fact once: for all results, else for one model, else with the values it takes."""
    values: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for name, value in _facts(record):
            values.setdefault(name, {}).setdefault(record.model, set()).add(value)
    rows: list[tuple[str, str, str]] = []
    for name, models in values.items():
        everything = set().union(*models.values())
        if len(everything) == 1:
            rows.append((clean(name), "all", everything.pop()))
        elif all(len(found) == 1 for found in models.values()):
            rows += [(clean(name), clean(model), next(iter(found))) for model, found in models.items()]
        else:
            shown = sorted(everything)[:_MOST_VALUES]
            more = len(everything) - len(shown)
            text = " | ".join(shown) + (f" | and {more} more" if more else "")
            rows.append((clean(name), "differs", text))
    if len(rows) > _MOST_FACTS:
        more = len(rows) - _MOST_FACTS
        rows = [*rows[:_MOST_FACTS], ("…", "", f"{more} more facts stand in the store")]
    return Table("Facts recorded with the figures", ("Fact", "Holds for", "Value"), tuple(rows), 1)


def cells_table(records: Sequence[Record]) -> Table:
    """One line per recorded phase: what was asked, with which parameters, when, how long it took, by which command."""
    rows = [
        (
            clean(record.cell[:12], 40),
            *(clean(part) for part in (record.model, record.method, record.target)),
            MISSING if record.seed is None else str(record.seed),
            record.phase,
            record.status,
            clean(record.dtype) or MISSING,
            ", ".join(f"{clean(key, 60)}={_value(value)}" for key, value in record.parameters.items())
            or MISSING,
            clean(record.started[:19], 40),
            ", ".join(f"{clean(key, 60)} {seconds:.2f} s" for key, seconds in record.seconds.items())
            or MISSING,
            command_of(record),
        )
        for record in records
    ]
    columns = (
        *("Cell", "Model", "Method", "Target", "Seed", "Phase", "Outcome", "Weights", "Parameters"),
        *("Started (UTC)", "Wall time", "Command"),
    )
    return Table("Recorded phases", columns, tuple(rows), 4, words=len(columns) - 4)


def command_of(record: Record) -> str:
    """The command that a record came from, as one would type it; a run in another folder finds the same cell."""
    command = record.provenance.get("command")
    if not isinstance(command, list) or not command:
        return MISSING
    words = [clean(word, 600) for word in command]
    return shlex.join(words if words[0] == "bench" else ["bench", *words])


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    for name in ("protocol", "calibration", "dtype"):
        if value := getattr(record, name):
            yield {"protocol": "evaluation protocol", "dtype": "weight type"}.get(name, name), clean(value)
    if record.seed is not None:
        yield "calibration seed", str(record.seed)
    yield from _flat(record.provenance, "")


def _flat(facts: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        elif value is not None and value != "" and value != []:
            yield name, _value(value)


def _value(value: Any) -> str:
    if isinstance(value, list):
        if all(isinstance(entry, str) for entry in value):
            return clean(shlex.join(value), 600)
        return clean(", ".join(str(entry) for entry in value), 600)
    return clean(value, 600)
