"""Grids kept beside a finished block's weights, and what they take in the packed form.

``NAME.weight_scale`` [rows, groups] float32, ``NAME.weight_zero_point`` [rows, groups] uint8, ``NAME.weight_grid`` int32
(bits, columns per group). They are no parameters: a source leaves them out of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from methods.quantise.grid import MatrixGrid

__all__ = ["grid_tensors", "is_grid", "matrices_with_grids", "packed_bytes", "read_grid"]

_ENDS = (".weight_scale", ".weight_zero_point", ".weight_grid")
_WORD = 32  # bits that are packed into one integer
_SHAPE_BYTES = 16  # two int64: rows and columns


def is_grid(name: str) -> bool:
    """Whether a tensor of a finished block belongs to a grid."""
    return name.endswith(_ENDS)


def grid_tensors(matrix: str, grid: MatrixGrid) -> dict[str, Tensor]:
    """The tensors that keep the grid of a matrix. Raises ValueError beyond 8 bits, whose levels no byte holds."""
    if grid.bits > 8:
        raise ValueError(f"a grid of {grid.bits} bits is not kept: pass 8 at most")
    values = (
        grid.scale,
        grid.zero.to(torch.uint8),
        torch.tensor([grid.bits, grid.groupsize], dtype=torch.int32),
    )
    return {f"{matrix}{end}": value for end, value in zip(_ENDS, values, strict=True)}


def matrices_with_grids(names: Iterable[str]) -> list[str]:
    """The matrices among a finished block's tensors that have a grid, sorted."""
    return sorted(name.removesuffix(_ENDS[-1]) for name in names if name.endswith(_ENDS[-1]))


def read_grid(matrix: str, get: Callable[[str], Tensor]) -> MatrixGrid:
    """The grid of a matrix from its tensors, which ``get`` gives by name."""
    scale, zero, sizes = (get(f"{matrix}{end}") for end in _ENDS)
    bits, groupsize = (int(size) for size in sizes)
    return MatrixGrid(scale, zero.float(), bits, groupsize)


def packed_bytes(rows: int, columns: int, grid: MatrixGrid, dtype: torch.dtype) -> int:
    """Bytes of a matrix in the packed form: levels and zero points in whole 32-bit words, scales, its shape.

    Levels fill words along a row, zero points along a group's column of rows. Scales take ``dtype``, float32 where
    that does not hold them.
    """
    if not torch.equal(grid.scale.to(dtype).float(), grid.scale):
        dtype = torch.float32
    groups = grid.scale.shape[1]
    words = rows * -(-columns * grid.bits // _WORD) + groups * -(-rows * grid.bits // _WORD)
    return 4 * words + rows * groups * dtype.itemsize + _SHAPE_BYTES
