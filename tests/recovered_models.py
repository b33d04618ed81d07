"""Tiny models pruned and recovered in a folder, on a text that they can learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from saved_models import saved
from torch import Tensor
from torch.nn import functional

from methods.inference.assemble import assemble
from methods.interface import Calibration, PruneReport, Run
from methods.recover.full import Full
from methods.recover.lora import LoRA
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

FAMILIES = ("opt", "bloom", "llama")
QUICK: dict[str, Any] = {"steps": 24, "batch": 4, "lr": 0.01}
KINDS = {"lora": LoRA(rank=4, alpha=8.0, **QUICK), "full": Full(**QUICK)}


def text(windows: int = 12, heldout: int = 4, length: int = 16) -> Calibration:
    """Windows of a sequence whose every token gives the next one: a loss to bring down, on new windows too."""
    starts = torch.randint(0, 97, (windows + heldout, 1), generator=torch.Generator().manual_seed(11))
    tokens = 3 + (starts + 5 * torch.arange(length)) % 97
    return Calibration(tokens[:windows], tokens[windows:])


def prune(
    folder: Path,
    recover: str = "",
    *,
    model: Path | None = None,
    family: str = "opt",
    method: str = "magnitude",
    target: str = "60%",
    layers: str = "",
    run: dict[str, Any] | None = None,
    text: Calibration | None = None,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> tuple[PruneReport, CheckpointSource]:
    """Prune (and recover) a tiny model into ``folder``/blocks; the report, and the result's source."""
    model = model or saved(folder / "model", family, dtype=dtype)
    kind = recover.split("x")[-1]
    settings = (
        {**QUICK, **({"rank": 4, "alpha": 8.0} if kind == "lora" else {}), **changes} if recover else {}
    )
    parameters = {f"{kind}.{name}": value for name, value in settings.items()}
    pruner = get(method, parameters, layers, recover)
    sink = BlockFolder(folder / "blocks")
    source = CheckpointSource(model)
    report = pruner.prune(source, text or globals()["text"](), Target.parse(target), sink, Run(**(run or {})))
    return report, CheckpointSource(model, overlay=sink.folder)


def loss(source: CheckpointSource, tokens: Tensor) -> float:
    """Mean loss of the next token, by transformers."""
    with torch.no_grad():
        logits = assemble(source)(input_ids=tokens).logits[:, :-1]
    return float(functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def weights(source: CheckpointSource) -> dict[str, Tensor]:
    """Every tensor as stored, by full name."""
    found = {name: source.raw_outer(name) for name in source.family.outer_tensors(source.shape)}
    for index in range(source.shape.blocks):
        prefix = source.family.block_prefix(index)
        found |= {prefix + name: tensor for name, tensor in source.raw_block(index).items()}
    return found


def linears(source: CheckpointSource) -> set[str]:
    """Full names of the prunable matrices."""
    return {
        f"{source.family.block_prefix(index)}{matrix.name}.weight"
        for index in range(source.shape.blocks)
        for matrix in source.family.matrices(source.shape, index)
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two models are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
