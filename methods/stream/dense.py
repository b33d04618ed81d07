"""Moments of every layer's inputs in the unpruned model, block by block: what allocations look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.errors import UserError
from methods.interface import Block, BlockSource, Matrix, Run
from methods.moments import Moments, Statistic
from methods.stream.ahead import BlocksAhead
from methods.stream.windows import WindowStates

__all__ = ["DenseBlock", "dense_moments"]


@dataclass(frozen=True, slots=True)
class DenseBlock:
    """A block as stored, and for each of its stages the matrices with the moments of the input they share."""

    index: int
    raw: Block
    stages: tuple[tuple[tuple[Matrix, ...], Moments], ...]

    def matrices(self) -> Iterator[tuple[Matrix, Tensor, Moments]]:
        """Every matrix with its dense weight [rows, columns] float32, a copy, and its inputs' moments."""
        for matrices, moments in self.stages:
            for matrix in matrices:
                stored = self.raw[f"{matrix.name}.weight"]
                device = moments.device
                yield matrix, stored.to(device=device, dtype=torch.float32, copy=True), moments


def dense_moments(source: BlockSource, tokens: Tensor, needs: Statistic, run: Run) -> Iterator[DenseBlock]:
    """Stream windows ``tokens`` [windows, length] through the dense model: one block, one forward pass at a time.

    Each block is yielded with its moments before the next is read; let go of it before drawing the next, or two
    lie in memory. The moments are those of dense inputs: pruning shifts what later layers see, and these do
    not know. Raises UserError without windows, CheckpointError.
    """
    if not len(tokens):
        raise UserError("an allocation that looks at inputs needs calibration windows; this run draws none")
    states = WindowStates(source, tokens, len(tokens), run)
    matrices = {matrix.name: matrix for matrix in source.family.matrices(source.shape)}
    blocks = source.shape.blocks
    run.observer.phase("calibrate", blocks)
    try:
        with torch.no_grad():
            states.embed(tokens)
        with BlocksAhead(source, convert=run.prefetch) as ahead:
            for index in range(blocks):
                with torch.no_grad():
                    found = _gather(ahead, states, index, matrices, needs, run)
                yield found
                del found
                run.observer.step(index + 1)
    finally:
        states.close()


def _gather(
    ahead: BlocksAhead,
    states: WindowStates,
    index: int,
    matrices: dict[str, Matrix],
    needs: Statistic,
    run: Run,
) -> DenseBlock:
    block, raw = ahead.take(index)
    source = states.source
    stages = []
    for stage in states.stages:
        reading = tuple(matrices[name] for name in stage.linears)
        where = f"block {index} {'+'.join(stage.linears)}"
        moments = Moments(needs, reading[0].columns, run.hessian_dtype, source.device, where)
        stages.append((reading, moments))
    last = index + 1 == source.shape.blocks
    for part in states.parts:
        inputs = states.dense_inputs(block, part, leave=not last)
        for (_, moments), batch in zip(stages, inputs, strict=True):
            moments.add(batch)
    return DenseBlock(index, raw, tuple(stages))
