"""Randomly initialised float16 checkpoints of OPT's shapes, sharded by block, one block in memory at a time.

As a program: `python tests/large_models.py opt-6.7b FOLDER` writes one of a registered model's size, with the packaged
tokenizer, ready for `bench run --models path:FOLDER`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from methods.families import family_of, shape_of

__all__ = ["opt_config", "random_checkpoint"]


def opt_config(blocks: int, width: int = 2048, vocabulary: int = 50272) -> dict[str, Any]:
    """OPT's config, by default with the sizes of OPT-1.3B."""
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": width // 64,
        "ffn_dim": 4 * width,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": width,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "torch_dtype": "float16",
    }


def random_checkpoint(folder: Path, config: Mapping[str, Any]) -> Path:
    """Write the checkpoint, one shard a block: matrices of deviation 0.02, norms as they begin."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shape, family = shape_of(config), family_of(config)
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, size: tuple[int, ...]) -> torch.Tensor:
        if "norm" in name:
            return (torch.ones if name.endswith("weight") else torch.zeros)(size, dtype=torch.float16)
        return torch.empty(size).normal_(std=0.02, generator=generator).half()

    weight_map: dict[str, str] = {}
    shards = {"outer": family.outer_tensors(shape)}
    for index in range(shape.blocks):
        prefix = family.block_prefix(index)
        shards[f"block{index}"] = {prefix + name: size for name, size in family.block_tensors(shape).items()}
    for shard, sizes in shards.items():
        save_file({name: drawn(name, size) for name, size in sizes.items()}, folder / f"{shard}.safetensors")
        weight_map |= dict.fromkeys(sizes, f"{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


if __name__ == "__main__":
    from bench.models import nano, registry

    made = random_checkpoint(
        Path(sys.argv[2]), {**registry.get(sys.argv[1]).config, "torch_dtype": "float16"}
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(nano.__file__).parent / "nano-opt" / name, made / name)
