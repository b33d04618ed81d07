"""Forms in which a cell's pruned model can be kept, and what each takes on disk."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from bench.plan.grammar import Value
from methods.target import Target

if TYPE_CHECKING:
    from bench.plan.cells import Cell
    from methods.interface import ModelShape, Reshaping

__all__ = ["FORMS", "PHASES", "SLICED", "forms_of", "refused", "reshaping", "saved_bytes"]

FORMS: Final = ("dense", "bitmap", "quantised")
"""What ``--save-as`` takes."""
SLICED: Final = "sliced"
"""The one form of a model of other shapes: its own architecture."""
PHASES: Final = tuple(f"save/{form}" for form in (*FORMS, SLICED))
"""A form's phase inside the harness, and the protocol of its record, whose phase is ``save``."""


def forms_of(cell: Cell, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Forms for a cell, among them such as are ``refused``: a model of other shapes comes as itself, never as dense."""
    if cell.dense or not asked:
        return ()
    if reshaping(cell) is None:
        return asked
    return (SLICED, *(form for form in asked if form != "dense"))


def refused(cell: Cell, form: str) -> str | None:
    """Why the cell's model cannot be kept in a form, or None."""
    if form not in ("dense", SLICED) and reshaping(cell) is not None:
        return (
            f"--save-as {form}: {cell.method} changes the model's shapes; such a model is smaller as it is, has no zeros or "
            f"grids to pack, and is kept once, as an architecture of its own"
        )
    if form == "quantised" and not Target.parse(cell.target).bits:
        return f"--save-as {form}: {cell.target} puts no weight on a grid; join a grid by --bits, as in {cell.target}+4bit"
    return None


def reshaping(cell: Cell) -> Reshaping | None:
    """The cell's pruner, where its models have other shapes than the dense one."""
    return None if cell.dense else _reshaping(cell.method, cell.parameters, cell.recovery)


def saved_bytes(cell: Cell, shape: ModelShape, form: str) -> int:
    """Bytes of the tensors kept in a form, in closed form; ``shape`` is the pruned model's.

    Exact for shares and N:M as bitmaps where rows fill whole bytes; else at least what it will be.
    """
    from methods.families import family_of, sizes
    from methods.selection import Selection

    total = sizes.parameters(shape) * shape.itemsize
    if form in ("dense", SLICED):
        return total
    target = Target.parse(cell.target)
    chosen = [
        matrix
        for _, matrix in Selection.parse(cell.layers).of(family_of(shape).matrices(shape), shape.blocks)
    ]
    worked = sum(matrix.size for matrix in chosen)
    rest = total - worked * shape.itemsize
    if form == "quantised":
        bits, across = target.bits or 0, _groupsize(cell)
        groups = sum(matrix.rows * -(-matrix.columns // (across or matrix.columns)) for matrix in chosen)
        # levels and zero points in whole words, scales, two int64 for each matrix's shape
        words = sum(4 * -(-matrix.columns * bits // 32) * matrix.rows for matrix in chosen)
        return rest + words + groups * (shape.itemsize + 4) + 16 * len(chosen)
    if target.kind == "bytes":
        return int((1 - target.amount) * total)
    removed = int(target.amount * (sizes.parameters(shape) if target.kind == "params" else worked))
    return min(total, rest + sizes.bitmap_bytes(worked, max(0, worked - removed), shape.itemsize))


def _groupsize(cell: Cell) -> int:
    """Columns that share a scale; 0 is the whole row."""
    return next((int(value) for name, value in cell.parameters if name.endswith(".groupsize")), 0)


@cache
def _reshaping(method: str, parameters: tuple[tuple[str, Value], ...], recovery: str) -> Reshaping | None:
    from methods import registry
    from methods.interface import Reshaping

    if registry.method(registry.spelling(method).rule).layerwise:
        return None
    pruner = registry.get(method, dict(parameters), recover=recovery)
    return pruner if isinstance(pruner, Reshaping) else None
