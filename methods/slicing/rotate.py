"""The basis that a segment of the residual stream is sliced in (arXiv 2401.15024, sections 3.3 and 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.errors import NonFiniteError

__all__ = ["DAMPING", "ORIENTATIONS", "basis", "principal", "random_rotation"]

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: moves no eigenvector, but keeps the solver off zero eigenvalues."""
ORIENTATIONS = ("pca", "random")


def principal(gram: Tensor, where: str) -> Tensor:
    """Eigenvectors [D, D] of ``gram`` = XᵀX [D, D] float64, in columns, largest eigenvalue first.

    Each column's largest entry is positive, so that equal inputs give equal bases whatever the solver's signs.
    Raises NonFiniteError naming ``where``.
    """
    if not bool(torch.isfinite(gram).all()):
        raise NonFiniteError(
            f"{where}: the residual stream holds NaN or infinity on the calibration text; "
            "try --dtype float32, or check the checkpoint"
        )
    damped = gram.clone()
    damped.diagonal().add_(DAMPING * gram.diagonal().mean())
    vectors: Tensor = torch.linalg.eigh(damped).eigenvectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)


def random_rotation(width: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix [width, width], float64, uniform over all (arXiv math-ph/0609050)."""
    drawn = torch.randn(width, width, generator=generator, dtype=torch.float64)
    factor, triangle = torch.linalg.qr(drawn)
    turned: Tensor = factor * torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(torch.float64)
    return turned


def basis(
    gram: Tensor, width: int, orientation: str, generator: torch.Generator, where: str = "residual"
) -> Tensor:
    """Q [D, width] float64 with orthonormal columns: the ``width`` principal directions of ``gram`` [D, D].

    ``orientation`` ``random`` turns them among themselves, which keeps what they span. Raises NonFiniteError.
    """
    kept = principal(gram, where)[:, :width]
    if orientation == "random":
        kept = kept @ random_rotation(width, generator).to(kept.device)
    return kept.contiguous()
