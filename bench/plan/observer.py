"""What a grid tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bench.plan.cells import Cell

__all__ = ["GridObserver"]


class GridObserver(Protocol):
    """Progress of a grid; its ``phase``, ``step`` and ``warning`` are also what a pruner reports to."""

    def plan(self, cells: Sequence[Cell]) -> None:
        """The grid begins; ``cells`` in the order they run, refused ones last."""
        ...

    def cell(self, index: int, cell: Cell) -> None:
        """Cell ``index`` (from 0) begins."""
        ...

    def focus(self, index: int) -> None:
        """Phases, steps and warnings that follow are of cell ``index``, of several that run at once."""
        ...

    def phase(self, name: str, total: int) -> None:
        """A phase of ``total`` steps begins inside the current cell."""
        ...

    def step(self, done: int, note: str = "") -> None:
        """``done`` steps of the phase are finished."""
        ...

    def warning(self, text: str) -> None:
        """Something worth a line."""
        ...

    def cached(self, index: int, cell: Cell) -> None:
        """Everything cell ``index`` needs was already stored."""
        ...

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None:
        """Cell ``index`` ended as ``done``, ``refused`` or ``failed``; ``summary`` is one line."""
        ...

    def close(self) -> None:
        """The grid is over, whichever way."""
        ...
