"""Exact selection: remove precisely this many, ties broken by index."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from methods.errors import NonFiniteError

if TYPE_CHECKING:
    from methods.layerwise.rule import Budget

__all__ = [
    "at_or_below",
    "block_share",
    "lowest",
    "round_half_up",
    "smallest",
    "smallest_in_groups",
    "smallest_in_rows",
]

_ROWS = 1024  # rows sorted at once: bounds the memory of their indices


def round_half_up(value: Fraction) -> int:
    """Nearest integer, halves up: the one rounding rule of every budget."""
    return int((value + Fraction(1, 2)).__floor__())


def block_share(count: int, total: int, start: int, stop: int) -> int:
    """How many of ``count`` removals (of ``total`` weights) fall on weights start..stop; blocks add up exactly."""
    return round_half_up(Fraction(count * stop, total)) - round_half_up(Fraction(count * start, total))


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mask [same shape, bool] of exactly the ``count`` smallest scores; equal scores go lowest index (row-major) first.

    Scores are float32 or float64. Raises NonFiniteError for NaN scores.
    """
    flat = scores.reshape(-1)
    if count <= 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if count >= flat.numel():
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    threshold = flat.kthvalue(count).values
    if bool(torch.isnan(flat).any()):
        raise NonFiniteError("a saliency is NaN; check the weights and the calibration inputs")
    mask = flat < threshold
    missing = count - int(mask.sum())
    mask[(flat == threshold).nonzero()[:missing, 0]] = True
    return mask.view(scores.shape)


def smallest_in_groups(scores: Tensor, keep: int, group: int) -> Tensor:
    """Mask [rows, columns, bool] of the ``group - keep`` smallest of every ``group`` consecutive scores of a row.

    Equal scores go lowest index first. ``columns`` must be a multiple of ``group``. Raises NonFiniteError for
    NaN scores.
    """
    rows, columns = scores.shape
    if bool(torch.isnan(scores).any()):
        raise NonFiniteError("a saliency is NaN; check the weights and the calibration inputs")
    grouped = scores.reshape(rows, columns // group, group)
    order = grouped.argsort(dim=-1, stable=True)[..., : group - keep]
    mask = torch.zeros(grouped.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(-1, order, True).view(rows, columns)


def smallest_in_rows(scores: Tensor, count: int) -> Tensor:
    """Mask [rows, columns, bool] of exactly ``count`` scores, each row's smallest; equal ones lowest index first.

    Rows share the count evenly: row i loses round(count (i+1) / rows) - round(count i / rows), halves up.
    Raises NonFiniteError for NaN scores.
    """
    rows, columns = scores.shape
    if bool(torch.isnan(scores).any()):
        raise NonFiniteError("a saliency is NaN; check the weights and the calibration inputs")
    shares = [block_share(count, rows, row, row + 1) for row in range(rows)]
    mask = torch.zeros(rows, columns, dtype=torch.bool, device=scores.device)
    for start in range(0, rows, _ROWS):
        part = scores[start : start + _ROWS]
        order = part.argsort(dim=1, stable=True)
        here = torch.tensor(shares[start : start + _ROWS], device=scores.device)
        gone = torch.arange(columns, device=scores.device) < here[:, None]
        mask[start : start + _ROWS].scatter_(1, order, gone)
    return mask


def at_or_below(scores: Tensor, count: int) -> Tensor:
    """What published code removes: every score at or below the element ``count`` (from 0) of the sorted ones.

    At least one more than asked, and more where scores tie; nothing where ``count`` is 0.
    """
    flat = scores.flatten()
    if not count:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return scores <= flat.kthvalue(min(count + 1, flat.numel())).values


def lowest(scores: Tensor, budget: Budget) -> Tensor:
    """Mask [rows, columns, bool] of what a budget removes by scores of a whole matrix. Raises NonFiniteError."""
    if budget.group:
        return smallest_in_groups(scores, budget.keep, budget.group)
    return smallest(scores, budget.remove)
