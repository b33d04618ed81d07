"""The forward side of the walk: windows of tokens on their way through one block, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.interface import Arguments, Block, BlockSource, Carry, Run, Stage, batches
from methods.stream.hidden import HiddenStates

__all__ = ["Part", "WindowStates"]


@dataclass(frozen=True, slots=True)
class Part:
    """A batch of whole windows; ``counted`` where it is calibration text, else held-out text."""

    number: int
    windows: slice
    counted: bool


class WindowStates:
    """States of all windows entering a block, and what lies between its stages.

    A carry of one tensor replaces the window's state in place; a wider one is kept where the budget allows
    and is otherwise computed again from the last state: the same operations, so the same bits.
    """

    def __init__(
        self,
        source: BlockSource,
        tokens: Tensor,
        counted: int,
        run: Run,
        stages: tuple[Stage, ...] | None = None,
    ) -> None:
        windows, length = tokens.shape
        self.source = source
        self.run = run
        self.stages = stages or source.family.stages(source.config)
        size = (windows, length, source.shape.width)
        self.hidden = HiddenStates(size, source.dtype, source.device, run)
        calibration = list(batches(counted, length, run.batch_tokens))
        heldout = [
            slice(part.start + counted, part.stop + counted)
            for part in batches(windows - counted, length, run.batch_tokens)
        ]
        self.parts = tuple(
            Part(number, part, number < len(calibration)) for number, part in enumerate(calibration + heldout)
        )
        self._arguments: dict[int, Arguments] = {}
        self._kept: dict[int, tuple[int, Carry]] = {}
        self._anchor: dict[int, int] = {}

    def embed(self, tokens: Tensor) -> None:
        """Fill the states with the first block's inputs."""
        for part in self.parts:
            ids = tokens[part.windows].to(self.source.device)
            self.hidden.put(
                part.windows, self.source.family.embed(self.source.outer, self.source.config, ids, None)
            )

    def enter(self) -> None:
        """Start a block: every window's state is that block's input."""
        self._kept.clear()
        self._anchor = dict.fromkeys((part.number for part in self.parts), 0)

    def arguments(self, part: Part) -> Arguments:
        """The block's arguments for a batch of this size; equal batches share them."""
        count = part.windows.stop - part.windows.start
        if count not in self._arguments:
            like = torch.empty(0, dtype=self.source.dtype, device=self.source.device)
            self._arguments[count] = self.source.family.arguments(
                self.source.config, None, count, self.hidden.length, like
            )
        return self._arguments[count]

    def inputs(self, block: Block, part: Part, stage: int) -> Tensor:
        """What the linears of ``stage`` read [windows, length, columns]; all earlier stages must be final."""
        carry = self.carry(block, part, stage)
        return self.stages[stage].inputs(block, carry, self.arguments(part))

    def leave(self, block: Block, part: Part) -> None:
        """Run what is left of the block for a batch: its states become the block's outputs."""
        self.carry(block, part, len(self.stages))

    def dense_inputs(self, block: Block, part: Part, *, leave: bool = False) -> Iterator[Tensor]:
        """Inputs of every stage in turn, with the block as given and nothing kept (schedule ``blockwise``).

        ``leave``: once all are drawn, the batch's states become the block's outputs, by the same one pass.
        """
        carry: Carry = (self.hidden.get(part.windows),)
        arguments = self.arguments(part)
        for number, stage in enumerate(self.stages):
            inputs = stage.inputs(block, carry, arguments)
            yield inputs
            if leave or number + 1 < len(self.stages):
                carry = stage.advance(block, carry, inputs, arguments)
        if leave:
            self.hidden.put(part.windows, carry[0])

    def close(self) -> None:
        """Forget all states."""
        self._kept.clear()
        self.hidden.close()

    def carry(self, block: Block, part: Part, stage: int) -> Carry:
        """What enters ``stage`` of a batch; all earlier stages must be final."""
        carry: Carry = (self.hidden.get(part.windows),)
        at = self._anchor[part.number]
        if part.number in self._kept:
            at, carry = self._kept.pop(part.number)
        arguments = self.arguments(part)
        while at < stage:
            current: Stage = self.stages[at]
            carry = current.advance(block, carry, current.inputs(block, carry, arguments), arguments)
            at += 1
        if len(carry) == 1:
            if self._anchor[part.number] != at:
                self.hidden.put(part.windows, carry[0])
                self._anchor[part.number] = at
        elif self._fits(carry):
            self._kept[part.number] = (at, carry)
        return carry

    def _fits(self, carry: Carry) -> bool:
        """Whether keeping such a carry for all windows stays within the budget for hidden states."""
        if self.hidden.place == "disk":
            return False
        extra = sum(part.nbytes for part in carry[1:]) * self.hidden.windows // max(1, carry[0].shape[0])
        return self.hidden.nbytes + extra <= self.run.hidden_budget
