"""What SparseGPT's sweep ranks weights by: w² / d_j², with a divisor d_j per column."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.moments import Factor

__all__ = ["SALIENCIES", "divisors"]

SALIENCIES = ("obs", "isc", "isc-literal")


def divisors(factor: Factor, saliency: str) -> Tensor:
    """d [columns] float32 of a saliency w² / d².

    ``obs``: w² / [H⁻¹]_mm, the optimal brain surgeon's (SparseGPT): d_m = U_mm, since U_mm² is the pivot of the
    inverse of the Hessian's part that is not swept yet. ``isc``: w² (H_mm + 1 / [H⁻¹]_mm), the sum of the
    brain-damage and brain-surgeon terms (arXiv 2310.09499, equation 4). Both terms are those of the damped
    Hessian of what is not swept yet, U_mm² being its inverse's pivot: the columns before m are final, so an
    inverse in which they still move would underrate m; H_mm is the same in the part as in the whole.
    ``isc-literal`` reads the equation to the letter: the diagonal of the whole matrix's inverse. (The published
    code has 1 / U_mm for the second term, which is no scale of H.) Dead inputs come first under all three.
    """
    pivots = factor.upper.diagonal()
    if saliency == "obs":
        return pivots
    if saliency == "isc":
        inverse = pivots.double().square()
    elif saliency == "isc-literal":
        # H⁻¹ = UᵀU, so its diagonal is that of the columns' squared norms
        inverse = torch.linalg.vector_norm(factor.upper, dim=0, dtype=torch.float64).square()
    else:
        raise ValueError(f"saliency '{saliency}' is unknown; use {', '.join(SALIENCIES)}")
    return (factor.diagonal.double() + inverse.reciprocal()).rsqrt().float()
