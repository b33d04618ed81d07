"""Which cells of a plan a folder already holds, judged by what their records say of themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.plan.cells import Cell
from bench.plan.saving import forms_of, refused

__all__ = ["stored"]


def stored(cells: Iterable[Cell], out: Path, saved: tuple[str, ...] = ()) -> frozenset[Cell]:
    """Cells all done in ``out`` and kept in the forms ``saved``, by model, method, target, seed, dtype, protocols, parameters.

    No weights or texts are read, so this foretells what a run will skip, but for changed files and code, which the run
    itself compares, and for tasks that the hub did not give, which it asks for again.
    Raises StoreError where the store cannot be read.
    """
    if not (out / "store.json").is_file():
        return frozenset()
    from bench.results.segments import Store

    done = {
        _identity(
            record.phase,
            record.model,
            record.method,
            record.target,
            record.seed,
            record.dtype,
            record.calibration,
            record.protocol,
            dict(record.parameters),
        )
        for record in Store(out).records()
        if record.settled
    }
    return frozenset(cell for cell in cells if _wanted(cell, saved) <= done)


def _wanted(cell: Cell, saved: tuple[str, ...]) -> set[str]:
    calibration = cell.calibration.id if cell.calibration else ""
    kept = [f"save/{form}" for form in forms_of(cell, saved) if refused(cell, form) is None]
    return {
        _identity(
            phase.partition("/")[0],
            cell.model,
            cell.method,
            cell.target,
            cell.seed,
            cell.dtype,
            calibration,
            cell.protocol(phase),
            cell.recorded(),
        )
        for phase in ("prune", *cell.evaluations, *kept)
    }


def _identity(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)
