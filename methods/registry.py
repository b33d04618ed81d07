"""Methods by name: ``rule[@allocation][+refinement...]``, ours and those that other packages bring.

Free of torch until a pruner is made, so that lists, plans and completion stay quick.
"""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from methods import catalogue
from methods.entries import (
    OURS,
    AllocationEntry,
    Method,
    Parameter,
    RecoveryEntry,
    RefinementEntry,
    Shorthand,
)
from methods.errors import UserError, nearest, shown
from methods.recover import spelling as recover_spelling
from methods.recover.spelling import RecoverySpelling
from methods.selection import Selection
from methods.spelling import DENSE_METHOD, Spelling, parse

if TYPE_CHECKING:
    from methods.interface import Pruner
    from methods.layerwise.rule import Rule

__all__ = [
    "ENTRY_POINTS",
    "AllocationEntry",
    "Method",
    "Parameter",
    "RecoveryEntry",
    "RefinementEntry",
    "Shorthand",
    "Spelling",
    "allocations",
    "calibrated",
    "declared",
    "get",
    "method",
    "names",
    "outside",
    "parameters_of",
    "recorded",
    "recoveries",
    "recovery",
    "recovery_libraries",
    "refinements",
    "rule",
    "shorthands",
    "source_modules",
    "spelling",
]

ENTRY_POINTS: Mapping[str, type[Method] | type[AllocationEntry] | type[RefinementEntry]] = {
    "prune_bench.methods": Method,
    "prune_bench.allocations": AllocationEntry,
    "prune_bench.refinements": RefinementEntry,
}
"""Entry-point groups in which a package names what it brings, with what each of them holds."""

_Entry = Method | AllocationEntry | RefinementEntry | RecoveryEntry


@dataclass(frozen=True, slots=True)
class _Table:
    """Every entry by name. All kinds share one set of names, so that ``--set`` is clear."""

    rules: dict[str, Method] = field(default_factory=dict)
    allocations: dict[str, AllocationEntry] = field(default_factory=dict)
    refinements: dict[str, RefinementEntry] = field(default_factory=dict)
    recoveries: dict[str, RecoveryEntry] = field(default_factory=dict)

    def add(self, entry: _Entry) -> None:
        if isinstance(entry, Method):
            self.rules[entry.name] = entry
        elif isinstance(entry, AllocationEntry):
            self.allocations[entry.name] = entry
        elif isinstance(entry, RecoveryEntry):
            self.recoveries[entry.name] = entry
        else:
            self.refinements[entry.name] = entry

    def find(self, name: str) -> _Entry | None:
        return (
            self.rules.get(name)
            or self.allocations.get(name)
            or self.refinements.get(name)
            or self.recoveries.get(name)
        )


@cache
def _table() -> _Table:
    table = _Table()
    ours: tuple[_Entry, ...] = (
        *catalogue.METHODS,
        *catalogue.ALLOCATIONS,
        *catalogue.REFINEMENTS,
        *catalogue.RECOVERIES,
    )
    for entry in ours:
        table.add(entry)
    for group, kind in ENTRY_POINTS.items():
        for point in entry_points(group=group):
            table.add(_brought(table, point, kind))
    return table


def _brought(
    table: _Table, point: EntryPoint, kind: type[Method] | type[AllocationEntry] | type[RefinementEntry]
) -> _Entry:
    """What a package's entry point names. Raises UserError, since a broken plug-in should say its own name."""
    try:
        found = point.load()
    except Exception as error:  # whatever a stranger's module raises
        raise UserError(
            f"plug-in '{shown(point.name)}' cannot be loaded ({shown(error)}); uninstall or mend it"
        ) from None
    if not isinstance(found, kind) or found.name != point.name:
        raise UserError(
            f"plug-in '{shown(point.name)}' is no methods.registry.{kind.__name__} of that name; mend its entry point"
        )
    if table.find(found.name) or found.name in shorthands() or found.name == DENSE_METHOD:
        raise UserError(f"plug-in '{found.name}' takes the name of a method that exists; rename it")
    if found.origin == OURS and point.dist is not None:
        return replace(found, origin=point.dist.name)
    return found


def names() -> tuple[str, ...]:
    """Every rule, ours first."""
    return tuple(_table().rules)


def allocations() -> Mapping[str, AllocationEntry]:
    """Allocations by name."""
    return dict(_table().allocations)


def refinements() -> Mapping[str, RefinementEntry]:
    """Refinements by name."""
    return dict(_table().refinements)


