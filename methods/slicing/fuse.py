"""A norm's parameters moved into the linears around it, in float64 (arXiv 2401.15024, section 3.2).

LayerNorm(x) = RMS(xM) diag(α) + β with M = I - 11ᵀ/D: α and β go into what reads the norm, M into what writes the
residual stream. What is left divides by a root mean square, which a rotation of the stream commutes with. RMSNorm
has neither M nor β. Pure functions: nothing is written into.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["fuse_reading", "fuse_rows", "fuse_writing"]


def fuse_reading(
    weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W diag(α) and b + Wβ of a linear [rows, D] that reads a norm with ``scale`` α and ``shift`` β [D], float64.

    The bias is None only where there is neither ``bias`` nor ``shift``.
    """
    wide = weight.to(torch.float64)
    fused = wide if scale is None else wide * scale.to(torch.float64)
    if shift is None:
        return fused, None if bias is None else bias.to(torch.float64)
    moved = wide @ shift.to(torch.float64)
    return fused, moved if bias is None else bias.to(torch.float64) + moved


def fuse_writing(weight: Tensor, bias: Tensor | None, *, centred: bool) -> tuple[Tensor, Tensor | None]:
    """MW and Mb of a linear [D, columns] that writes the residual stream, float64; as they are unless ``centred``."""
    wide, moved = weight.to(torch.float64), None if bias is None else bias.to(torch.float64)
    if not centred:
        return wide, moved
    return wide - wide.mean(0, keepdim=True), None if moved is None else moved - moved.mean()


def fuse_rows(
    rows: Tensor, *, centred: bool, norm: tuple[Tensor, Tensor] | None = None, eps: float = 0.0
) -> Tensor:
    """Rows [..., D] of an embedding table, float64: through their ``norm`` (α, β), if any, and centred, if asked for.

    BLOOM's norm over embeddings depends on the token alone, so that it folds into the table.
    """
    wide = rows.to(torch.float64)
    if norm is not None:
        scale, shift = (parameter.to(torch.float64) for parameter in norm)
        wide = functional.layer_norm(wide, (wide.shape[-1],), scale, shift, eps)
    return wide - wide.mean(-1, keepdim=True) if centred else wide
