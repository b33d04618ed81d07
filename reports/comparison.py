"""The comparison itself: which cells share a column, what each row holds, who keeps most quality."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bench.results.records import Metric, Record
from reports.statistics import Summary, geometric, ratio, summarise
from reports.targets import target_order
from reports.wording import clean

DENSE: Final = "dense"
SIZE_PHASE: Final = "prune"
SAVE_PHASE: Final = "save"
QUALITY_PHASE: Final = "perplexity"
KERNEL_PHASE: Final = "kernels"
_PERPLEXITY: Final = (QUALITY_PHASE, "perplexity")
_CELLS_NAMED: Final = 8
TIMED_PHASES: Final = ("decode",)
"""Phases whose figures are speeds, and so belong to the machine and software they were measured on."""

Identity = tuple[str, str, str, str, str]
Parts = tuple[Record, ...]


class Key(NamedTuple):
    """What rows must share to stand in one table: `text` is a digest, `environment` set for speeds only.

    `recovered`: the models were trained after pruning, and so compare with each other and dense only.
    """

    model: str
    revision: str
    protocol: str
    text: str = ""
    environment: str = ""
    recovered: bool = False


Slots = dict[Key, dict[Identity, list[Parts]]]


@dataclass(frozen=True)
class Row:
    """One method at one target, its figures over seeds; `figures` is keyed by (phase, metric)."""

    method: str
    target: str
    calibration: str
    dtype: str
    parameters: str
    records: tuple[Record, ...]
    figures: dict[tuple[str, str], Summary]
    units: dict[tuple[str, str], str]
    change: Summary
    variant: str = ""
    recovery: str = ""

    @property
    def name(self) -> str:
        """The method as shown, with what trained its model and whatever tells it from its namesakes in the group."""
        spelled = f"{self.method} with {self.recovery}" if self.recovery else self.method
        return f"{spelled} ({self.variant})" if self.variant else spelled

    @property
    def seeds(self) -> tuple[int, ...]:
        """The calibration seeds averaged over; empty where the method draws none."""
        return tuple(sorted({record.seed for record in self.records if record.seed is not None}))

    @property
    def perplexity(self) -> Summary:
        """Perplexity over seeds: the geometric mean, so that rows stand in the order of their mean losses."""
        return self.figures.get(_PERPLEXITY, Summary(None, None, 0))

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key by perplexity: finite ones first, lower before higher, then broken models, then unmeasured ones."""
        value = self.perplexity.mean
        if value is None:
            return (2, 0.0)
        return (0, value) if math.isfinite(value) else (1, 0.0)


