"""Random checkpoints of the three families, far too small to know anything, made on the spot.

Widths are no multiples of any block size, groups of heads are shared in LLaMA, biases and norms are random, so
that what takes sizes for granted fails here first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from methods.families import family_of
from methods.interface import Calibration

__all__ = ["CONFIGS", "SHAPES", "calibration", "checkpoint"]

_VOCABULARY = 83
_LENGTH = 12
_BLOCKS = 2

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "opt": {
        "model_type": "opt",
        "vocab_size": _VOCABULARY,
        "hidden_size": 20,
        "num_hidden_layers": _BLOCKS,
        "num_attention_heads": 4,
        "ffn_dim": 36,
        "max_position_embeddings": 16,
        "word_embed_proj_dim": 20,
    },
    "bloom": {
        "model_type": "bloom",
        "vocab_size": _VOCABULARY,
        "hidden_size": 12,
        "n_layer": _BLOCKS,
        "n_head": 3,
        "seq_length": 16,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": _VOCABULARY,
        "hidden_size": 28,
        "num_hidden_layers": _BLOCKS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 44,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}
"""Configs as their families publish them; input widths are 20, 36, 12, 48, 28 and 44."""

SHAPES: Mapping[str, Mapping[str, Any]] = {
    **CONFIGS,
    "opt-350m": {
        **CONFIGS["opt"],
        "do_layer_norm_before": False,
        "hidden_size": 1024,
        "word_embed_proj_dim": 512,
        "num_attention_heads": 16,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
    },
    "opt-175b": {
        **CONFIGS["opt"],
        "hidden_size": 12288,
        "word_embed_proj_dim": 12288,
        "num_attention_heads": 96,
        "ffn_dim": 49152,
        "num_hidden_layers": 96,
    },
    "odd": {**CONFIGS["llama"], "hidden_size": 28, "num_attention_heads": 2, "intermediate_size": 37},
}
"""Configs to ask for refusals: those above, a post-norm model, a very large one, one of odd widths."""


def checkpoint(
    folder: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    change: Callable[[dict[str, Tensor]], None] | None = None,
) -> Path:
    """Write a random model of ``family`` to ``folder``, the same one every time; returns the folder.

    Weights are large enough for attention to be far from uniform. ``change`` may edit the float32 tensors, by
    full name, before they are rounded to ``dtype``.
    """
    config = CONFIGS[family]
    adapter = family_of(config)
    shape = adapter.shape(config)
    sizes = dict(adapter.outer_tensors(shape))
    for index in range(shape.blocks):
        prefix = adapter.block_prefix(index)
        sizes |= {prefix + name: size for name, size in adapter.block_tensors(shape).items()}
    generator = torch.Generator().manual_seed(7)
    tensors = {name: _random(name, size, generator) for name, size in sizes.items()}
    if change is not None:
        change(tensors)
    folder.mkdir(parents=True)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    text = json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(size, generator=generator)
    if len(size) > 1:
        return noise.mul_(1.5 / size[-1] ** 0.5)
    noise *= 0.2
    return noise + 1 if name.endswith("weight") else noise


def calibration(windows: int = 7, *, length: int = _LENGTH, seed: int = 3) -> Calibration:
    """Random tokens: ``windows`` drawn ones, of another text for another ``seed``, and two held-out ones."""
    drawn = torch.randint(_VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))
    kept = torch.randint(_VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))
    return Calibration(drawn, kept)
