"""A cheap stand-in for a sensitivity: the trace of the layer's own Hessian XᵀX, per weight.

It knows how large a matrix's inputs are and nothing of what the loss makes of its outputs; one forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.interface import BlockSource, Run
from methods.moments import Statistic
from methods.stream.dense import dense_moments

__all__ = ["inputs"]


def inputs(source: BlockSource, tokens: Tensor, run: Run) -> Tensor:
    """Mean squared input of every matrix's columns, float64 [probes, blocks * matrices].

    ``tokens`` int64 [probes, windows, length]. That is tr(XᵀX) over tokens and columns: matrices that share an
    input have one value, and rank by their order. Raises NonFiniteError, CheckpointError, MachineError.
    """
    found = []
    for windows in tokens:
        rows: list[float] = []
        for block in dense_moments(source, windows, Statistic.NORMS, run):
            for matrices, moments in block.stages:
                mean = float(moments.norms.square().mean()) / windows.numel()
                rows += [mean] * len(matrices)
            del block
        found.append(rows)
    return torch.tensor(found, dtype=torch.float64)
