"""What a cell works on, in closed form from its model's config: tokens, Hessians, what its method declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from bench.plan import saving
from bench.plan.cells import Cell

if TYPE_CHECKING:
    from methods.interface import ModelShape
    from methods.recover.cost import Cost as Training
    from methods.sensitivity.cost import Cost

__all__ = [
    "HELDOUT_WINDOWS",
    "ITEMSIZE",
    "Work",
    "calibrated",
    "calibration_tokens",
    "evaluation_tokens",
    "hessian_columns",
    "pruned_shape",
    "recovery",
    "sensitivities",
    "sizes_of",
    "stages",
    "stored_itemsize",
    "work_of",
]

_TOKENS: Final = {"wikitext2": 300_000, "ptb": 110_000, "c4": 524_288, "kjv": 60_000}
"""Rough token counts of whole evaluation texts."""
HELDOUT_WINDOWS: Final = 8
ITEMSIZE: Final = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@cache
def sizes_of(model: str) -> tuple[Mapping[str, Any], ModelShape]:
    """A model's config and sizes. Raises UserError, CheckpointError."""
    from bench.plan.cells import config_of

    return config_of(model)


def calibration_tokens(cell: Cell, shape: ModelShape) -> tuple[int, int]:
    """Tokens of the drawn and of the held-out windows."""
    if cell.calibration is None:
        return 0, 0
    length = cell.calibration.length or shape.positions
    return cell.calibration.samples * length, HELDOUT_WINDOWS * length


def evaluation_tokens(cell: Cell, shape: ModelShape) -> tuple[int, int]:
    """Tokens read for perplexity, and the window's length."""
    length = cell.evaluation.length or shape.positions
    if "perplexity" not in cell.evaluations:
        return 0, length
    windows = cell.evaluation.windows
    whole = _TOKENS.get(cell.evaluation.dataset, 300_000)
    return (whole if windows is None else min(whole, windows * length)), length


def pruned_shape(cell: Cell, shape: ModelShape) -> ModelShape:
    """Sizes of the model that the cell stores and evaluates."""
    from methods.target import Target

    pruner = saving.reshaping(cell)
    return shape if pruner is None else pruner.pruned_shape(shape, Target.parse(cell.target))


def hessian_columns(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> list[tuple[int, int]]:
    """(columns, rows that share it) of every Hessian in a block."""
    from methods.families import family_of

    if not calibrated(cell) or pruned_shape(cell, shape).slices is not None:
        return []
    family = family_of(shape)
    matrices = {matrix.name: matrix for matrix in family.matrices(shape)}
    stages = [[matrices[name] for name in stage.linears] for stage in family.stages(config)]
    return [(linears[0].columns, sum(matrix.rows for matrix in linears)) for linears in stages]


def calibrated(cell: Cell) -> bool:
    """Whether the pruning itself reads calibration text; training behind it always does."""
    from methods import registry

    return cell.calibration is not None and (not cell.recovery or registry.calibrated(cell.method))


def recovery(cell: Cell, shape: ModelShape) -> Training:
    """What training takes where the cell has any."""
    from methods import registry
    from methods.recover.cost import Cost, cost

    if cell.calibration is None or not cell.recovery:
        return Cost(0, 0, 0.0)
    heldout = calibration_tokens(cell, shape)[1]
    length = cell.calibration.length or shape.positions
    kind = registry.recovery(cell.recovery).kind
    return cost(pruned_shape(cell, shape), kind, dict(cell.parameters), length, heldout)


def stages(cell: Cell) -> int:
    """Models that lie under the run's folder beside the result while a recovery runs."""
    from methods import registry

    return min(2, registry.recovery(cell.recovery).stages) if cell.recovery else 0


def sensitivities(cell: Cell, shape: ModelShape) -> Cost:
    """What mixed sparsity's sensitivities take where the cell has them estimated."""
    from methods.sensitivity.cost import Cost, cost

    set_to = dict(cell.parameters)
    if cell.calibration is None or "mixed.estimator" not in set_to or set_to["mixed.file"]:
        return Cost(0, 0, 0.0)
    drawn = cell.calibration.length or shape.positions
    length = min(drawn, 256)
    windows = min(int(set_to["mixed.windows"]), cell.calibration.samples * (drawn // length))
    probes = int(set_to["mixed.probes"])
    return cost(shape, str(set_to["mixed.estimator"]), probes, windows, length, cell.hidden_budget)


@dataclass(frozen=True, slots=True)
class Work:
    """What a cell's method declares of its work: see ``methods.entries``."""

    workspace: float = 0
    products: int = 0
    passes_before: int = 0
    products_before: int = 0


def work_of(cell: Cell) -> Work:
    """What the cell's method and allocation declare; nothing where nothing is calibrated."""
    from methods import registry

    if cell.dense or not calibrated(cell):
        return Work()
    parts = registry.spelling(cell.method)
    entry = registry.method(parts.rule)
    allocation = registry.allocations()[parts.allocation or "uniform"]
    return Work(entry.workspace, entry.products, allocation.passes, allocation.products)


def stored_itemsize(model: str, shape: ModelShape) -> int:
    """Bytes of a weight on disk: as the config says, or as a download of two bytes a parameter shows."""
    from bench.models import registry

    if registry.is_path(model):
        return shape.itemsize
    entry = registry.get(model)
    return 2 if 1.9 < entry.download_bytes / entry.parameters < 2.1 else shape.itemsize