def recoveries() -> Mapping[str, RecoveryEntry]:
    """Recoveries by name."""
    return dict(_table().recoveries)


def shorthands() -> Mapping[str, Shorthand]:
    """Shorthands by name."""
    return {entry.name: entry for entry in catalogue.SHORTHANDS}


def method(rule: str) -> Method:
    """The registry's entry. Raises UserError with the nearest names."""
    table = _table()
    if rule not in table.rules:
        raise UserError(_unknown("method", rule, [*table.rules, *shorthands(), DENSE_METHOD]))
    return table.rules[rule]


def parameters_of(name: str) -> Mapping[str, Parameter]:
    """What ``--set name.parameter=value`` may set of a rule, allocation, refinement or recovery. Raises UserError."""
    entry = _table().find(name)
    return dict((entry or method(name)).parameters)


def spelling(text: str) -> Spelling:
    """The canonical parts of ``rule[@allocation][+refinement...]``: shorthands spelled out, ``@uniform`` left out.

    Raises UserError naming what is wrong and what is near.
    """
    parsed = _expanded(parse(text))
    entry = method(parsed.rule)
    table = _table()
    if parsed.allocation and parsed.allocation not in table.allocations:
        raise UserError(_unknown("allocation", parsed.allocation, table.allocations))
    for name in parsed.refinements:
        if name not in table.refinements:
            raise UserError(_unknown("refinement", name, table.refinements))
    for mark, kind, given in (
        ("@", "allocation", [parsed.allocation] if parsed.allocation else []),
        ("+", "refinement", parsed.refinements),
    ):
        if given and not entry.layerwise:
            raise UserError(
                f"method '{entry.name}' is not layer-wise and takes no {kind}; leave out '{mark}{given[0]}'"
            )
    return replace(parsed, allocation="" if parsed.allocation == "uniform" else parsed.allocation)


def recovery(text: str) -> RecoverySpelling:
    """The parts of ``lora``, ``4xfull`` …, nothing for one shot. Raises UserError with the nearest names."""
    parsed = recover_spelling.parse(text)
    if parsed and parsed.kind not in _table().recoveries:
        raise UserError(_unknown("recovery", parsed.kind, _table().recoveries))
    return parsed


def declared(text: str, recover: str = "") -> dict[str, Parameter]:
    """All parameters of a whole spelling as a cell names them: the rule's plain, others as ``owl.lambda``.

    ``recover``: the spelling of what trains the model afterwards, whose parameters are ``lora.rank`` and so on.
    A shorthand's values are their defaults. Raises UserError for unknown names.
    """
    parsed = spelling(text)
    found = dict(method(parsed.rule).parameters)
    trained = recovery(recover)
    for name in (*_others(parsed), *([trained.kind] if trained else [])):
        found |= {f"{name}.{key}": value for key, value in parameters_of(name).items()}
    short = shorthands().get(parse(text).rule)
    for key, value in (short.parameters if short else {}).items():
        found[key] = replace(found[key], default=value)
    return found


def get(text: str, parameters: Mapping[str, Any], layers: str = "", recover: str = "") -> Pruner:
    """The pruner of a spelling, with these parameters, named as ``declared`` does; others keep their defaults.

    ``layers`` selects matrices, as ``Selection`` spells it; ``recover`` spells what trains the model afterwards.
    Raises UserError for unknown names, for values that are not what the entry declares, and for a selection given
    to a method that is not layer-wise.
    """
    parsed, trained = spelling(text), recovery(recover)
    entry = method(parsed.rule)
    known = declared(text, recover)
    for name in parameters:
        if name not in known:
            raise UserError(_unknown(f"parameter of {parsed}", name, known))
        known[name].check(name if "." in name else f"{parsed.rule}.{name}", parameters[name])
    values = {**{name: parameter.default for name, parameter in known.items()}, **parameters}

    def other(found: _Entry) -> Any:
        prefix = f"{found.name}."
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        return _make(found, own)

    pruner = _pruner(entry, parsed, values, other, layers)
    if not trained:
        return pruner
    from methods.recover.pruner import recovered

    return recovered(pruner, other(_table().recoveries[trained.kind]), trained.stages)


