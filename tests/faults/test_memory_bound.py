"""Anonymous memory of a prune, on the shapes of OPT-1.3B in float16: O(block + hidden states), never O(model).

Run as a program it prints the figures for any number of blocks: `python tests/faults/test_memory_bound.py
24`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # it also runs as a program
from large_models import opt_config, random_checkpoint

from bench.measure.memory import PeakMemory
from methods.interface import Calibration, Run
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

_SAMPLES, _LENGTH, _HELDOUT = 16, 512, 4


def opt(folder: Path, blocks: int, **sizes: int) -> Path:
    """A checkpoint by default of OPT-1.3B's shapes."""
    return random_checkpoint(folder, opt_config(blocks, **sizes))


def measure(folder: Path, work: Path, dtype: str) -> dict[str, Any]:
    """Prune the checkpoint and compare the peak with base + 1.3 x (block + 3 Hessians + hidden states + embedding)."""
    source = CheckpointSource(folder, dtype=getattr(torch, dtype))
    shape, itemsize = source.shape, source.dtype.itemsize
    tokens = torch.randint(
        0, shape.vocabulary, (_SAMPLES + _HELDOUT, _LENGTH), generator=torch.Generator().manual_seed(1)
    )
    terms = {
        "block": itemsize * sum(tensor.numel() for tensor in source.raw_block(0).values()),
        "hessians": 3 * 4 * max(matrix.columns for matrix in source.family.matrices(shape)) ** 2,
        "hidden": itemsize * _SAMPLES * _LENGTH * shape.width,
        "embedding": itemsize * shape.vocabulary * shape.embedding_width,
    }
    with PeakMemory() as memory:
        get("sparsegpt", {}).prune(
            source,
            Calibration(tokens[:_SAMPLES], tokens[_SAMPLES:]),
            Target.parse("50%"),
            BlockFolder(work / "blocks"),
            Run(work=work),
        )
    bound = memory.base + 1.3 * sum(terms.values())
    return {
        "dtype": dtype,
        "blocks": shape.blocks,
        **terms,
        "base": memory.base,
        "peak": memory.peak,
        "bound": bound,
    }


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes of work where every core is busy
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_of_a_prune_is_bounded(tmp_path: Path, dtype: str) -> None:
    figures = in_a_process_of_its_own(opt(tmp_path / "model", blocks=2), dtype)
    assert figures["base"] < figures["peak"] <= figures["bound"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_number_of_blocks(tmp_path: Path) -> None:
    folders = {blocks: opt(tmp_path / str(blocks), blocks, width=512, vocabulary=1000) for blocks in (5, 11)}
    # what a block takes for milliseconds only is missed now and then, where few blocks are sampled
    runs = [in_a_process_of_its_own(folders[5], "float32") for _ in range(3)]
    few = max(runs, key=lambda figures: figures["peak"] - figures["base"])
    many = in_a_process_of_its_own(folders[11], "float32")
    grown = (many["peak"] - many["base"]) - (few["peak"] - few["base"])
    # a block or a factor kept would be six times 12 or 17 MB; where the heap's gaps fall varies by tens
    assert grown < 3 * few["block"], f"{grown / 2**20:.1f} MiB more for six more blocks"


def in_a_process_of_its_own(folder: Path, dtype: str) -> dict[str, Any]:
    """Figures of a bare process, whose base holds nothing of this one."""
    command = [sys.executable, __file__, "0", dtype, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    print(figures)
    return figures


if __name__ == "__main__":
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(sys.argv[3]) if len(sys.argv) > 3 else opt(Path(scratch) / "model", int(sys.argv[1]))
        print(
            json.dumps(
                measure(place, Path(scratch) / "work", sys.argv[2] if len(sys.argv) > 2 else "float32")
            )
        )
