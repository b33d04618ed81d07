"""Calibration windows shared out over workers: each passes its share and gathers sums, one of them leads and solves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, Protocol

import torch
from torch import Tensor

from methods.interface import Block, BlockSource, Run
from methods.moments import Moments, Statistic
from methods.stream.heap import give_back
from methods.stream.windows import WindowStates

__all__ = ["Share", "Worker", "cut"]


_HELDOUT: Final = 2.5
"""Drawn windows that take as long as a held-out one, on which dense and pruned outputs are compared: measured on a CPU."""


class Worker(Protocol):
    """One that holds a share of the calibration windows and does with it what the walk that leads tells it.

    Calls that return nothing may go on after they return, in order, so that all workers are busy at once; what
    fails in one of them is raised by a later call that returns something.
    """

    def begin(self, tokens: Tensor, needs: Statistic) -> None:
        """Take windows ``tokens`` [windows, length, int64], on which ``needs`` is to be gathered; there may be none."""
        ...

    def embed(self) -> None:
        """Make the first block's inputs of them."""
        ...

    def restore(self, states: Tensor) -> None:
        """Or go on from states [windows, length, width] that a killed walk kept."""
        ...

    def enter(self, index: int) -> None:
        """Read block ``index``."""
        ...

    def gather(self, stages: tuple[int, ...], *, dense: bool) -> None:
        """Gather moments of the inputs of these stages; ``dense``: of all at once, with the block as it was read."""
        ...

    def sums(self, stage: int) -> tuple[tuple[int, int], Iterator[Tensor]]:
        """What was gathered at a stage: ``counts`` and ``pieces`` of its moments, which are forgotten afterwards."""
        ...

    def replace(self, weights: Block) -> None:
        """Go on with these weights, in the compute dtype, in place of the block's."""
        ...

    def leave(self) -> None:
        """Make the states those that enter the next block."""
        ...

    def states(self) -> Tensor:
        """The states [windows, length, width], for a resume point."""
        ...


def cut(drawn: int, heldout: int, workers: int) -> list[slice]:
    """Shares of ``drawn`` windows, in order, the leader's first: it passes ``heldout`` windows besides, so it gets fewer.

    >>> cut(16, 4, 2)
    [slice(0, 3, None), slice(3, 16, None)]
    """
    own = max(0, round((drawn - _HELDOUT * heldout * (workers - 1)) / workers)) if workers > 1 else drawn
    others = workers - 1
    ends = [own, *(own + (drawn - own) * (number + 1) // others for number in range(others))]
    return [slice(start, stop) for start, stop in pairwise([0, *ends])]


class Share:
    """A worker in this process: what a process of a cluster does, and the plain twin that it is tested against."""

    def __init__(self, source: BlockSource, run: Run) -> None:
        self._source = source
        self._run = run
        self._block: Block = {}
        self._moments: dict[int, Moments] = {}

    def begin(self, tokens: Tensor, needs: Statistic) -> None:
        """Take these windows."""
        self._tokens = tokens
        self._needs = needs
        self._states = WindowStates(self._source, tokens, len(tokens), self._run)
        matrices = {matrix.name: matrix for matrix in self._source.family.matrices(self._source.shape)}
        self._columns = [matrices[stage.linears[0]].columns for stage in self._states.stages]

    @torch.no_grad()
    def embed(self) -> None:
        """Make the first block's inputs."""
        self._states.embed(self._tokens)

    def restore(self, states: Tensor) -> None:
        """Go on from kept states."""
        self._states.hidden.put(slice(None), states)

    def enter(self, index: int) -> None:
        """Read a block. Raises CheckpointError."""
        self._block = {}
        give_back()
        self._index = index
        self._block = self._source.block(index)
        self._states.enter()

    @torch.no_grad()
    def gather(self, stages: tuple[int, ...], *, dense: bool) -> None:
        """Pass the windows as far as these stages, and gather."""
        for stage in stages:
            where = f"block {self._index} stage {stage}"
            self._moments[stage] = Moments(
                self._needs, self._columns[stage], self._run.hessian_dtype, self._source.device, where
            )
        for part in self._states.parts:
            if dense:
                for stage, inputs in enumerate(self._states.dense_inputs(self._block, part)):
                    if stage in stages:
                        self._moments[stage].add(inputs)
            else:
                for stage in stages:
                    self._moments[stage].add(self._states.inputs(self._block, part, stage))

    def sums(self, stage: int) -> tuple[tuple[int, int], Iterator[Tensor]]:
        """Hand out what was gathered, and forget it."""
        moments = self._moments.pop(stage)
        return moments.counts, moments.pieces()

    def replace(self, weights: Block) -> None:
        """Put these weights in the block's place."""
        self._block |= {
            name: tensor.to(self._source.device, self._source.dtype) for name, tensor in weights.items()
        }

    @torch.no_grad()
    def leave(self) -> None:
        """Finish the block."""
        for part in self._states.parts:
            self._states.leave(self._block, part)

    def states(self) -> Tensor:
        """All states, where they lie."""
        return self._states.hidden.whole()
