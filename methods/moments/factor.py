"""The upper Cholesky factor of the inverse Hessian, from one factorisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.errors import HessianError

__all__ = ["Factor", "factorise", "invert_lower_", "reverse_"]

DEAD_PIVOT = 1e15
"""U_jj of a dead input: its weights score (near) 0, so they go first, and removing them moves nothing."""

_LEAF = 128
_ROWS = 256  # swapped at once where a matrix is reversed: bounds the copies
_DAMPING_BOUND = 1e3  # times the mean diagonal; beyond this a Hessian is noise


@dataclass(frozen=True, slots=True)
class Factor:
    """``upper`` [columns, columns] float32 with H⁻¹ = UᵀU; ``damping`` as a share of the mean diagonal.

    ``diagonal`` [columns] is that of the damped H, 0 for a dead input; ``added`` is what was added to it.
    ``dead`` [columns] marks inputs that were always zero, ``escalations`` counts how often the damping had to
    be raised tenfold.
    """

    upper: Tensor
    diagonal: Tensor
    damping: float
    added: float
    dead: Tensor
    escalations: int


def factorise(hessian: Tensor, percdamp: float, *, reference: bool = False, where: str = "matrix") -> Factor:
    """U with H⁻¹ = UᵀU, H damped by ``percdamp`` of its mean diagonal (SparseGPT, arXiv 2301.00774, section 3.3).

    ``hessian`` [columns, columns], float32 or float64, symmetric; only read. Reversing rows and columns, H =
    P L Lᵀ P gives U = P L⁻¹ P: the factor that the published code gets from three calls, here from one
    factorisation. A Hessian that does not factor is tried again in float64 with ten times the damping, up to
    a bound; ``reference`` treats dead inputs as the published code does (H_jj = 1). One matrix beside ``hessian`` is
    held, reversed, factored and inverted where it lies, and half as much again while it is inverted. Raises
    HessianError.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    filled = torch.where(dead, torch.ones_like(diagonal), diagonal)
    # Without living inputs there is nothing to scale by; any positive number serves.
    living = filled if reference or bool(dead.all()) else diagonal[~dead]
    mean = float(living.mean(dtype=torch.float64))
    share, escalations = percdamp, 0
    dtype = hessian.dtype
    while True:
        added = share * mean
        lower, failed = _cholesky(hessian, filled, added, dtype)
        if not failed:
            break
        del lower
        escalations += 1
        share = max(share, 1e-3) * 10
        dtype = torch.float64
        if share > _DAMPING_BOUND:
            raise HessianError(
                f"{where}: the Hessian does not factor, even damped by {share / 10:g} of its mean diagonal "
                f"(tried {escalations} times); use more calibration samples or look for huge activations"
            )
    upper = reverse_(invert_lower_(lower)).to(torch.float32)
    del lower
    damped = torch.where(dead, 0, filled + added)
    if not reference and bool(dead.any()):
        upper.diagonal()[dead] = DEAD_PIVOT
    return Factor(upper, damped, share, added, dead, escalations)


def _cholesky(hessian: Tensor, filled: Tensor, added: float, dtype: torch.dtype) -> tuple[Tensor, bool]:
    # column by column, as LAPACK takes it, so that it is factored where it lies
    work = torch.empty(hessian.shape, dtype=dtype, device=hessian.device).T
    reverse_(work.copy_(hessian))
    work.diagonal().copy_((filled.to(dtype) + added).flip(0))
    info = torch.empty((), dtype=torch.int32, device=hessian.device)
    torch.linalg.cholesky_ex(work, out=(work, info))
    if int(info) == 0 and not bool(torch.isfinite(work.diagonal()).all()):
        return work, True
    return work, int(info) != 0


def reverse_(matrix: Tensor) -> Tensor:
    """Rows and columns of a matrix [rows, columns] in opposite order, in its own memory; returns it."""
    lines = matrix if matrix.is_contiguous() else matrix.T
    size = lines.shape[0]
    for start in range(0, size // 2, _ROWS):
        stop = min(start + _ROWS, size // 2)
        head, tail = lines[start:stop], lines[size - stop : size - start]
        swapped = head.flip(0, 1)
        head.copy_(tail.flip(0, 1))
        tail.copy_(swapped)
    if size % 2:
        middle = lines[size // 2]
        middle.copy_(middle.flip(0))
    return matrix


def invert_lower_(lower: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix [n, n], in its own memory plus a quarter; returns it.

    Halves recursively: the inverse of [[A, 0], [B, C]] is [[A⁻¹, 0], [-C⁻¹BA⁻¹, C⁻¹]], nearly all products.
    """
    size = lower.shape[0]
    if size <= _LEAF:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return lower
    half = (size // 2 + _LEAF - 1) // _LEAF * _LEAF
    head, tail, cross = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    invert_lower_(head)
    invert_lower_(tail)
    product = tail @ cross
    torch.mm(product, head, out=cross) if cross.is_contiguous() else cross.copy_(product @ head)
    cross.neg_()
    return lower
