"""Completion of comma lists of ids and names, looked up only when a shell asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

__all__ = [
    "evaluations",
    "forms",
    "methods",
    "models",
    "parameters",
    "protocols",
    "recoveries",
    "tasks",
    "texts",
]

_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _list_of(names: Callable[[str], Iterable[str]]) -> _Complete:
    """Complete the last word of a comma list; ``names`` may look at what is typed of it."""

    def complete(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        taken = set(before.split(","))
        return [
            CompletionItem(f"{before}{comma}{name}")
            for name in names(last)
            if name.startswith(last) and name not in taken
        ]

    return complete


def parameters(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete ``name.parameter=``."""
    from methods import registry

    owners = (
        *registry.names(),
        *registry.allocations(),
        *registry.refinements(),
        *registry.recoveries(),
    )
    words = (f"{owner}.{name}=" for owner in owners for name in registry.parameters_of(owner))
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _models(_last: str) -> Iterable[str]:
    from bench.models.registry import entries

    return (entry.id for entry in entries())


def _methods(last: str) -> Iterable[str]:
    """Rules and shorthands; behind ``@`` allocations, behind ``+`` refinements."""
    from methods import registry

    cut = max(last.rfind("@"), last.rfind("+"))
    if cut < 0:
        return (*registry.names(), *registry.shorthands())
    known: Iterable[str] = registry.allocations() if last[cut] == "@" else registry.refinements()
    return (last[: cut + 1] + name for name in known)


def _recoveries(_last: str) -> Iterable[str]:
    from methods import registry

    return ("none", *registry.recoveries())


def _protocols(_last: str) -> Iterable[str]:
    from bench.text.protocols import PROTOCOLS

    return PROTOCOLS


def _texts(_last: str) -> Iterable[str]:
    from bench.text.protocols import DATASETS

    return DATASETS


def _evaluations(_last: str) -> Iterable[str]:
    from bench.evaluate import available

    return available()


def _forms(_last: str) -> Iterable[str]:
    from bench.plan.saving import FORMS

    return FORMS


def _tasks(_last: str) -> Iterable[str]:
    from bench.plan.suites import KJV, PREFIX, STANDARD, SUITES

    return (*STANDARD, *KJV, *(PREFIX + name for name in SUITES))


models = _list_of(_models)
methods = _list_of(_methods)
protocols = _list_of(_protocols)
recoveries = _list_of(_recoveries)
texts = _list_of(_texts)
evaluations = _list_of(_evaluations)
tasks = _list_of(_tasks)
forms = _list_of(_forms)
