"""Asymmetric grids per row and group of columns: made from weights, and the way to levels and back.

A level is a whole number from 0 to 2^bits - 1; it stands for scale · (level - zero). Every range holds zero and the zero
point is a whole number, so a removed weight stays exactly zero (GPTQ, arXiv 2210.17323; SparseGPT, arXiv 2301.00774,
section 3.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.kernels.operators import Grid

__all__ = ["SEARCHES", "GridMaker", "MatrixGrid", "dequantise", "grid_of_range", "quantise", "requantise"]

SEARCHES = ("minmax", "mse")

_PIECE = 1 << 22  # weights searched at once: bounds the copies
_SHRINKS = tuple(1 - step / 100 for step in range(80))
_TINY = torch.finfo(torch.float32).tiny  # kernels may take smaller divisors for zero


@dataclass(frozen=True, slots=True)
class MatrixGrid:
    """The grids of one matrix: ``scale`` and ``zero`` [rows, groups] float32, a group being ``groupsize`` columns.

    The last group may be shorter; one group of all columns is a grid per row.
    """

    scale: Tensor
    zero: Tensor
    bits: int
    groupsize: int

    @property
    def levels(self) -> int:
        """2 to the number of bits."""
        return int(2**self.bits)

    def at(self, column: int) -> Grid:
        """The row grids of the group that holds ``column``, as the sweep takes them."""
        group = column // self.groupsize
        return Grid(self.scale[:, group].contiguous(), self.zero[:, group].contiguous(), self.levels)

    def spread(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero for every weight [rows, columns]."""
        if self.scale.shape[1] == 1:
            return self.scale.expand(-1, columns), self.zero.expand(-1, columns)
        scale, zero = (part.repeat_interleave(self.groupsize, dim=1) for part in (self.scale, self.zero))
        return scale[:, :columns], zero[:, :columns]


@dataclass(frozen=True, slots=True)
class GridMaker:
    """How grids are made: one per row and ``groupsize`` columns, or for the whole row (0).

    ``search``: ``minmax`` spans each range; ``mse`` shrinks it by up to four fifths to the least squared error of
    rounding. Scales are representable in ``dtype``, the one weights are stored in, so that a scale and a level
    give the stored weight in that dtype too. Raises ValueError for an unknown search.
    """

    bits: int
    groupsize: int = 0
    search: str = "minmax"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"search '{self.search}' is unknown: pass {' or '.join(SEARCHES)}")

    def __call__(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero [rows] of one group [rows, columns] float32."""
        if self.search == "mse":
            return _least_squares(weight, self.bits, self.dtype)
        return grid_of_range(*_range(weight), self.bits, self.dtype)

    def whole(self, weight: Tensor) -> MatrixGrid:
        """The grids of a weight [rows, columns] float32 as it stands, group by group."""
        columns = weight.shape[1]
        size = min(self.groupsize or columns, columns)
        found = [self(weight[:, start : start + size]) for start in range(0, columns, size)]
        scale, zero = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
        return MatrixGrid(scale, zero, self.bits, size)


def grid_of_range(low: Tensor, high: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero [rows] of ranges ``low`` <= 0 <= ``high`` [rows]; an empty range becomes -1 to 1, as published."""
    empty = (low == 0) & (high == 0)
    low = torch.where(empty, -torch.ones_like(low), low)
    high = torch.where(empty, torch.ones_like(high), high)
    scale = _representable((high - low) / (2**bits - 1), dtype)
    return scale, torch.round(-low / scale)


def quantise(weight: Tensor, grid: MatrixGrid) -> Tensor:
    """Nearest levels [rows, columns] int32 of weight [rows, columns]; halves to even, beyond the range its end."""
    scale, zero = grid.spread(weight.shape[1])
    return torch.clamp(torch.round(weight.float() / scale) + zero, 0, grid.levels - 1).to(torch.int32)


def dequantise(levels: Tensor, grid: MatrixGrid) -> Tensor:
    """Weights [rows, columns] float32 of levels [rows, columns]."""
    scale, zero = grid.spread(levels.shape[1])
    return scale * (levels.float() - zero)


def requantise(stored: Tensor, grid: MatrixGrid) -> Tensor | None:
    """Levels [rows, columns] int32 that give ``stored`` [rows, columns] bit for bit in its dtype, or None where none do.

    Rounding to a narrow dtype moves a weight by up to half a step of an 8-bit grid, so neighbours are tried as well.
    """
    nearest = quantise(stored, grid)
    found = nearest.clone()
    missing = torch.ones_like(nearest, dtype=torch.bool)
    for offset in (0, -1, 1):
        levels = (nearest + offset).clamp_(0, grid.levels - 1)
        fits = missing & (dequantise(levels, grid).to(stored.dtype) == stored)
        found[fits] = levels[fits]
        missing &= ~fits
    return None if bool(missing.any()) else found


def _range(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.min(dim=1).values.clamp(max=0), weight.max(dim=1).values.clamp(min=0)


def _least_squares(weight: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    pieces = weight.split(max(1, _PIECE // max(1, weight.shape[1])))
    found = [_best_shrink(piece, bits, dtype) for piece in pieces]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def _best_shrink(weight: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the shrunk ranges the one with the least squared rounding error of each row; the widest of equal ones."""
    low, high = _range(weight)
    scale, zero = grid_of_range(low, high, bits, dtype)
    least = torch.full_like(low, torch.inf)
    for part in _SHRINKS:
        tried_scale, tried_zero = grid_of_range(low * part, high * part, bits, dtype)
        tried = MatrixGrid(tried_scale[:, None], tried_zero[:, None], bits, weight.shape[1])
        error = (dequantise(quantise(weight, tried), tried) - weight).square_().sum(dim=1)
        better = error < least
        scale, zero = torch.where(better, tried_scale, scale), torch.where(better, tried_zero, zero)
        least = torch.where(better, error, least)
    return scale, zero


def _representable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The next ``scale`` upwards that ``dtype`` holds: a narrower one would clip the range's ends."""
    narrow = scale.to(dtype)
    low = narrow.to(scale.dtype) < scale
    raised = torch.where(low, torch.nextafter(narrow, torch.full_like(narrow, torch.inf)), narrow)
    return raised.to(torch.float32).clamp(min=_TINY)
