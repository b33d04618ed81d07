"""The packaged models pruned by magnitude into a folder of blocks."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.models.nano import train
from methods.interface import Calibration, Run
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

NANOS = ("nano-opt", "nano-bloom", "nano-llama")
PROMPT = torch.randint(3, 1000, (1, 24), generator=torch.Generator().manual_seed(3))


def nano(name: str) -> Path:
    """Folder of a packaged model."""
    return Path(train.__file__).parent / name


def pruned(
    name: str, out: Path, target: str = "60%", *, dtype: torch.dtype = torch.float32
) -> CheckpointSource:
    """The model pruned to ``target``, its blocks in ``out``."""
    blocks = BlockFolder(out)
    nothing = Calibration(PROMPT[:0], PROMPT)
    get("magnitude", {}).prune(CheckpointSource(nano(name)), nothing, Target.parse(target), blocks, Run())
    return CheckpointSource(nano(name), dtype=dtype, overlay=blocks.folder)
