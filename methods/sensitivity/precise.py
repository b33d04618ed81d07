"""A model in float32 (or float64), whatever the run computes in: gradients leave half precision's range."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.interface import Arguments, Block, BlockSource, OuterTensors

__all__ = ["Precise"]


class Precise:
    """Blocks and outer tensors of ``source`` in ``dtype`` on its device."""

    def __init__(self, source: BlockSource, dtype: torch.dtype = torch.float32) -> None:
        self.source = source
        self.config, self.shape, self.family = source.config, source.shape, source.family
        self.device = source.device
        self.dtype = dtype
        self.stages = source.family.stages(source.config)
        self.matrices = source.family.matrices(source.shape)
        self._arguments: dict[tuple[int, int], Arguments] = {}

    @property
    def outer(self) -> OuterTensors:
        """Parameters outside the blocks."""
        return _PreciseOuter(self.source.outer, self.dtype)

    def block(self, index: int) -> Block:
        """A fresh copy of a block, from the weights as stored."""
        return {
            name: tensor.to(device=self.device, dtype=self.dtype, copy=True)
            for name, tensor in self.source.raw_block(index).items()
        }

    def arguments(self, batch: int, length: int) -> Arguments:
        """The blocks' arguments for a batch of whole windows."""
        if (batch, length) not in self._arguments:
            like = torch.empty(0, dtype=self.dtype, device=self.device)
            self._arguments[batch, length] = self.family.arguments(self.config, None, batch, length, like)
        return self._arguments[batch, length]

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, length] to the first block's input."""
        return self.family.embed(self.outer, self.config, tokens.to(self.device), None)

    def finish(self, hidden: Tensor) -> Tensor:
        """The last block's output to what the head reads."""
        return self.family.finish(self.outer, self.config, hidden)

    def head(self) -> Tensor:
        """The output matrix [vocabulary, embedding width]."""
        return self.family.head(self.outer, self.config)


class _PreciseOuter:
    def __init__(self, outer: OuterTensors, dtype: torch.dtype) -> None:
        self._outer, self._dtype = outer, dtype

    def rows(self, name: str, index: Tensor) -> Tensor:
        return self._outer.rows(name, index).to(self._dtype)

    def tensor(self, name: str) -> Tensor:
        return self._outer.tensor(name).to(self._dtype)