def _pruner(
    entry: Method, parsed: Spelling, values: Mapping[str, Any], other: Callable[[_Entry], Any], layers: str
) -> Pruner:
    """The pruner alone; ``other`` makes what goes with a rule."""
    made = _make(entry, {name: value for name, value in values.items() if "." not in name})
    if not entry.layerwise:
        if layers:
            raise UserError(
                f"method '{entry.name}' is not layer-wise and works on whole blocks; leave out --layers {layers}"
            )
        pruner: Pruner = made
        return pruner
    from methods.layerwise.pruner import layerwise

    table = _table()
    return layerwise(
        made,
        allocate=other(table.allocations[parsed.allocation or "uniform"]),
        refine=tuple(other(table.refinements[name]) for name in parsed.refinements),
        layers=Selection.parse(layers),
    )


def rule(name: str, parameters: Mapping[str, Any] | None = None) -> Rule:
    """A layer-wise method's rule alone, other parameters at their defaults. Raises UserError for another method."""
    entry = method(name)
    if not entry.layerwise:
        raise UserError(f"method '{name}' is not layer-wise; it prunes whole models only")
    values = {key: value.default for key, value in entry.parameters.items()}
    made: Rule = _make(entry, {**values, **(parameters or {})})
    return made


def recorded(text: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without those that only say where something lies on this machine."""
    known = declared(text)
    return {name: value for name, value in parameters.items() if name not in known or not known[name].local}


def outside(text: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the other programs that a method's results depend on; none for most. Raises PruneBenchError."""
    entry = method(spelling(text).rule)
    if not entry.outside:
        return {}
    own = {name: value for name, value in parameters.items() if name in entry.parameters}
    return dict(_load(entry.outside)(**own))


def recovery_libraries(recover: str) -> tuple[str, ...]:
    """Distributions whose versions a recovery's weights depend on, beside torch."""
    trained = recovery(recover)
    return _table().recoveries[trained.kind].libraries if trained else ()


def calibrated(text: str) -> bool:
    """Whether a spelling's rule, allocation or refinements use calibration text: training behind them always does."""
    parsed, table = spelling(text), _table()
    entries = (method(parsed.rule), table.allocations[parsed.allocation or "uniform"])
    refined = (table.refinements[name] for name in parsed.refinements)
    return any(entry.calibrated for entry in entries) or any(entry.calibrated for entry in refined)


def source_modules(text: str, recover: str = "") -> tuple[str, ...]:
    """Modules of a spelling's rule, allocation, refinements and recovery: what its pruned weights depend on."""
    parsed, trained = spelling(text), recovery(recover)
    table = _table()
    entries: list[_Entry] = [
        method(parsed.rule),
        table.allocations[parsed.allocation or "uniform"],
        *(table.refinements[name] for name in parsed.refinements),
        *([table.recoveries[trained.kind]] if trained else []),
    ]
    return tuple(module for entry in entries for module in (entry.factory.partition(":")[0], *entry.sources))


def _expanded(parsed: Spelling) -> Spelling:
    """The spelling that a shorthand stands for, with what is added behind it."""
    short = shorthands().get(parsed.rule)
    if short is None:
        return parsed
    meant = parse(short.spelling)
    if parsed.allocation and meant.allocation:
        raise UserError(
            f"method '{shown(parsed)}': {short.name} is short for {short.spelling}; "
            f"write {meant.rule}@{shown(parsed.allocation)} for another allocation"
        )
    refinements = (*meant.refinements, *parsed.refinements)
    return parse(str(Spelling(meant.rule, parsed.allocation or meant.allocation, refinements)))


def _others(parsed: Spelling) -> tuple[str, ...]:
    return (*([parsed.allocation] if parsed.allocation else []), *parsed.refinements)


def _make(entry: _Entry, parameters: Mapping[str, Any]) -> Any:
    made = _load(entry.factory)
    return made(**{f"{key}_" if keyword.iskeyword(key) else key: value for key, value in parameters.items()})


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _unknown(kind: str, seen: str, allowed: Iterable[str]) -> str:
    """What to write instead: the right place for a name of another kind, a near name, or all there are."""
    words = list(allowed)
    found = _table().find(seen)
    place = {
        Method: f"it is a method: write --methods {seen}",
        AllocationEntry: f"it is an allocation: write it behind @, as in magnitude@{seen}",
        RefinementEntry: f"it is a refinement: write it behind +, as in magnitude+{seen}",
        RecoveryEntry: f"it is a recovery: write --recover {seen}",
    }
    hint = nearest(seen, words) or f"; known: {', '.join(words) or 'none'}"
    if found is not None:
        hint = f"; {place[type(found)]}"
    return f"{kind} '{shown(seen)}' is unknown{hint}"