@dataclass(frozen=True)
class Group:
    """What was measured on one model revision, on one text under one protocol: only that shares a column.

    `apart` says what tells the group from others of the same model and protocol, empty where there are none.
    """

    key: Key
    label: str
    rows: tuple[Row, ...]
    apart: str = ""

    @property
    def model(self) -> str:
        """The model's id."""
        return self.key.model

    @property
    def revision(self) -> str:
        """The model's revision; empty where none was recorded."""
        return self.key.revision

    @property
    def protocol(self) -> str:
        """The evaluation protocol's id; empty for what was not evaluated."""
        return self.key.protocol

    @property
    def dense(self) -> tuple[Row, ...]:
        """The rows of the unpruned model, one a weight type."""
        return tuple(row for row in self.rows if row.method == DENSE)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of pruned rows, mildest first."""
        return tuple(dict.fromkeys(row.target for row in self.rows if row.method != DENSE))


@dataclass(frozen=True)
class Comparison:
    """What a report shows, in order: groups of comparable rows, cells that did not finish, warnings.

    `records` are those of models, `kernels` the finished timings of single products, which have a table of their own.
    """

    groups: tuple[Group, ...]
    problems: tuple[Record, ...]
    warnings: tuple[tuple[Record, str], ...]
    records: tuple[Record, ...] = field(repr=False)
    kernels: tuple[Record, ...] = field(default=(), repr=False)

    def warned(self) -> list[tuple[str, str]]:
        """Every warning once, and the cells that it was said of, each with how often where that is more than once."""
        found: dict[str, Counter[str]] = {}
        for record, text in self.warnings:
            where = f"{record.model} {asked_of(record)} {record.target}"
            found.setdefault(text, Counter())[where] += 1
        return [(text, _listed(cells)) for text, cells in found.items()]


def _listed(cells: Counter[str]) -> str:
    named = [cell if count == 1 else f"{cell} ({count} times)" for cell, count in cells.items()]
    more = [f"and {len(named) - _CELLS_NAMED} more"] if len(named) > _CELLS_NAMED else []
    return ", ".join([*named[:_CELLS_NAMED], *more])


def compare(records: Sequence[Record]) -> Comparison:
    """Arrange current records (see `reports.load.current`); only seeds of equal cells are averaged."""
    kernels = tuple(record for record in records if record.phase == KERNEL_PHASE and record.status == "done")
    records = [record for record in records if record.phase != KERNEL_PHASE or record.status != "done"]
    done = [record for record in records if record.status == "done"]
    prunes = {record.cell: record for record in done if record.phase == SIZE_PHASE}
    saves: dict[str, Parts] = {}
    for record in done:
        if record.phase == SAVE_PHASE:
            saves[record.cell] = (*saves.get(record.cell, ()), record)
    groups: Slots = {}
    evaluated: set[str] = set()
    for record in done:
        if record.phase in (SIZE_PHASE, SAVE_PHASE):
            continue
        prune = prunes.get(record.cell)
        parts = (*((prune,) if prune is not None else ()), *saves.get(record.cell, ()), record)
        evaluated.update(part.cell for part in parts)
        _place(groups, record, parts)
    for record in prunes.values():
        if record.cell not in evaluated:
            _place(groups, record, (*saves.get(record.cell, ()), record))
    _add_dense(groups)
    return Comparison(
        groups=tuple(
            _group(key, slots, _apart(key, groups))
            for key, slots in sorted(groups.items(), key=lambda item: item[0].protocol == "")
        ),
        problems=tuple(record for record in records if record.status != "done"),
        warnings=tuple((record, warning) for record in (*done, *kernels) for warning in record.warnings),
        records=tuple(records),
        kernels=kernels,
    )


def recovery_of(record: Record) -> str:
    """What trained the model after pruning, as `lora` or `4xfull`; empty for one-shot results."""
    spelled = record.parameters.get("recovery", "")
    return spelled if isinstance(spelled, str) else str(spelled)


def asked_of(record: Record) -> str:
    """A record's method as people read it, with what trained the model."""
    recovery = recovery_of(record)
    return f"{record.method} with {recovery}" if recovery else record.method


def _add_dense(groups: Slots) -> None:
    """Set the dense model beside recovered ones, too: changes are against it."""
    for key, slots in groups.items():
        if key.recovered:
            dense = {
                identity: list(runs)
                for identity, runs in groups.get(key._replace(recovered=False), {}).items()
                if identity[0] == DENSE
            }
            groups[key] = {**dense, **slots}


def _place(groups: Slots, record: Record, parts: Parts) -> None:
    environment = record.environment if record.phase in TIMED_PHASES else ""
    key = Key(
        record.model,
        revision_of(record),
        record.protocol,
        evaluated_on(record),
        environment,
        bool(recovery_of(record)),
    )
    identity = (
        record.method,
        record.target,
        record.calibration,
        record.dtype,
        json.dumps(record.parameters, sort_keys=True),
    )
    groups.setdefault(key, {}).setdefault(identity, []).append(parts)


def _fact(record: Record, name: str) -> str:
    value = record.provenance.get(name)
    return value if isinstance(value, str) else ""


def revision_of(record: Record) -> str:
    """The model's revision or file hash; empty where none was recorded."""
    model = record.provenance.get("model")
    revision = model.get("revision") if isinstance(model, dict) else None
    return revision if isinstance(revision, str) else ""


def evaluated_on(record: Record) -> str:
    """Digest of what the model was evaluated on: the tokens, or the tasks with their data; empty for a prune."""
    evaluation = record.provenance.get("evaluation")
    tokens = evaluation.get("tokens_sha256") if isinstance(evaluation, dict) else None
    if isinstance(tokens, str):
        return tokens
    tasks = record.provenance.get("tasks")
    return hashlib.sha256(json.dumps(tasks, sort_keys=True).encode()).hexdigest() if tasks else ""


def _apart(key: Key, groups: Slots) -> str:
    shared = (key.model, key.protocol, key.recovered)
    namesakes = [other for other in groups if (other.model, other.protocol, other.recovered) == shared]
    said = []
    for noun, own, found in (
        ("text", key.text, {other.text for other in namesakes}),
        ("environment", key.environment, {other.environment for other in namesakes}),
    ):
        if len(found) > 1:
            said.append(f"{noun} {clean(own[:8]) or 'not recorded'} ({len(found)} different {noun}s)")
    return ", ".join(said)


