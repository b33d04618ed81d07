"""The optimal-brain-surgeon sweep over one block of columns, one column at a time.

Source: SparseGPT (Frantar & Alistarh, 2023), algorithm 1, and the ``fasterprune`` loop of its reference code.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["obs_sweep"]


def obs_sweep(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    keep: int,
    group: int,
    scale: Tensor | None,
    zero: Tensor | None,
    levels: int,
    divisor: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sweep the columns of ``weight`` in order, compensating the columns that follow.

    ``weight`` [rows, B], ``factor`` [B, B] upper triangular U, ``mask`` [rows, B] bool, ``scale`` and
    ``zero`` [rows], ``divisor`` [B] of the selection (U's diagonal where None). Returns values [rows, B],
    errors [rows, B], removed [rows, B] bool, loss [rows]. Every operation is in float32, products and
    differences rounded separately, so that native code can give the same bits.
    """
    current = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    rows, columns = current.shape
    diagonal = factor.diagonal()
    divisor = diagonal if divisor is None else divisor
    values = torch.empty_like(current)
    errors = torch.empty_like(current)
    loss = torch.zeros(rows, dtype=torch.float32, device=current.device)
    removed = torch.zeros(rows, columns, dtype=torch.bool, device=current.device)
    if mask is not None:
        removed.copy_(mask)

    for j in range(columns):
        if group > 0 and j % group == 0:
            ahead = slice(j, j + group)
            removed[:, ahead] = _lowest(current[:, ahead], divisor[ahead], group - keep)
        w = current[:, j]
        q = torch.where(removed[:, j], torch.zeros_like(w), w)
        if scale is not None and zero is not None:
            level = torch.clamp(torch.round(q / scale) + zero, 0, levels - 1)
            q = scale * (level - zero)
        error = (w - q) / diagonal[j]
        loss = loss + error * error
        values[:, j] = q
        errors[:, j] = error
        current[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    return values, errors, removed, loss * 0.5


def _lowest(weight: Tensor, divisor: Tensor, count: int) -> Tensor:
    """Flag the ``count`` entries of each row with the smallest w^2 / divisor_j^2, of equal ones the lowest index.

    A NaN ranks as infinity: it is kept while anything else can go, and so comes to light.
    """
    score = (weight * weight) / (divisor * divisor)
    score = torch.where(score.isnan(), torch.full_like(score, torch.inf), score)
    order = score.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True)
