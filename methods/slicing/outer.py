"""What lies outside the blocks of a sliced model: embedding tables and the head, cut row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.interface import BlockSource
from methods.slicing.fuse import fuse_reading, fuse_rows

__all__ = ["Outer", "rounded"]

_ROWS = 8192  # rows of a table turned to float64 at once


def rounded(where: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 tensor in the dtype it is stored in. Raises NonFiniteError naming ``where`` if it does not fit."""
    found = tensor.to(dtype)
    if not bool(torch.isfinite(found).all()):
        raise NonFiniteError(
            f"{where}: a rotated weight is NaN or beyond {dtype}; check the checkpoint, or store it in a wider dtype"
        )
    return found


class Outer:
    """Tables and head of a dense model, cut to a basis [D, d] float64, in the dtypes they are stored in.

    One chunk of rows is in float64 at a time, one result in memory.
    """

    def __init__(self, source: BlockSource) -> None:
        self._source = source
        self._residual = source.family.residual
        self._names = source.family.outer_tensors(source.shape)
        self._eps = source.family.norm_eps(source.config)

    def rows(self, name: str, rows: Tensor, basis: Tensor) -> Tensor:
        """Rows [..., D] of a table, cut; BLOOM's norm over embeddings goes into them."""
        norm = None
        if self._residual.table_norm is not None:
            scale, shift = self._norm(self._residual.table_norm)
            if scale is not None and shift is not None:
                norm = (scale, shift)
        fused = fuse_rows(
            rows.to(self._source.device), centred=self._residual.centred, norm=norm, eps=self._eps
        )
        return rounded(name, fused @ basis, rows.dtype)

    def table(self, name: str, basis: Tensor) -> Tensor:
        """A whole table [rows, d] in host memory."""
        stored = self._source.raw_outer(name)
        cut = torch.empty(stored.shape[0], basis.shape[1], dtype=stored.dtype)
        for start in range(0, len(stored), _ROWS):
            part = slice(start, start + _ROWS)
            cut[part].copy_(self.rows(name, stored[part], basis))
        return cut

    def head(self, basis: Tensor | None) -> dict[str, Tensor]:
        """The head, untied, with the final norm in it (and so a bias where that had one), cut to a basis if given."""
        weight, bias = f"{self._residual.head}.weight", f"{self._residual.head}.bias"
        stored = self._source.raw_outer(weight if weight in self._names else self._residual.tables[0])
        scale, shift = self._norm(self._residual.final_norm)
        width = stored.shape[1] if basis is None else basis.shape[1]
        found = {weight: torch.empty(stored.shape[0], width, dtype=stored.dtype)}
        if shift is not None:
            found[bias] = torch.empty(stored.shape[0], dtype=stored.dtype)
        for start in range(0, len(stored), _ROWS):
            part = slice(start, start + _ROWS)
            fused, moved = fuse_reading(stored[part].to(self._source.device), None, scale, shift)
            cut = fused if basis is None else fused @ basis
            found[weight][part].copy_(rounded(weight, cut, stored.dtype))
            if moved is not None:
                found[bias][part].copy_(rounded(bias, moved, stored.dtype))
        return found

    def _norm(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        return self._parameter(f"{name}.weight"), self._parameter(f"{name}.bias")

    def _parameter(self, name: str) -> Tensor | None:
        return self._source.raw_outer(name).to(self._source.device) if name in self._names else None
