"""`bench list`: what can be named on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from bench.cli.output import bytes_text, print_json, print_table

if TYPE_CHECKING:
    from methods.registry import AllocationEntry, Method, RecoveryEntry, RefinementEntry

__all__ = ["command"]

_TARGETS = (
    ("50%", "--sparsity 0.5", "this share of every matrix's weights, anywhere"),
    ("2:4", "--pattern 2:4", "of every 4 consecutive weights of a row 2 are kept; any N:M"),
    (
        "slice25%",
        "--slicing 0.25",
        "this share of the residual stream's width (slicegpt), rounded up to an interval",
    ),
    (
        "params-20%",
        "--params 0.2",
        "at most 80 % of the dense parameters: stored ones (slicegpt) or non-zero ones",
    ),
    (
        "bytes-30%",
        "--bytes 0.3",
        "at most 70 % of the dense bytes: stored (slicegpt) or as bitmap and non-zeros",
    ),
    (
        "50%+4bit",
        "--sparsity 0.5 --bits 4",
        "what stays lies on a grid of 4 bits too; 0%+4bit quantises alone",
    ),
)


def _models() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from bench.models.load import describe

    return describe(), ("id", "family", "parameters", "source", "cached", "download_bytes", "gated", "label")


def _methods() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from methods import registry

    rows = [{"method": name, **_described(registry.method(name))} for name in registry.names()]
    for short in registry.shorthands().values():
        entry = registry.method(registry.spelling(short.name).rule)
        row = {"method": short.name, **_described(entry), "parameters": dict(short.parameters)}
        rows.append({**row, "summary": f"short for {short.spelling}: {short.summary}"})
    return rows, ("method", "summary", "calibrated", "parameters", "paper", "origin")


def _described(entry: Method | AllocationEntry | RefinementEntry | RecoveryEntry) -> dict[str, Any]:
    return {
        "summary": entry.summary,
        "calibrated": entry.calibrated,
        "parameters": {key: value.default for key, value in entry.parameters.items()},
        "paper": entry.paper,
        "origin": entry.origin,
    }


def _allocations() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from methods import registry

    rows = [{"allocation": name, **_described(entry)} for name, entry in registry.allocations().items()]
    return rows, ("allocation", "summary", "calibrated", "parameters", "paper", "origin")


def _refinements() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from methods import registry

    rows = [{"refinement": name, **_described(entry)} for name, entry in registry.refinements().items()]
    return rows, ("refinement", "summary", "calibrated", "parameters", "paper", "origin")


def _recoveries() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from methods import registry

    rows = [{"recovery": name, **_described(entry)} for name, entry in registry.recoveries().items()]
    return rows, ("recovery", "summary", "calibrated", "parameters", "paper", "origin")


def _parameters() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from methods import registry

    rows = [
        {
            "parameter": f"{name}.{key}",
            "type": value.type.__name__,
            "default": value.default,
            "choices": None if value.choices is None else list(value.choices),
            "help": value.help,
        }
        for name in (
            *registry.names(),
            *registry.allocations(),
            *registry.refinements(),
            *registry.recoveries(),
        )
        for key, value in registry.parameters_of(name).items()
    ]
    return rows, ("parameter", "type", "default", "help")


def _protocols() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from bench.text.protocols import PROTOCOLS, standard

    rows = []
    for name in PROTOCOLS:
        protocol = standard(name)
        rows.append(
            {
                "protocol": name,
                "calibration": protocol.calibration.id,
                "evaluation": protocol.evaluation.id,
                "length": protocol.evaluation.length,
                "windows": protocol.evaluation.windows,
            }
        )
    return rows, ("protocol", "calibration", "evaluation", "length", "windows")


def _texts() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from bench.text.protocols import DATASETS

    return [{"text": name} for name in DATASETS], ("text",)


def _targets() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    rows = [{"target": target, "option": option, "meaning": meaning} for target, option, meaning in _TARGETS]
    return rows, ("target", "option", "meaning")


def _evaluations() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from bench.evaluate import available

    return [{"evaluation": name} for name in available()], ("evaluation",)


def _tasks() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from bench.evaluate.zeroshot.tasks import find, packaged
    from bench.plan.suites import KJV, STANDARD

    rows = []
    for task in map(find, (*STANDARD, *KJV)):
        listed = [str(entry.get("metric")) for entry in task.values.get("metric_list", ())]
        rows.append(
            {
                "task": task.name,
                "split": task.split,
                "metrics": [name for name in listed if name in ("acc", "acc_norm")],
                "data": "packaged" if packaged(task) else f"hub, or DIR/tasks/{task.name}/{task.split}.jsonl",
            }
        )
    return rows, ("task", "split", "metrics", "data")


def _suites() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from bench.plan.suites import PREFIX, SUITES

    rows = [
        {
            "suite": PREFIX + found.name,
            "tasks": list(found.tasks),
            "metric": found.metric,
            "paper": found.paper,
            "note": found.note,
        }
        for found in SUITES.values()
    ]
    return rows, ("suite", "tasks", "metric", "paper", "note")


_KINDS: dict[str, Callable[[], tuple[list[dict[str, Any]], tuple[str, ...]]]] = {
    "models": _models,
    "methods": _methods,
    "allocations": _allocations,
    "refinements": _refinements,
    "recoveries": _recoveries,
    "parameters": _parameters,
    "protocols": _protocols,
    "texts": _texts,
    "targets": _targets,
    "evaluations": _evaluations,
    "tasks": _tasks,
    "suites": _suites,
}


@click.command("list")
@click.argument("what", type=click.Choice(tuple(_KINDS)), required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON array on standard output.")
def command(what: str | None, as_json: bool) -> None:
    """Show what can be named: models, methods and so on; without a kind, models and methods."""
    kinds = (what,) if what else ("models", "methods")
    found = {kind: _KINDS[kind]() for kind in kinds}
    if as_json:
        print_json(found[what][0] if what else {kind: rows for kind, (rows, _) in found.items()})
        return
    for kind, (rows, columns) in found.items():
        words = [[_word(column, row.get(column)) for column in columns] for row in rows]
        print_table([column.removesuffix("_bytes") for column in columns], words, None if what else kind)


def _word(column: str, value: object) -> str:
    if column == "download_bytes":
        return bytes_text(value if isinstance(value, int) else None)
    if column == "length" and value == 0:
        return "context"
    if column == "windows" and value is None:
        return "all"
    if column == "parameters" and isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={str(inner).lower()}" for key, inner in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return str(value).lower() if column == "default" else "yes" if value else "-"
    return "-" if value in (None, "") else str(value)
