"""What a cell reads: whether its windows fit the model's context, and whether its text files are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.plan.grammar import shown

if TYPE_CHECKING:
    from bench.plan.cells import Cell

__all__ = ["unreadable"]


def unreadable(cell: Cell, context: int) -> str | None:
    """Why a model of ``context`` tokens cannot be given the cell's text, in one line, or None.

    Reads no text. Without a data folder the hub is believed to have every file.
    """
    return _too_long(cell, context) or _missing(cell)


def _too_long(cell: Cell, context: int) -> str | None:
    from bench.text.protocols import PROTOCOLS, standard

    limit = f"are longer than the model's context of {context}"
    if "perplexity" in cell.evaluations and cell.evaluation.length > context:
        fitting = [name for name in PROTOCOLS if standard(name).evaluation.length <= context]
        return (
            f"evaluation {cell.evaluation.id}: windows of {cell.evaluation.length} tokens {limit}; "
            f"use --protocol {' or '.join(fitting)}"
        )
    # Reconstruction errors are measured on held-out windows of the calibration's length: all methods read them.
    if cell.heldout is not None and cell.heldout.length > context:
        return (
            f"calibration {cell.heldout.id}: windows of {cell.heldout.length} tokens {limit}; "
            f"use --length {context} or less"
        )
    return None


def _missing(cell: Cell) -> str | None:
    if not cell.data_dir:
        return None
    from bench.text.documents import local_file

    folder = Path(cell.data_dir)
    for dataset, split in _splits(cell, folder):
        path = local_file(folder, dataset, split)
        if dataset != "kjv" and not path.is_file():
            return (
                f"no {path.relative_to(folder)} in --data-dir '{shown(folder)}'; put it there, "
                "or leave out --data-dir to ask the hub"
            )
    return None


def _splits(cell: Cell, folder: Path) -> Iterator[tuple[str, str]]:
    """Data set and split of every text that the cell reads."""
    from bench.text.documents import local_file

    if "perplexity" in cell.evaluations:
        yield cell.evaluation.dataset, cell.evaluation.split
    if cell.calibration is not None:
        yield cell.calibration.dataset, cell.calibration.split
    if cell.heldout is None:
        return
    dataset, split = cell.heldout.dataset, cell.heldout.split
    if dataset != "c4":
        yield dataset, "validation" if split != "validation" else "train"
    elif not local_file(folder, dataset, f"{split}_extra").is_file():
        # Without a file of their own, held-out documents come from the end of the calibration's.
        yield dataset, split
