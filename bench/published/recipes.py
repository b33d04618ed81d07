"""What would reproduce a published table: runs of `bench`, derived from the figures themselves, so that nothing drifts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from bench.published.figures import Figure, Source, figures, source_of
from bench.published.requests import Request, request
from methods.errors import UserError, nearest, shown

__all__ = ["Omission", "Recipe", "Step", "recipe", "recipes"]

_REFERENCE: Final = ("magnitude", "sparsegpt", "wanda")
"""Rules that can follow the published code to the letter."""


@dataclass(frozen=True, slots=True)
class Step:
    """One run: models x methods x targets under one protocol, with the number of figures that it gives.

    ``options`` are those of `bench run`, by their names in a configuration file; the values are texts, numbers and lists.
    """

    options: Mapping[str, Any]
    figures: int


@dataclass(frozen=True, slots=True)
class Omission:
    """Figures of a table that no run of `bench` gives, and why."""

    what: str
    figures: int
    reason: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published table as runs. ``rows`` are its figures, each of them in a step or an omission."""

    name: str
    source: Source
    tables: tuple[str, ...]
    rows: tuple[Figure, ...]
    steps: tuple[Step, ...]
    omissions: tuple[Omission, ...]


@dataclass(frozen=True, slots=True)
class _Protocol:
    """What the cells of one run share."""

    calibration: str
    samples: int
    length: int
    measure: str
    on: str
    window: int
    bits: str
    parameters: tuple[tuple[str, Any], ...]
    seeds: int


def slug(table: str) -> str:
    """``table1`` of "Table 1 (…)", ``sec4.1`` of "Sec 4.1 text"."""
    words = re.sub(r"\s*\(.*", "", table).lower().removesuffix(" text").split()
    joined = "".join(words) if words[0] in ("table", "figure", "sec") else "-".join(words)
    return re.sub(r"[^a-z0-9.-]", "", joined)


