"""The Gram matrix of a layer's inputs, accumulated batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.errors import NonFiniteError

__all__ = ["Gram"]

_PIECE = 2048  # rows turned to the accumulator's dtype at once: bounds the copy of a batch


class Gram:
    """Sum of XᵀX over inputs X [tokens, columns], in float32 or float64.

    ``matrix`` [columns, columns] is the raw sum; ``hessian()`` is SparseGPT's (2 / sequences) XᵀX.
    The accumulation order is that of the batches, so equal batches give equal bits.
    """

    def __init__(self, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self.matrix = torch.zeros(columns, columns, dtype=dtype, device=device)
        self.sequences = 0
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Add a batch [sequences, tokens, columns] of any float dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        for piece in rows.split(_PIECE):
            wide = piece.to(self.matrix.dtype)
            self.matrix.addmm_(wide.T, wide)
        self.sequences += inputs.shape[0]
        self.tokens += rows.shape[0]

    def check(self, where: str) -> None:
        """Raises NonFiniteError naming ``where`` if any input was NaN or infinite, or the sum overflowed."""
        if not bool(torch.isfinite(self.matrix.diagonal()).all()):
            raise NonFiniteError(
                f"{where}: its calibration inputs hold NaN or infinity (or overflow {self.matrix.dtype}); "
                "try --dtype float32 or --hessian-dtype float64, or check the checkpoint"
            )

    def hessian(self) -> Tensor:
        """(2 / sequences) XᵀX, scaled in place of the raw sum's copy: a new matrix."""
        return self.matrix * (2.0 / max(1, self.sequences))

    def energy(self, weight: Tensor) -> float:
        """|X Wᵀ|² = tr(W XᵀX Wᵀ) for weight [rows, columns], in chunks of rows; a float64 sum."""
        total = 0.0
        for part in weight.split(1024):
            wide = part.to(self.matrix.dtype)
            total += float((wide @ self.matrix).mul_(wide).sum(dtype=torch.float64))
        return total
