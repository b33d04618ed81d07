"""Completion of comma lists of ids and names, looked up only when a shell asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

__all__ = ["evaluations", "methods", "models", "protocols", "texts"]

_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _list_of(names: Callable[[], Iterable[str]]) -> _Complete:
    """Complete the last word of a comma list."""

    def complete(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        taken = set(before.split(","))
        return [
            CompletionItem(f"{before}{comma}{name}")
            for name in names()
            if name.startswith(last) and name not in taken
        ]

    return complete


def _models() -> Iterable[str]:
    from bench.models.registry import entries

    return (entry.id for entry in entries())


def _methods() -> Iterable[str]:
    from methods import registry

    return registry.names()


def _protocols() -> Iterable[str]:
    from bench.text.protocols import PROTOCOLS

    return PROTOCOLS


def _texts() -> Iterable[str]:
    from bench.text.protocols import DATASETS

    return DATASETS


def _evaluations() -> Iterable[str]:
    from bench.evaluate import available

    return available()


models = _list_of(_models)
methods = _list_of(_methods)
protocols = _list_of(_protocols)
texts = _list_of(_texts)
evaluations = _list_of(_evaluations)
