"""Random models sliced into a folder, and their logits block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from saved_models import saved
from torch import Tensor
from torch.nn import functional

from methods.families.base import run_block
from methods.interface import Calibration, PruneReport, Run
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

FAMILIES = ("opt", "bloom", "llama")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", {}),
    "opt without biases": ("opt", {"enable_bias": False}),
    "opt without norm parameters": ("opt", {"layer_norm_elementwise_affine": False}),
    "bloom": ("bloom", {}),
    "bloom untied": ("bloom", {"tie_word_embeddings": False}),
    "llama": ("llama", {}),
    "llama with biases, tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 10},
    ),
}
TOKENS = torch.randint(3, 101, (3, 20), generator=torch.Generator().manual_seed(5))


def calibration(windows: int = 9, length: int = 16, heldout: int = 3) -> Calibration:
    tokens = torch.randint(3, 101, (windows + heldout, length), generator=torch.Generator().manual_seed(7))
    return Calibration(tokens[:windows], tokens[windows:])


def sliced(
    model: Path,
    out: Path,
    target: str = "slice25%",
    *,
    dtype: torch.dtype = torch.float32,
    run: dict[str, Any] | None = None,
    **parameters: Any,
) -> tuple[PruneReport, CheckpointSource]:
    """Slice the model folder into ``out``; the report, and the sliced model's source."""
    source = CheckpointSource(model, dtype=dtype)
    settings: dict[str, Any] = {"batch_tokens": 48, "work": out / "work", "identity": "same", **(run or {})}
    report = get("slicegpt", parameters).prune(
        source, calibration(), Target.parse(target), BlockFolder(out / "blocks"), Run(**settings)
    )
    return report, CheckpointSource(model, dtype=dtype, overlay=out / "blocks")


def streamed(source: CheckpointSource, tokens: Tensor = TOKENS, mask: Tensor | None = None) -> Tensor:
    """Logits [batch, length, vocabulary], block by block."""
    family, config = source.family, source.config
    hidden = family.embed(source.outer, config, tokens, mask)
    arguments = family.arguments(config, mask, *tokens.shape, hidden)
    stages = family.stages(config)
    for index in range(source.shape.blocks):
        hidden = run_block(stages, source.block(index), hidden, arguments)
    states = family.finish(source.outer, config, hidden)
    return functional.linear(
        states, family.head(source.outer, config), family.head_bias(source.outer, config)
    )


def saved_variant(folder: Path, variant: str, **more: Any) -> Path:
    family, overrides = VARIANTS[variant]
    return saved(folder, family, **{**overrides, **more})
