"""Blocks in order, the next one read by a thread while this one is worked on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.interface import Block, BlockSource

__all__ = ["BlocksAhead"]

_PIECE: Final = 256 << 10
"""Weights looked at at once: bounds what the check for NaN and infinity takes beside the work on the block before."""
_PAGE: Final = 4096

_Read = Future[tuple[Block, Block | None]]
"""A block as stored, and its copy in the compute dtype where that is made ahead."""


class BlocksAhead:
    """Hands out blocks ``first`` to the last, each as ``source.block`` and ``source.raw_block`` give it.

    While one block is worked on, a thread of its own maps and reads the next one's pages from disk. They are the
    system's, which may drop them again: nothing anonymous is held. For a GPU the thread also makes the copy in the
    compute dtype, in page-locked memory of the host (``convert``), so that the GPU holds one block and not two.
    ``check``: refuse a checkpoint with NaN or infinity. Use as a context manager: leaving it waits for the thread.
    """

    def __init__(
        self, source: BlockSource, first: int = 0, *, convert: bool = True, check: bool = False
    ) -> None:
        self._source = source
        self._convert = convert and source.device.type != "cpu"
        self._check = check
        self._pool = ThreadPoolExecutor(1, "block-ahead", initializer=_one_thread)
        self._waiting: tuple[int, _Read] | None = None
        if first < source.shape.blocks:
            self._waiting = (first, self._order(first))

    def __enter__(self) -> BlocksAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting = None
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, index: int) -> tuple[Block, Block]:
        """Block ``index``, a fresh copy in the compute dtype on the device, and as stored; the next one is begun.

        Raises CheckpointError, and NonFiniteError where ``check`` finds a weight that is none.
        """
        waiting, self._waiting = self._waiting, None
        future = waiting[1] if waiting is not None and waiting[0] == index else self._order(index)
        raw, made = future.result()
        del waiting, future
        if made is None:
            block = self._source.block(index)
        else:
            block = {name: tensor.to(self._source.device) for name, tensor in made.items()}
        del made
        if index + 1 < self._source.shape.blocks:
            self._waiting = (index + 1, self._order(index + 1))
        return block, raw

    def _order(self, index: int) -> _Read:
        return self._pool.submit(self._read, index)

    def _read(self, index: int) -> tuple[Block, Block | None]:
        raw = self._source.raw_block(index)
        for name, tensor in raw.items():
            if not self._check:
                _touch(tensor)
            elif not _finite(tensor):
                raise NonFiniteError(
                    f"block {index} {name}: the checkpoint holds NaN or infinity; fetch the model again"
                )
        return raw, self._copied(raw) if self._convert else None

    def _copied(self, raw: Block) -> Block:
        copies = {name: tensor.to(self._source.dtype, copy=True) for name, tensor in raw.items()}
        if self._source.device.type == "cuda":
            return {name: tensor.pin_memory() for name, tensor in copies.items()}
        return copies


def _touch(tensor: Tensor) -> None:
    """Have a tensor's pages read from its file."""
    tensor.reshape(-1)[:: max(1, _PAGE // tensor.itemsize)].sum()


def _finite(tensor: Tensor) -> bool:
    """Whether every weight of a tensor is finite; reads it from its file."""
    pieces = tensor.reshape(-1).split(_PIECE)
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)


def _one_thread() -> None:
    """The reader is one thread beside those that a cell was given, and never a second team of them."""
    torch.set_num_threads(1)
