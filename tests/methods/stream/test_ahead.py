"""Blocks read ahead are those of the source, bit for bit, and what is wrong with one is said when its turn comes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import saved

from methods.errors import NonFiniteError
from methods.interface import Block
from methods.stream.ahead import BlocksAhead
from methods.stream.source import CheckpointSource


class _Watched(CheckpointSource):
    """Notes which thread reads which block."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        super().__init__(folder, dtype=dtype)
        self.read: list[tuple[int, str]] = []
        self.wait = threading.Event()

    def raw_block(self, index: int) -> Block:
        self.read.append((index, threading.current_thread().name))
        self.wait.set()
        return super().raw_block(index)


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_the_sources_own(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = CheckpointSource(saved(tmp_path / "model", family), dtype=dtype)
    threads = torch.get_num_threads()
    with BlocksAhead(source, 1) as ahead:
        # backwards and again too: an order not foreseen is read when asked for
        for index in (1, 0, 0, 1):
            block, raw = ahead.take(index)
            expected, stored = source.block(index), source.raw_block(index)
            assert block.keys() == expected.keys() and raw.keys() == stored.keys()
            assert all(torch.equal(block[name], expected[name]) for name in block)
            assert all(torch.equal(raw[name], stored[name]) for name in raw)
            block[next(iter(block))].fill_(7)  # a copy, which the walk may write to
    assert torch.get_num_threads() == threads


def test_the_next_block_is_read_by_a_thread_while_this_one_is_worked_on(tmp_path: Path) -> None:
    source = _Watched(saved(tmp_path / "model", "opt"), torch.float32)
    with BlocksAhead(source) as ahead:
        source.wait.wait(10)
        source.wait.clear()
        ahead.take(0)
        while (1, "block-ahead_0") not in source.read:
            assert source.wait.wait(10), source.read
            source.wait.clear()
    assert not any(thread.name.startswith("block-ahead") for thread in threading.enumerate())


def test_a_broken_block_is_said_at_its_turn(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    tensors = load_file(model / "model.safetensors")
    tensors["model.decoder.layers.1.fc1.weight"][-1, -1] = float("inf")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    source = CheckpointSource(model)
    with BlocksAhead(source, check=True) as ahead:
        ahead.take(0)
        with pytest.raises(NonFiniteError, match=r"block 1 fc1\.weight"):
            ahead.take(1)
    with BlocksAhead(source) as ahead:  # evaluation shows what a broken model gives
        assert ahead.take(1)[0]["fc1.weight"].isinf().any()
