"""Small layers for tests of layer-wise methods: weights, correlated inputs, and problems made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.interface import Matrix
from methods.layerwise.rule import Budget, Moments, Problem, Statistic

EVERYTHING = Statistic.GRAM | Statistic.NORMS | Statistic.MEANS | Statistic.VARIANCES


def layer(seed: int, rows: int = 24, columns: int = 96) -> tuple[Tensor, Tensor]:
    """Weight [rows, columns], and inputs [4 columns, columns]: correlated, some strong, means away from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    inputs[:, ::7] *= 4
    inputs += 0.3 * torch.randn(columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), inputs


def problem(weight: Tensor, inputs: Tensor, budget: Budget, needs: Statistic = EVERYTHING) -> Problem:
    """A problem on a copy of ``weight``, its inputs one window of ``inputs`` [tokens, columns]."""
    moments = Moments(needs, weight.shape[1], torch.float32, weight.device, "block 0 fc1")
    moments.add(inputs[None])
    matrix = Matrix("fc1", *weight.shape)
    return Problem(0, matrix, weight.clone(), budget, moments, torch.Generator().manual_seed(0))


def error(inputs: Tensor, dense: Tensor, pruned: Tensor) -> float:
    """|X (W - Ŵ)ᵀ|², in float64."""
    return float((inputs.double() @ (dense - pruned).double().T).square().sum())
