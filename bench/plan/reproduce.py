"""A recipe as a plan: its runs joined into one list of cells, what this program lacks named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bench.plan.cells import Cell, Plan, Refusal, expand
from bench.plan.settings import Settings, gather
from bench.plan.suites import STANDARD
from bench.published.recipes import Recipe, Step
from methods.errors import UserError, nearest, shown

__all__ = ["LeftOut", "Narrowing", "plan_of", "runs_of"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a recipe asks for and this program cannot do, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Narrowing:
    """Globs that a recipe's models and methods must fit; empty ones fit all."""

    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()


def runs_of(recipe: Recipe, narrowing: Narrowing) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """Options of the runs, one mapping each as in a configuration file, and what is left out of them.

    Raises UserError for a glob that fits nothing in the recipe.
    """
    for option, patterns in (("models", narrowing.models), ("methods", narrowing.methods)):
        known = {str(name) for step in recipe.steps for name in step.options[option]}
        for pattern in patterns:
            if known and not _fit(known, (pattern,)):
                raise UserError(
                    f"--{option} '{shown(pattern)}' is not in {recipe.name}{nearest(pattern, known)}; "
                    f"it has {', '.join(sorted(known))}"
                )
    runs: list[dict[str, Any]] = []
    left: dict[LeftOut, None] = {}
    for step in recipe.steps:
        for found in _available(step, narrowing):
            if isinstance(found, LeftOut):
                left[found] = None
            else:
                runs.append(found)
    return runs, list(left)


def _available(step: Step, narrowing: Narrowing) -> Iterator[LeftOut | dict[str, Any]]:
    from bench.models.registry import entries

    options = dict(step.options)
    known = {entry.id for entry in entries()}
    for model in options["models"]:
        if model not in known:
            yield LeftOut(f"model {model}", "no model of bench list models; its architecture is not walked")
    options["models"] = _fit([model for model in options["models"] if model in known], narrowing.models)
    options["methods"] = _fit(options["methods"], narrowing.methods)
    if "tasks" in options:
        for task in options["tasks"]:
            if task not in STANDARD:
                yield LeftOut(f"task {task}", f"bench scores {', '.join(STANDARD)}")
        options["tasks"] = [task for task in options["tasks"] if task in STANDARD]
        if not options["tasks"]:
            return
    rules = {part for method in options["methods"] for part in (method, *method.split("@"))}
    if "set" in options:
        options["set"] = {
            name: value for name, value in options["set"].items() if name.partition(".")[0] in rules
        }
    if options["models"] and options["methods"]:
        yield options


def _fit(names: Any, patterns: tuple[str, ...]) -> list[str]:
    if not patterns:
        return list(names)
    return [name for name in names if any(fnmatchcase(name, pattern.lower()) for pattern in patterns)]


def plan_of(
    recipe: Recipe, runs: list[dict[str, Any]], flags: Mapping[str, Any], command: tuple[str, ...] = ()
) -> Plan:
    """The cells of all runs, each once. Raises UserError where there is none, or for a flag that is none."""
    if not runs:
        why = "; ".join(dict.fromkeys(omission.reason for omission in recipe.omissions))
        raise UserError(f"{recipe.name} holds nothing that bench can run" + (f": {why}" if why else ""))
    cells: dict[Cell, None] = {}
    refusals: dict[Refusal, None] = {}
    settings: Settings | None = None
    for run in runs:
        asked = gather(flags, command=command, base=run)
        plan = expand(asked)
        cells |= dict.fromkeys(plan.cells)
        refusals |= dict.fromkeys(plan.refusals)
        settings = asked if settings is None else _joined(settings, asked)
    if settings is None:
        raise ValueError("a recipe has runs")
    # a model at a time: its weights stay loaded, and its dense states are shared
    order = {model: index for index, model in enumerate(dict.fromkeys(cell.model for cell in cells))}
    return Plan(tuple(sorted(cells, key=lambda cell: order[cell.model])), tuple(refusals), settings)


def _joined(first: Settings, other: Settings) -> Settings:
    """What the runs share, with what any of them evaluates: later steps look here for checks only."""
    evaluations = tuple(dict.fromkeys((*first.evaluations, *other.evaluations)))
    tasks = other.tasks if "zeroshot" in other.evaluations else first.tasks
    return first.model_copy(update={"evaluations": evaluations, "tasks": tasks})
