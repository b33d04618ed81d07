"""Output errors of pruned matrices on text that no pruning saw."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from methods.interface import BlockSource, Run
from methods.stream.heap import give_back
from methods.stream.windows import WindowStates

__all__ = ["OutputErrors", "heldout_errors"]

_PIECE: Final = 2048
"""Rows of inputs that are multiplied at once."""


class OutputErrors:
    """Relative squared output error of several matrices that read the same inputs."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs
        self._sums = [[0.0, 0.0] for _ in pairs]
        self._added = False

    def add(self, inputs: Tensor) -> None:
        """Add a batch of inputs [..., columns]."""
        self._added = self._added or inputs.numel() > 0
        for piece in inputs.reshape(-1, inputs.shape[-1]).split(_PIECE):
            wide = piece.float()
            for sums, (dense, change) in zip(self._sums, self._pairs, strict=True):
                sums[0] += float((wide @ change.T).square_().sum(dtype=torch.float64))
                sums[1] += float((wide @ dense.T).square_().sum(dtype=torch.float64))

    def relative(self) -> list[float | None]:
        """|X ΔWᵀ|² / |X Wᵀ|² of each matrix; None where nothing was added, 0 where outputs are zero and stay so."""
        if not self._added:
            return [None] * len(self._sums)
        return [
            change / whole if whole > 0 else (0.0 if change == 0 else float("inf"))
            for change, whole in self._sums
        ]


@torch.no_grad()
def heldout_errors(
    dense: BlockSource, pruned: BlockSource, tokens: Tensor, run: Run
) -> dict[tuple[int, str], float | None]:
    """By block and matrix, |X (W - W')ᵀ|² / |X Wᵀ|² where X [tokens, columns] are the inputs in the pruned model.

    ``tokens`` [windows, length] int64 are text that pruned nothing. Both models have the same shapes; one block of
    each is in memory at a time. For models that changed after their pruning: others are measured as they are pruned.
    """
    states = WindowStates(pruned, tokens, 0, run)
    states.embed(tokens)
    found: dict[tuple[int, str], float | None] = {}
    for index in range(pruned.shape.blocks):
        block, original = pruned.block(index), dense.raw_block(index)
        errors = []
        for stage in states.stages:
            pairs = []
            for name in stage.linears:
                weight = original[f"{name}.weight"].to(device=pruned.device, dtype=torch.float32)
                pairs.append((weight, weight - block[f"{name}.weight"].float()))
            errors.append(OutputErrors(pairs))
        for part in states.parts:
            for sums, inputs in zip(errors, states.dense_inputs(block, part, leave=True), strict=True):
                sums.add(inputs)
        for stage, sums in zip(states.stages, errors, strict=True):
            found |= {
                (index, name): error for name, error in zip(stage.linears, sums.relative(), strict=True)
            }
        del block, original, errors
        give_back()
    states.close()
    return found