def _group(key: Key, slots: dict[Identity, list[Parts]], apart: str) -> Group:
    rows: list[Row] = []
    for identity, runs in slots.items():
        # One subject may have several phases under one protocol; distinct subjects are distinct runs.
        merged: dict[str, dict[int, Record]] = {}
        for parts in runs:
            merged.setdefault(parts[-1].subject, {}).update({id(part): part for part in parts})
        members = [tuple(parts.values()) for parts in merged.values()]
        seeds = [parts[-1].seed for parts in members]
        if len(set(seeds)) == len(seeds):
            rows.append(_row(identity, members))
        else:
            # Equal seeds mean these differ in something not shown: never average them.
            rows += [_row(identity, [parts], parts[-1].subject[:8]) for parts in members]
    rows = _against_dense(rows)
    rows = _tell_apart(rows)
    rows.sort(key=lambda row: (row.method != DENSE, target_order(row.target), *row.rank, row.name))
    label = next(
        (_fact(record, "label") for row in rows for record in row.records if _fact(record, "label")), ""
    )
    return Group(key, label, tuple(rows), apart)


def _row(identity: Identity, members: Sequence[Parts], variant: str = "") -> Row:
    values: dict[tuple[str, str], list[float | None]] = {}
    units: dict[tuple[str, str], str] = {}
    for parts in members:
        for record in parts:
            for metric in (*record.metrics, *derived(record)):
                values.setdefault((record.phase, metric.name), []).append(metric.value)
                units[record.phase, metric.name] = metric.unit
    method, target, calibration, dtype, parameters = identity
    return Row(
        method=method,
        target=target,
        calibration=calibration,
        dtype=dtype,
        parameters=parameters,
        records=tuple({id(record): record for parts in members for record in parts}.values()),
        # A figure that some seed lacks is missing, not averaged over the others.
        figures={
            key: (geometric if key == _PERPLEXITY else summarise)(
                [*entries, *[None] * (len(members) - len(entries))]
            )
            for key, entries in values.items()
        },
        units=units,
        change=Summary(None, None, 0),
        variant=variant,
        recovery=recovery_of(members[0][-1]),
    )


def derived(record: Record) -> tuple[Metric, ...]:
    """What the phase added to the memory that the process held before it, where both were measured."""
    peak, base = record.metric("peak_memory"), record.metric("base_memory")
    if peak is None or base is None:
        return ()
    return (Metric(name="added_memory", unit="byte", value=peak - base),)


def _against_dense(rows: Sequence[Row]) -> list[Row]:
    dense = {row.dtype: row.perplexity.mean for row in rows if row.method == DENSE}
    return [_changed(row, dense.get(row.dtype)) for row in rows]


def _changed(row: Row, dense: float | None) -> Row:
    values = [record.metric("perplexity") for record in row.records if record.phase == QUALITY_PHASE]
    ratios = geometric([ratio(value, dense) for value in values])
    return Row(**{**vars(row), "change": ratios})


def _tell_apart(rows: Sequence[Row]) -> list[Row]:
    """Name what differs where one method appears more than once at a target."""
    named: list[Row] = []
    sharing: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        sharing.setdefault((row.method, row.target, row.recovery), []).append(row)
    for row in rows:
        twins = sharing[row.method, row.target, row.recovery]
        parts = [row.variant] if row.variant else []
        if len({other.dtype for other in twins}) > 1:
            parts.append(row.dtype)
        if len({other.calibration for other in twins}) > 1:
            parts.append(row.calibration or "no calibration")
        if len({other.parameters for other in twins}) > 1:
            parts += _distinct_parameters(row, twins)
        named.append(Row(**{**vars(row), "variant": ", ".join(parts)}))
    return named


def _distinct_parameters(row: Row, twins: Sequence[Row]) -> list[str]:
    own = json.loads(row.parameters)
    others = [json.loads(other.parameters) for other in twins]
    names = sorted({name for other in others for name in other})
    differing = [name for name in names if any(other.get(name) != own.get(name) for other in others)]
    return [f"{clean(name, 40)}={clean(json.dumps(own[name]), 40)}" for name in differing if name in own] or [
        "plain"
    ]
