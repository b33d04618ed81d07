"""What the contract measures: counts on disk, bytes of folders, states that nobody may touch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from methods.families.base import run_block
from methods.interface import Block, PruneReport
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource

__all__ = [
    "DyingSink",
    "GuardedSource",
    "Killed",
    "OnceSink",
    "digests",
    "final_states",
    "global_state_untouched",
    "is_one_line",
    "outcome",
    "weights",
    "zeros",
]


def is_one_line(text: object) -> bool:
    """Whether ``text`` is something a user can be told: one printable line, not empty, not endless."""
    return isinstance(text, str) and bool(text.strip()) and "\n" not in text and len(text) <= 500


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def weights(model: Path, out: Path) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """(dense, pruned) weight of every prunable matrix, as stored, by block and name."""
    dense, pruned = CheckpointSource(model), CheckpointSource(model, overlay=out / "blocks")
    found = {}
    for index in range(dense.shape.blocks):
        before, after = dense.raw_block(index), pruned.raw_block(index)
        for matrix in dense.family.matrices(dense.shape):
            name = f"{matrix.name}.weight"
            found[index, matrix.name] = before[name], after[name]
    return found


def zeros(weight: Tensor) -> int:
    """Zero weights."""
    return weight.numel() - int(torch.count_nonzero(weight))


def final_states(model: Path, out: Path, tokens: Tensor) -> Tensor:
    """What the pruned model's head reads [windows, length, width]: a forward pass over its finished blocks."""
    source = CheckpointSource(model, overlay=out / "blocks")
    family, config = source.family, source.config
    hidden = family.embed(source.outer, config, tokens, None)
    windows, length = tokens.shape
    arguments = family.arguments(config, None, windows, length, hidden)
    stages = family.stages(config)
    for index in range(source.shape.blocks):
        hidden = run_block(stages, source.block(index), hidden, arguments)
    return family.finish(source.outer, config, hidden)


@contextmanager
def global_state_untouched() -> Iterator[None]:
    """Asserts that the body leaves every global random state, the default dtype and grad mode as they were."""
    before = _state()
    yield
    assert _state() == before, (
        "a global random state or torch setting was changed; draw from run.generator only"
    )


def _state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the very state that must not change
    return (
        hashlib.sha256(torch.random.get_rng_state().numpy().tobytes()).hexdigest(),
        (kind, hashlib.sha256(np.asarray(keys).tobytes()).hexdigest(), *rest),
        random.getstate(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )


class GuardedSource(CheckpointSource):
    """A checkpoint that remembers every stored tensor it handed out, to tell whether one was written to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._given: list[tuple[str, Tensor, Tensor]] = []

    def raw_block(self, index: int) -> Block:
        """Block ``index`` as stored, remembered."""
        block = super().raw_block(index)
        self._given += [(f"block {index} {name}", tensor, tensor.clone()) for name, tensor in block.items()]
        return block

    def raw_outer(self, name: str) -> Tensor:
        """A parameter outside the blocks, remembered."""
        tensor = super().raw_outer(name)
        self._given.append((name, tensor, tensor.clone()))
        return tensor

    def written(self) -> list[str]:
        """Names of the tensors that somebody wrote to."""
        return [name for name, tensor, before in self._given if not torch.equal(tensor, before)]


class OnceSink(BlockFolder):
    """A folder of blocks that takes each block once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.taken: list[int] = []

    def put(self, index: int, block: Block) -> None:
        """Store a finished block."""
        assert index not in self.taken, f"block {index} was put twice"
        self.taken.append(index)
        super().put(index, block)


class Killed(BaseException):
    """Stands for a kill: no pruner may catch it."""


class DyingSink(BlockFolder):
    """Dies at its ``survive``-th block, as a kill would: before the block is on disk, or right after (``written``)."""

    def __init__(self, folder: Path, survive: int, *, written: bool) -> None:
        super().__init__(folder)
        self.survive, self.written, self.count = survive, written, 0

    def put(self, index: int, block: Block) -> None:
        """Store a finished block, or die."""
        if self.count == self.survive:
            if self.written:
                super().put(index, block)
            raise Killed
        self.count += 1
        super().put(index, block)


def outcome(report: PruneReport) -> list[tuple[object, ...]]:
    """What must be equal between two reports of the same work: everything but times."""
    return [
        (m.block, m.name, m.rows, m.columns, m.removed, m.calibration_error, m.heldout_error, m.damping)
        for m in report.matrices
    ]
