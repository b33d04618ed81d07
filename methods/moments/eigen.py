"""Eigendecomposition of the damped Hessian in coordinates where its diagonal is one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.errors import HessianError

__all__ = ["Eigen", "decompose"]

_LEAST = 1e-9  # rounding may leave an eigenvalue below; the damping keeps true ones far above


@dataclass(frozen=True, slots=True)
class Eigen:
    """H + added·I = diag(scale) · N · diag(scale), N = vectors · diag(values) · vectorsᵀ.

    ``normalised`` N [columns, columns] float32 has a unit diagonal; ``values`` [columns] and ``vectors``
    [columns, columns] are float64, ``scale`` [columns] float32. ``damping`` is the share of the mean diagonal
    that ``added`` is; ``dead`` [columns] marks inputs that were always zero. ``escalations`` is always 0: a
    finite symmetric matrix has its eigenvalues.
    """

    normalised: Tensor
    values: Tensor
    vectors: Tensor
    scale: Tensor
    damping: float
    added: float
    dead: Tensor
    escalations: int = 0

    def inverse(self, shift: float) -> Tensor:
        """(N + shift·I)⁻¹ [columns, columns] float32."""
        return ((self.vectors / (self.values + shift)) @ self.vectors.T).float()


def decompose(hessian: Tensor, percdamp: float, *, where: str = "matrix") -> Eigen:
    """Damp by ``percdamp`` of the mean diagonal, scale to a unit diagonal, decompose in float64.

    ``hessian`` [columns, columns], symmetric and finite; only read. Raises HessianError where the
    decomposition does not converge.
    """
    work = hessian.double()
    diagonal = work.diagonal()
    dead = diagonal == 0
    living = diagonal[~dead]
    added = percdamp * float(living.mean()) if len(living) else 0.0
    damped = diagonal + added
    scale = torch.where(damped > 0, damped, torch.ones_like(damped)).sqrt()
    work = work / scale
    work /= scale[:, None]
    work.diagonal().fill_(1.0)
    try:
        values, vectors = torch.linalg.eigh(work)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise HessianError(
            f"{where}: the eigenvalues of the Hessian do not converge ({str(error).splitlines()[0]}); "
            "raise the damping (--set alps.percdamp=0.1)"
        ) from None
    return Eigen(work.float(), values.clamp_(min=_LEAST), vectors, scale.float(), percdamp, added, dead)
