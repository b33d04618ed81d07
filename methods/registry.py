"""Methods by name: ``rule[@allocation][+refinement...]``, ours and those that other packages bring.

Free of torch until a pruner is made, so that lists, plans and completion stay quick.
"""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from methods import catalogue
from methods.entries import AllocationEntry, Method, Parameter, RefinementEntry, Shorthand
from methods.errors import UserError, nearest, shown
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
    "RefinementEntry",
    "Shorthand",
    "Spelling",
    "allocations",
    "declared",
    "get",
    "method",
    "names",
    "parameters_of",
    "refinements",
    "rule",
    "shorthands",
    "source_modules",
    "spelling",
]

ENTRY_POINTS = "prune_bench.methods"
"""Entry-point group in which a package names its entries: a ``Method``, ``AllocationEntry`` or ``RefinementEntry``."""

_Entry = Method | AllocationEntry | RefinementEntry


@dataclass(frozen=True, slots=True)
class _Table:
    """Every entry by name. Rules, allocations and refinements share one set of names, so that ``--set`` is clear."""

    rules: dict[str, Method] = field(default_factory=dict)
    allocations: dict[str, AllocationEntry] = field(default_factory=dict)
    refinements: dict[str, RefinementEntry] = field(default_factory=dict)

    def add(self, entry: _Entry) -> None:
        if isinstance(entry, Method):
            self.rules[entry.name] = entry
        elif isinstance(entry, AllocationEntry):
            self.allocations[entry.name] = entry
        else:
            self.refinements[entry.name] = entry

    def find(self, name: str) -> _Entry | None:
        return self.rules.get(name) or self.allocations.get(name) or self.refinements.get(name)


@cache
def _table() -> _Table:
    table = _Table()
    ours: tuple[_Entry, ...] = (*catalogue.METHODS, *catalogue.ALLOCATIONS, *catalogue.REFINEMENTS)
    for entry in ours:
        table.add(entry)
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found = point.load()
        except Exception as error:  # a broken plug-in must not take the others down
            raise UserError(
                f"plug-in '{point.name}' cannot be loaded ({error}); uninstall or mend it"
            ) from None
        if not isinstance(found, _Entry) or found.name != point.name:
            raise UserError(
                f"plug-in '{point.name}' is no methods.registry.Method, AllocationEntry or RefinementEntry "
                "of that name; mend its entry point"
            )
        if table.find(found.name) or found.name in shorthands() or found.name == DENSE_METHOD:
            raise UserError(f"plug-in '{point.name}' takes the name of a method that exists; rename it")
        table.add(found)
    return table


def names() -> tuple[str, ...]:
    """Every rule, ours first."""
    return tuple(_table().rules)


def allocations() -> Mapping[str, AllocationEntry]:
    """Allocations by name."""
    return dict(_table().allocations)


def refinements() -> Mapping[str, RefinementEntry]:
    """Refinements by name."""
    return dict(_table().refinements)


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
    """What ``--set name.parameter=value`` may set of a rule, allocation or refinement. Raises UserError."""
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


def declared(text: str) -> dict[str, Parameter]:
    """All parameters of a whole spelling as a cell names them: the rule's plain, others as ``owl.lambda``.

    A shorthand's values are their defaults. Raises UserError for unknown names.
    """
    parsed = spelling(text)
    found = dict(method(parsed.rule).parameters)
    for name in _others(parsed):
        found |= {f"{name}.{key}": value for key, value in parameters_of(name).items()}
    short = shorthands().get(parse(text).rule)
    for key, value in (short.parameters if short else {}).items():
        found[key] = replace(found[key], default=value)
    return found


def get(text: str, parameters: Mapping[str, Any], layers: str = "") -> Pruner:
    """The pruner of a spelling, with these parameters, named as ``declared`` does; others keep their defaults.

    ``layers`` selects matrices, as ``Selection`` spells it. Raises UserError for unknown names, and for a
    selection given to a method that is not layer-wise.
    """
    parsed = spelling(text)
    entry = method(parsed.rule)
    known = declared(text)
    for name in parameters:
        if name not in known:
            raise UserError(_unknown(f"parameter of {parsed}", name, known))
    values = {**{name: parameter.default for name, parameter in known.items()}, **parameters}
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

    def other(found: _Entry) -> Any:
        prefix = f"{found.name}."
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        return _make(found, own)

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


def source_modules(text: str) -> tuple[str, ...]:
    """Modules of a spelling's rule, allocation and refinements: what its pruned weights depend on."""
    parsed = spelling(text)
    table = _table()
    entries: list[_Entry] = [
        method(parsed.rule),
        table.allocations[parsed.allocation or "uniform"],
        *(table.refinements[name] for name in parsed.refinements),
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
    module, _, attribute = entry.factory.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    return made(**{f"{key}_" if keyword.iskeyword(key) else key: value for key, value in parameters.items()})


def _unknown(kind: str, seen: str, allowed: Iterable[str]) -> str:
    """What to write instead: the right place for a name of another kind, a near name, or all there are."""
    words = list(allowed)
    found = _table().find(seen)
    place = {
        Method: f"it is a method: write --methods {seen}",
        AllocationEntry: f"it is an allocation: write it behind @, as in magnitude@{seen}",
        RefinementEntry: f"it is a refinement: write it behind +, as in magnitude+{seen}",
    }
    hint = nearest(seen, words) or f"; known: {', '.join(words) or 'none'}"
    if found is not None:
        hint = f"; {place[type(found)]}"
    return f"{kind} '{shown(seen)}' is unknown{hint}"
