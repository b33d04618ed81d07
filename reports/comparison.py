"""The comparison itself: which cells share a column, what each row holds, who keeps most quality."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bench.results.records import Metric, Record
from reports.statistics import Summary, ratio, summarise
from reports.wording import clean

DENSE: Final = "dense"
SIZE_PHASE: Final = "prune"
SAVE_PHASE: Final = "save"
QUALITY_PHASE: Final = "perplexity"
KERNEL_PHASE: Final = "kernels"
BROKEN: Final = 10.0
"""A perplexity beyond this many times the dense one is called broken rather than worse."""

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
        """Perplexity over seeds."""
        return self.figures.get((QUALITY_PHASE, "perplexity"), Summary(None, None, 0))


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
class Standing:
    """The methods at one target of one group, best first; `note` says what the figures cannot settle."""

    target: str
    rows: tuple[Row, ...]
    note: str


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
    rows.sort(key=lambda row: (row.method != DENSE, target_order(row.target), *_rank(row), row.name))
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
            key: summarise([*entries, *[None] * (len(members) - len(entries))])
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
    ratios = summarise([ratio(value, dense) for value in values])
    return Row(**{**vars(row), "change": ratios})


def _tell_apart(rows: Sequence[Row]) -> list[Row]:
    """Name what differs where one method appears more than once at a target."""
    named: list[Row] = []
    for row in rows:
        own = (row.method, row.target, row.recovery)
        twins = [other for other in rows if (other.method, other.target, other.recovery) == own]
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


def _rank(row: Row) -> tuple[int, float]:
    value = row.perplexity.mean
    if value is None:
        return (2, 0.0)
    return (0, value) if math.isfinite(value) else (1, 0.0)


def target_order(target: str) -> tuple[int, float, str]:
    """Sort key of targets: shares, N:M, slices, parameters, bytes, each by the share asked for; the rest by name."""
    share = asked_sparsity(target)
    if share is not None:
        return (1 if ":" in target else 0, share, target)
    if match := re.fullmatch(r"(slice|params-|bytes-)([0-9]{1,3}(?:\.[0-9]{1,9})?)%", target):
        return (2 + ("slice", "params-", "bytes-").index(match[1]), float(match[2]) / 100, target)
    return (5, 0.0, target)


def asked_sparsity(target: str) -> float | None:
    """The share of weights that `50%` or `2:4` (N of every M kept) asks to remove; None for other targets.

    A grid that goes with it (`50%+4bit`) removes nothing.
    """
    target = re.sub(r"\+[0-9]{1,2}bit$", "", target)
    if match := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%", target):
        return float(match[1]) / 100
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", target)
    if match and int(match[2]) > 0:
        return 1 - int(match[1]) / int(match[2])
    return None


def standings(group: Group) -> list[Standing]:
    """Per target the rows that have a perplexity, best first, with a note on what overlap leaves open."""
    found: list[Standing] = []
    for target in group.targets:
        rows = [
            row for row in group.rows if row.target == target and row.method != DENSE and _rank(row)[0] < 2
        ]
        if rows:
            found.append(Standing(target, tuple(sorted(rows, key=_rank)), _unsettled(rows)))
    return found


def _unsettled(rows: Sequence[Row]) -> str:
    finite = sorted((row for row in rows if _rank(row)[0] == 0), key=_rank)
    if len(finite) < 2:
        return ""
    first, second = finite[0].perplexity, finite[1].perplexity
    if first.mean == second.mean:
        return "The first two are level."
    intervals = [summary for summary in (first, second) if summary.half_width is not None]
    if intervals and (first.high or 0.0) >= (second.low or 0.0):
        return "The intervals over seeds overlap: the order of the first two is not settled."
    return ""


def single_seed(rows: Iterable[Row]) -> bool:
    """Whether some row that draws calibration text has one seed only, and so no interval."""
    return any(len(row.seeds) == 1 for row in rows)


def sparsity_of(row: Row) -> str:
    """The metric that a row's target speaks of: with `--layers` it is a share of the matrices selected."""
    selected = "sparsity_selected"
    return selected if (SIZE_PHASE, selected) in row.figures else "sparsity"


def missed_targets(group: Group) -> list[Row]:
    """Rows whose achieved sparsity is more than a tenth of a point off what the target asks for."""
    missed = []
    for row in group.rows:
        achieved = row.figures.get((SIZE_PHASE, sparsity_of(row)), Summary(None, None, 0)).mean
        asked = asked_sparsity(row.target)
        if achieved is not None and asked is not None and not abs(achieved - asked) <= 0.001:
            missed.append(row)
    return missed
