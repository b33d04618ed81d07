"""`bench run --dry-run`: the plan with what each cell will need; no weights, no network."""

from __future__ import annotations

from typing import Any

from bench.cli.output import bytes_text, console, counted, duration_text, print_json, print_table
from bench.plan.capacity import measured_rate
from bench.plan.cells import Cell, Plan
from bench.plan.grammar import DENSE_METHOD
from bench.plan.machine import batch_tokens
from bench.plan.rates import Rates
from bench.plan.resources import Estimate, estimate
from bench.results.remote import named

__all__ = ["describe", "show"]


def show(plan: Plan, stored: frozenset[Cell] = frozenset()) -> None:
    """Print the plan, as one JSON object or as tables."""
    found = describe(plan, stored)
    if plan.settings.as_json:
        print_json(found)
        return
    rows = [
        (
            *(cell["model"], _spelled(cell), cell["target"], "-" if cell["seed"] is None else cell["seed"]),
            _state(cell, plan),
            bytes_text(cell["download_bytes"]),
            bytes_text(cell["disk_bytes"]),
            bytes_text(cell["memory_bytes"]),
            duration_text(cell["seconds"]),
        )
        for cell in found["cells"]
    ]
    columns = ("model", "method", "target", "seed", "state", "download", "disk", "memory", "time")
    if rows:
        print_table(columns, rows, f"{counted(len(rows), 'cell')} (all figures are estimates)")
    if found["refused"]:
        print_table(
            ("model", "cells", "why they will be refused"),
            _grouped(found["refused"]),
            f"{counted(len(found['refused']), 'cell')} refused",
        )
    if found["cells"] and (plan.settings.rates is not None or plan.settings.memory_budget):
        _by_phase(found["cells"])
    total = found["total"]
    console().print(
        f"in all: download {bytes_text(total['download_bytes'])}, disk {bytes_text(total['disk_bytes'])}, "
        f"memory {bytes_text(total['memory_bytes'])}, time {duration_text(total['seconds'])}; "
        f"results go to {named(plan.settings.out)}"
    )


def describe(plan: Plan, stored: frozenset[Cell] = frozenset()) -> dict[str, Any]:
    """The plan as JSON: cells with their needs, refusals with their reasons, totals.

    Disk in all is the sum over cells where pruned models are saved, else the largest cell's.
    """
    rates: dict[tuple[str, str, str, int], Rates] = {}
    cells = []
    downloads: dict[str, int] = {}
    for cell in plan.cells:
        key = (cell.device, cell.dtype, cell.hessian_dtype, cell.threads)
        if key not in rates:
            rates[key] = _rates(plan, cell)
        need = estimate(cell, rates=rates[key], saved=plan.settings.saved)
        done = cell in stored
        cells.append({**_named(cell), "stored": done, **_needs(need, done), **_placed(cell, need)})
        if not done:
            downloads[cell.model] = need.download_bytes
    kept = [int(cell["saved_bytes"]) for cell in cells]
    passing = [int(cell["disk_bytes"]) - stays for cell, stays in zip(cells, kept, strict=True)]
    total = {
        "download_bytes": sum(downloads.values()),
        "disk_bytes": sum(kept) + max(passing, default=0),
        "memory_bytes": max((int(cell["memory_bytes"]) for cell in cells), default=0),
        "seconds": sum(float(cell["seconds"]) for cell in cells),
    }
    refused = [{**_named(refusal.cell), "reason": refusal.reason} for refusal in plan.refusals]
    return {"cells": cells, "refused": refused, "total": total, "out": named(plan.settings.out)}


def _rates(plan: Plan, cell: Cell) -> Rates:
    """Those of the machine planned for, or this one's: products measured now, reading and writing left out."""
    if plan.settings.rates is not None:
        return plan.settings.rates.rates
    flops = measured_rate(cell.device, cell.dtype, cell.threads)
    same = cell.dtype == cell.hessian_dtype
    return Rates(flops, flops if same else measured_rate(cell.device, cell.hessian_dtype, cell.threads))


def _placed(cell: Cell, need: Estimate) -> dict[str, Any]:
    """Where things lie, and memory and time by phase."""
    placement = cell.placement
    return {
        "placement": {
            "states": _states(cell, need),
            "hidden_budget": cell.hidden_budget,
            "prefetch": placement.prefetch,
            "batch_tokens": placement.batch_tokens or batch_tokens(cell.device),
        },
        "host_bytes": need.host_bytes,
        "phases": {
            phase: {"memory_bytes": peak, "seconds": need.durations.get(phase)}
            for phase, peak in need.memory.items()
        },
    }


def _state(cell: dict[str, Any], plan: Plan) -> str:
    if cell["stored"]:
        return "stored"
    if plan.settings.rates is not None:
        return "elsewhere"
    return "on disk" if cell["model_cached"] else "fetch"


def _states(cell: Cell, need: Estimate) -> str:
    """Where hidden states lie: on the device, on its host, or on disk."""
    if not need.states_bytes:
        return "-"
    if need.states_bytes > cell.hidden_budget:
        return "disk"
    return "memory" if cell.device == "cpu" else "GPU" if cell.placement.device_states else "host"


def _by_phase(cells: list[dict[str, Any]]) -> None:
    rows = []
    for cell in cells:
        placement = cell["placement"]
        for phase, figures in cell["phases"].items():
            rows.append(
                (
                    *(cell["model"], _spelled(cell), cell["target"], phase),
                    bytes_text(figures["memory_bytes"]),
                    bytes_text(cell["host_bytes"]),
                    placement["states"],
                    "copy" if placement["prefetch"] and cell["device"] != "cpu" else "pages",
                    placement["batch_tokens"],
                    duration_text(figures["seconds"]),
                )
            )
    columns = ("model", "method", "target", "phase", "memory", "host", "states in", "ahead", "batch", "time")
    print_table(columns, rows, "by phase")


def _grouped(refused: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Refusals of one model for one reason in one row."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for cell in refused:
        spelled = cell["method"] if cell["method"] == DENSE_METHOD else f"{_spelled(cell)} {cell['target']}"
        found.setdefault((cell["model"], cell["reason"]), {})[spelled] = None
    return [(model, ", ".join(cells), reason) for (model, reason), cells in found.items()]


def _spelled(cell: dict[str, Any]) -> str:
    """The method, and what trains the model afterwards."""
    return f"{cell['method']} with {cell['recovery']}" if "recovery" in cell else str(cell["method"])


def _needs(need: Estimate, stored: bool) -> dict[str, Any]:
    return {
        "model_cached": need.download_bytes == 0,
        "download_bytes": 0 if stored else need.download_bytes,
        "disk_bytes": 0 if stored else need.disk_bytes,
        "saved_bytes": 0 if stored else need.saved_bytes,
        "memory_bytes": 0 if stored else need.memory_bytes,
        "seconds": 0.0 if stored else need.seconds,
    }


def _named(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model,
        "method": cell.method,
        "target": cell.target,
        **({"layers": cell.layers} if cell.layers else {}),
        **({"recovery": cell.recovery} if cell.recovery else {}),
        "seed": cell.seed,
        "dtype": cell.dtype,
        "device": cell.device,
        "protocol": cell.evaluation.id,
        "protocols": {evaluation: cell.protocol(evaluation) for evaluation in cell.evaluations},
        "calibration": cell.calibration.id if cell.calibration else "",
        "parameters": dict(cell.parameters),
    }
