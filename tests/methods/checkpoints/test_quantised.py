"""The packed form: what from_pretrained gives back is what was pruned, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from saved_models import saved
from tiny_models import MemorySource, logits
from transformers import AutoModelForCausalLM

from methods.checkpoints.dense import save_dense
from methods.checkpoints.quantised import save_quantised
from methods.errors import UnsupportedTarget
from methods.interface import Calibration, Run
from methods.quantise.stored import packed_bytes
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target


def _quantised(
    folder: Path,
    family: str = "llama",
    target: str = "50%+4bit",
    dtype: torch.dtype = torch.float32,
    layers: str = "",
    ffn_dim: int | None = None,
    **parameters: object,
) -> CheckpointSource:
    sizes = {"ffn_dim": ffn_dim} if ffn_dim else {}
    model = saved(folder / "model", family, dtype=dtype, **sizes)
    tokens = torch.randint(3, 101, (8, 16), generator=torch.Generator().manual_seed(5))
    get("sparsegpt", parameters, layers).prune(
        CheckpointSource(model),
        Calibration(tokens[:6], tokens[6:]),
        Target.parse(target),
        BlockFolder(folder / "blocks"),
        Run(),
    )
    return CheckpointSource(model, overlay=folder / "blocks")


@pytest.mark.parametrize(
    ("family", "target", "dtype", "groupsize"),
    [
        ("opt", "50%+4bit", torch.float16, 0),
        ("opt", "0%+8bit", torch.bfloat16, 8),
        ("bloom", "2:4+3bit", torch.float32, 8),
        ("bloom", "50%+8bit", torch.float16, 0),
        ("llama", "50%+2bit", torch.bfloat16, 0),
        ("llama", "2:4+4bit", torch.float16, 4),
        ("llama", "0%+3bit", torch.float32, 0),
    ],
    ids=str,
)
def test_reloaded_weights_and_logits_are_the_same(
    tmp_path: Path, family: str, target: str, dtype: torch.dtype, groupsize: int
) -> None:
    source = _quantised(tmp_path, family, target, dtype, groupsize=groupsize)
    (file,) = save_quantised(source, tmp_path / "packed")
    save_dense(source, tmp_path / "dense")
    tokens = torch.randint(3, 101, (3, 16), generator=torch.Generator().manual_seed(1))
    for wanted in (dtype, torch.float32):
        packed, dense = (
            AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=wanted)
            for name in ("packed", "dense")
        )
        state = dense.state_dict()
        assert set(packed.state_dict()) == set(state)
        for name, tensor in packed.state_dict().items():
            assert tensor.dtype == wanted and torch.equal(tensor, state[name]), name
        with torch.no_grad():
            assert torch.equal(packed(tokens).logits, dense(tokens).logits)
    # the families' own forward pass agrees: the same perplexity before and after
    ours = logits(MemorySource(source.config, packed.state_dict()), tokens)
    with torch.no_grad():
        assert torch.allclose(packed(tokens).logits, ours, atol=1e-4)
    stored = load_file(file)
    for index in range(source.shape.blocks):
        prefix = source.family.block_prefix(index)
        for name, grid in source.grids(index).items():
            parts = [t for key, t in stored.items() if key.startswith(f"{prefix}{name}.weight")]
            weight = source.raw_block(index)[f"{name}.weight"]
            assert sum(part.nbytes for part in parts) == packed_bytes(*weight.shape, grid, dtype)
    assert not list(tmp_path.glob(".*partial"))


def test_unselected_matrices_stay_whole_beside_packed_ones(tmp_path: Path) -> None:
    source = _quantised(tmp_path, "llama", layers="only=mlp,except=down_proj")
    files = save_quantised(source, tmp_path / "packed", shard_bytes=8000)
    assert len(files) > 1
    config = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["format"] == "pack-quantized"
    (group,) = config["config_groups"].values()
    assert sorted(group["targets"]) == sorted(
        f"model.layers.{index}.mlp.{name}" for index in range(3) for name in ("gate_proj", "up_proj")
    )
    save_dense(source, tmp_path / "dense")
    packed, dense = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("packed", "dense"))
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, packed.state_dict()[name])


@pytest.mark.parametrize(
    ("target", "parameters", "dtype", "said"),
    [
        ("50%", {}, torch.float32, "no matrix is quantised, so there is nothing to pack; prune with --bits"),
        ("50%+4bit", {"groupsize": 10}, torch.float32, "groups of 10 columns do not divide its 24"),
        (
            "50%+4bit",
            {"groupsize": 32},
            torch.float32,
            "grids span 24, 32 columns, and transformers unpacks by one",
        ),
        (
            "50%+4bit",
            {"reference": True},
            torch.float16,
            "its scales need float32 and its weights are torch.float16",
        ),
    ],
)
def test_what_the_form_cannot_hold_is_refused(
    tmp_path: Path, target: str, parameters: dict[str, object], dtype: torch.dtype, said: str
) -> None:
    source = _quantised(tmp_path, "opt", target, dtype, ffn_dim=64, **parameters)
    with pytest.raises(UnsupportedTarget, match=said) as caught:
        save_quantised(source, tmp_path / "packed")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "packed").exists() and not list(tmp_path.glob(".*partial"))