@cache
def recipes() -> Mapping[str, Recipe]:
    """One recipe per published table, by name (`sparsegpt/table1`); a figure that stands in two tables is in both."""
    found: dict[str, list[Figure]] = {}
    for row in figures():
        for label in row.table.split(" / "):
            found.setdefault(f"{source_of(row).name}/{slug(label)}", []).append(row)
    return {
        name: _recipe(name, rows) for name, rows in sorted(found.items(), key=lambda item: _order(item[0]))
    }


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UserError, naming what comes near, for an unknown one."""
    known = recipes()
    found = known.get(name.strip().lower().replace(" ", ""))
    if found is None:
        source = name.strip().lower().partition("/")[0]
        own = [other.partition("/")[2] for other in known if other.partition("/")[0] == source]
        hint = f"; {source} has {', '.join(own)}" if own else nearest(name, known)
        raise UserError(f"no recipe '{shown(name)}'{hint}; bench reproduce lists all")
    return found


def _order(name: str) -> tuple[str, list[tuple[int, str]]]:
    source, _, table = name.partition("/")
    return source, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", table)]


def _recipe(name: str, rows: list[Figure]) -> Recipe:
    asked: list[Request] = []
    left: dict[tuple[str, str], list[Figure]] = {}
    for row in rows:
        found = request(row)
        if isinstance(found, str):
            left.setdefault((row.method, found), []).append(row)
        else:
            asked.append(found)
    source = source_of(rows[0])
    return Recipe(
        name=name,
        source=source,
        tables=tuple(dict.fromkeys(row.table for row in rows)),
        rows=tuple(rows),
        steps=tuple(_steps(asked, source)),
        omissions=tuple(
            Omission(f"{method}, {_spelled(row.metric for row in group)}", len(group), reason)
            for (method, reason), group in left.items()
        ),
    )


def _spelled(words: Iterable[str]) -> str:
    unique = list(dict.fromkeys(words))
    return ", ".join(unique[:3]) + (f" and {len(unique) - 3} more" if len(unique) > 3 else "")


def _steps(asked: list[Request], source: Source) -> Iterable[Step]:
    """Runs whose cells are exactly those asked for: pruned ones in products, the dense ones that none brings along."""
    groups: dict[_Protocol, dict[str, dict[str, dict[str, int]]]] = {}
    dense: dict[tuple[str, str, int], dict[str, int]] = {}
    tasks: dict[_Protocol, dict[str, None]] = {}
    dense_tasks: dict[str, None] = {}
    for entry in asked:
        if entry.dense:
            on = "" if entry.measure == "zeroshot" else entry.on
            counts = dense.setdefault((entry.measure, on, entry.window * (on != "")), {})
            counts[entry.model] = counts.get(entry.model, 0) + 1
            dense_tasks |= {entry.on: None} if entry.measure == "zeroshot" else {}
            continue
        key = _protocol(entry)
        tasks.setdefault(key, {})[entry.on] = None
        cells = groups.setdefault(key, {}).setdefault(entry.model, {}).setdefault(entry.method, {})
        target = entry.target.partition("+")[0]
        cells[target] = cells.get(target, 0) + 1
    covered: dict[tuple[str, str, int], set[str]] = {}
    for key, cells_of in groups.items():
        for models, methods, targets, count in _products(cells_of):
            place = (key.measure, key.on, key.window if key.on else 0)
            mine = [model for model in models if model not in covered.setdefault(place, set())]
            covered[place].update(mine)
            count += sum(dense.get(place, {}).get(model, 0) for model in mine)
            yield Step(_options(key, models, methods, targets, list(tasks[key]), source), count)
    for (measure, on, window), counts in dense.items():
        rest = [model for model in counts if model not in covered.get((measure, on, window), set())]
        if rest:
            key = _Protocol("", 0, 0, measure, on, window, "", (), 1)
            options = _options(key, rest, ["dense"], [], list(dense_tasks), source)
            yield Step(options, sum(counts[model] for model in rest))


def _protocol(entry: Request) -> _Protocol:
    return _Protocol(
        calibration=entry.calibration,
        samples=entry.samples,
        length=entry.length,
        measure=entry.measure,
        on="" if entry.measure == "zeroshot" else entry.on,
        window=entry.window if entry.measure == "perplexity" else 0,
        bits=entry.target.partition("+")[2].removesuffix("bit"),
        parameters=entry.parameters,
        seeds=entry.seeds,
    )


def _products(
    cells: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> Iterable[tuple[list[str], list[str], list[str], int]]:
    """(models, methods, targets, figures) whose products together are exactly the cells."""
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for model, counts in cells.items():
        for method, counted in counts.items():
            rows.setdefault((method, tuple(sorted(counted))), []).append(model)
    merged: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (method, targets), models in rows.items():
        merged.setdefault((tuple(models), targets), []).append(method)
    for (names, shares), methods in merged.items():
        count = sum(cells[model][method][share] for model in names for method in methods for share in shares)
        yield list(names), methods, list(shares), count


def _options(
    key: _Protocol,
    models: list[str],
    methods: list[str],
    targets: list[str],
    tasks: list[str],
    source: Source,
) -> dict[str, Any]:
    options: dict[str, Any] = {"models": models, "methods": methods}
    shares = [target for target in targets if target.endswith("%") and not target.startswith("slice")]
    patterns = [target for target in targets if ":" in target]
    slices = [target.removeprefix("slice") for target in targets if target.startswith("slice")]
    if shares:
        options["sparsity"] = shares
    if patterns:
        options["pattern"] = [*(["unstructured"] if shares else []), *patterns]
    if slices:
        options["slicing"] = slices
    if key.bits:
        options["bits"] = [key.bits]
    options["protocol"] = "paper"
    if key.calibration:
        options |= {"calibration": key.calibration, "samples": key.samples, "length": key.length}
        options["seeds"] = list(range(key.seeds))
    if key.measure == "zeroshot":
        options |= {"eval": ["zeroshot"], "tasks": tasks}
    else:
        options |= {"eval": ["perplexity"], "text": key.on or "wikitext2"}
        if key.on and key.window != 2048:
            options["eval-length"] = key.window
    settings = {f"{_owner(name, methods)}.{name.rpartition('.')[2]}": value for name, value in key.parameters}
    if methods != ["dense"] and source.code == "published":
        settings |= {f"{rule}.reference": True for rule in methods if rule in _REFERENCE}
    if settings:
        options["set"] = settings
    if key.calibration and methods != ["slicegpt"]:
        # where the source does not say, that of the codes which others build on
        options["schedule"] = source.schedule or "blockwise"
    return options


def _owner(name: str, methods: list[str]) -> str:
    """Whose parameter it is: ``mixed`` of ``mixed.alpha``, else the rule's."""
    return name.rpartition(".")[0] or methods[0].partition("@")[0]
