"""The Gram matrix of a layer's inputs, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from methods.errors import NonFiniteError

__all__ = ["Gram"]

_PIECE = 2048  # rows turned to the accumulator's dtype at once: bounds the copy of a batch
_ROWS = 1024  # of a weight multiplied at once
_BANDS = 6  # bands of rows: (bands + 1) / (2 bands) of the square's products are computed
_NARROWEST = 144  # rows of a band, below which a product loses more than its omission gains


class Gram:
    """Sum of XᵀX over inputs X [tokens, columns], in float32 or float64.

    ``matrix`` [columns, columns] is the raw sum; ``hessian()`` is SparseGPT's (2 / sequences) XᵀX. One triangle is
    accumulated, in bands of rows from the diagonal on, and mirrored when the matrix is asked for, which is
    therefore symmetric to the bit. The accumulation order is that of the batches, so equal batches give equal
    bits.
    """

    def __init__(self, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self._sum = torch.zeros(columns, columns, dtype=dtype, device=device)
        self._mirrored = True
        step = max(_NARROWEST, -(-columns // _BANDS))
        self._bands = tuple((start, min(start + step, columns)) for start in range(0, columns, step))
        self.sequences = 0
        self.tokens = 0

    @property
    def matrix(self) -> Tensor:
        """XᵀX [columns, columns]; not to be written to."""
        if not self._mirrored:
            for start, stop in self._bands:
                corner = self._sum[start:stop, start:stop]
                corner.copy_(corner.triu() + corner.triu(1).T)
                self._sum[stop:, start:stop] = self._sum[start:stop, stop:].T
            self._mirrored = True
        return self._sum

    def add(self, inputs: Tensor) -> None:
        """Add a batch [sequences, tokens, columns] of any float dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        for piece in rows.split(_PIECE):
            wide = piece.to(self._sum.dtype)
            for start, stop in self._bands:
                self._sum[start:stop, start:].addmm_(wide[:, start:stop].T, wide[:, start:])
        self._mirrored = self._mirrored and not len(rows)
        self.sequences += inputs.shape[0]
        self.tokens += rows.shape[0]

    def pieces(self) -> Iterator[Tensor]:
        """The raw sum's upper triangle, in bands [rows, columns from the first of these rows on]; views, to be read."""
        for start, stop in self._bands:
            yield self._sum[start:stop, start:]

    def absorb(self, pieces: Iterable[Tensor], sequences: int, tokens: int) -> None:
        """Add the sum of another Gram matrix over other inputs, given by its ``pieces`` and its counts."""
        for mine, theirs in zip(self.pieces(), pieces, strict=True):
            mine += theirs.to(self._sum.device)
        self._mirrored = False
        self.sequences += sequences
        self.tokens += tokens

    def check(self, where: str) -> None:
        """Raises NonFiniteError naming ``where`` if any input was NaN or infinite, or the sum overflowed."""
        if not bool(torch.isfinite(self._sum.diagonal()).all()):
            raise NonFiniteError(
                f"{where}: its calibration inputs hold NaN or infinity (or overflow {self._sum.dtype}); "
                "try --dtype float32 or --hessian-dtype float64, or check the checkpoint"
            )

    def hessian(self) -> Tensor:
        """(2 / sequences) XᵀX, scaled in place of the raw sum's copy: a new matrix."""
        return self.matrix * (2.0 / max(1, self.sequences))

    def energy(self, weight: Tensor, other: Tensor | None = None) -> float:
        """|X Wᵀ|² = tr(W XᵀX Wᵀ) for weight [rows, columns] of any float dtype, in chunks of rows; a float64 sum.

        With ``other``, of the same shape and any float dtype, W is what ``weight`` is more, in float32.
        """
        total = 0.0
        for start in range(0, weight.shape[0], _ROWS):
            wide = weight[start : start + _ROWS]
            if other is not None:
                wide = wide.float() - other[start : start + _ROWS].float()
            wide = wide.to(self._sum.dtype)
            total += float((wide @ self.matrix).mul_(wide).sum(dtype=torch.float64))
            del wide  # the next rows are not made beside these
        return total
