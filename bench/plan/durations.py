"""Work of a cell by phase, in FLOPs and bytes, and the time it takes at a machine's rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from bench.plan.cells import Cell
from bench.plan.memory import evaluation_states, prune_states
from bench.plan.rates import Rates
from bench.plan.suites import tasks_of
from bench.plan.work import (
    ITEMSIZE,
    calibration_tokens,
    evaluation_tokens,
    hessian_columns,
    pruned_shape,
    recovery,
    sensitivities,
    stored_itemsize,
    work_of,
)

if TYPE_CHECKING:
    from methods.interface import ModelShape

__all__ = ["flops", "seconds"]

_TASK_ITEMS: Final = 2000
"""Rough items of a zero-shot task, and tokens scored per item."""
_ITEM_TOKENS: Final = 75
"""Shared beginnings counted once: 73 in the mean over the eleven standard tasks with SmolLM2's tokenizer."""

Flops = tuple[float, float]
"""In the compute dtype, and in the Hessians'."""


def flops(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> dict[str, Flops]:
    """FLOPs by phase: forward passes, Hessians (2 n d² each), factorisations (3 d³), products such as sweeps (2 r d²).

    Slicing: a Gram matrix and a lift (2 n d² each) and an eigendecomposition (9 d³) for each of two segments a
    block; every matrix is rotated once.
    """
    from methods import registry
    from methods.families.sizes import flops_per_token

    found: dict[str, Flops] = {"prune": (0.0, 0.0)}
    if cell.calibration is not None:
        narrow, wide = _pruning(cell, config, shape)
        times = registry.recovery(cell.recovery).stages if cell.recovery else 1
        found["prune"] = (times * narrow + recovery(cell, shape).flops, times * wide)
    tokens, length = evaluation_tokens(cell, shape)
    each = flops_per_token(pruned_shape(cell, shape), length)
    for evaluation in cell.evaluations:
        if evaluation == "perplexity":
            found[evaluation] = (float(tokens * each), 0.0)
        elif evaluation == "zeroshot":
            items = len(tasks_of(cell.tasks)) * (cell.limit or _TASK_ITEMS)
            found[evaluation] = (float(items * _ITEM_TOKENS * (1 + cell.shots) * each), 0.0)
        else:
            found[evaluation] = (0.0, 0.0)
    return found


def seconds(cell: Cell, config: Mapping[str, Any], shape: ModelShape, rates: Rates) -> dict[str, float]:
    """Seconds by phase. Reading goes on beside the work, so the slower of the two counts; writing is waited for.

    A prune writes the blocks, and after each the states of all windows, from which a killed one goes on.
    """
    from methods.families.sizes import parameters

    size = parameters(shape)
    stored = size * stored_itemsize(cell.model, shape)
    reading = stored / rates.read
    if cell.device != "cpu":
        reading += size * ITEMSIZE[cell.dtype] / rates.copy
    found = {}
    work = flops(cell, config, shape)
    if cell.calibration_workers > 1 and cell.calibration is not None:
        # one worker's share of the windows is passed and counted in the time that all take
        share = replace(cell.calibration, samples=-(-cell.calibration.samples // cell.calibration_workers))
        work["prune"] = flops(replace(cell, calibration=share), config, shape)["prune"]
    for phase, (narrow, wide) in work.items():
        took = narrow / rates.flops + wide / rates.wide
        if phase == "prune" and not cell.dense:
            written = stored + (shape.blocks - 1) * prune_states(cell, shape)
            took = max(took, reading) + written / rates.write
        elif phase == "perplexity":
            written = evaluation_states(cell, shape) if cell.dense else 0
            took = max(took, reading) + written / rates.write
        found[phase] = took
    return found


def _pruning(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> Flops:
    """Of pruning once."""
    from methods.families.sizes import flops_per_token, prunable

    if cell.calibration is None:
        return 0.0, 0.0
    sliced = pruned_shape(cell, shape)
    drawn, heldout = calibration_tokens(cell, shape)
    passes = 2 if cell.schedule == "blockwise" else 1
    head = 2 * shape.vocabulary * shape.embedding_width
    per_token = flops_per_token(shape, cell.calibration.length or shape.positions) - head
    work = work_of(cell)
    narrow = float((passes * (drawn + heldout) + work.passes_before * drawn) * per_token)
    if sliced.slices is not None:
        width = shape.width
        rotations = 2 * (prunable(shape) + 2 * shape.vocabulary * width) * width
        return narrow, float(rotations + 2 * shape.blocks * (4 * drawn * width**2 + 9 * width**3))
    wide = 0.0
    for products in (work.products, work.products_before):
        for columns, rows in hessian_columns(cell, config, shape) if products else ():
            once = 2 * drawn * columns**2 + 3 * columns**3 + products * 2 * rows * columns**2
            wide += shape.blocks * once
    return narrow + sensitivities(cell, shape).flops, wide
