"""Grids lie beside a finished block's weights, and no reader of blocks takes them for parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from saved_models import saved
from transformers import AutoModelForCausalLM

from bench.evaluate.perplexity import score
from methods.checkpoints.dense import save_dense
from methods.inference.assemble import assemble
from methods.interface import Calibration, PruneReport, Run
from methods.quantise.grid import dequantise, requantise
from methods.quantise.stored import grid_tensors, is_grid
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

_FAMILIES = ("opt", "bloom", "llama")


def _quantise(
    model: Path,
    out: Path,
    target: str,
    dtype: torch.dtype = torch.float32,
    schedule: str = "sequential",
    **parameters: object,
) -> tuple[CheckpointSource, PruneReport]:
    tokens = torch.randint(3, 101, (8, 16), generator=torch.Generator().manual_seed(5))
    report = get("sparsegpt", parameters).prune(
        CheckpointSource(model, dtype=dtype),
        Calibration(tokens[:6], tokens[6:]),
        Target.parse(target),
        BlockFolder(out),
        Run(schedule=schedule),
    )
    return CheckpointSource(model, dtype=dtype, overlay=out), report


@pytest.mark.parametrize("family", _FAMILIES)
@pytest.mark.parametrize(
    ("stored", "target", "groupsize"),
    [
        (torch.float32, "50%+4bit", 0),
        (torch.float16, "0%+3bit", 10),
        (torch.bfloat16, "2:4+8bit", 8),
    ],
    ids=str,
)
def test_stored_weights_are_levels_of_stored_grids(
    tmp_path: Path, family: str, stored: torch.dtype, target: str, groupsize: int
) -> None:
    model = saved(tmp_path / "model", family, dtype=stored)
    source, report = _quantise(model, tmp_path / "blocks", target, groupsize=groupsize)
    for matrix in report.matrices:
        weight = source.raw_block(matrix.block)[f"{matrix.name}.weight"]
        grid = source.grids(matrix.block)[matrix.name]
        assert weight.dtype == stored and grid.bits == Target.parse(target).bits
        assert grid.groupsize == (groupsize or matrix.columns)
        levels = requantise(weight, grid)
        assert levels is not None
        assert torch.equal(dequantise(levels, grid).to(stored), weight)
        assert int((weight == 0).sum()) >= matrix.removed
        assert abs(matrix.removed - Target.parse(target).amount * weight.numel()) <= 0.5


def test_blocks_hold_parameters_only(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    source, _ = _quantise(model, tmp_path / "blocks", "50%+4bit")
    with safe_open(tmp_path / "blocks" / "block-00000.safetensors", "pt") as file:
        kept = set(file.keys())
    assert {name for name in kept if is_grid(name)} == {
        f"{matrix.name}{end}"
        for matrix in source.family.matrices(source.shape)
        for end in (".weight_scale", ".weight_zero_point", ".weight_grid")
    }
    names = set(source.family.block_tensors(source.shape))
    assert set(source.raw_block(0)) == set(source.block(0)) == names == {n for n in kept if not is_grid(n)}
    assert CheckpointSource(model).grids(0) == {}


def test_perplexity_assembly_and_dense_checkpoints_do_without_grids(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "bloom")
    source, _ = _quantise(model, tmp_path / "blocks", "50%+4bit")
    folder = tmp_path / "dense"
    save_dense(source, folder)
    plain = CheckpointSource(folder)
    windows = torch.randint(3, 101, (2, 16), generator=torch.Generator().manual_seed(1))
    assert score(source, windows, Run()).perplexity == score(plain, windows, Run()).perplexity
    loaded, built = AutoModelForCausalLM.from_pretrained(folder), assemble(source)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, built.state_dict()[name])


def test_pruning_again_leaves_no_grid_of_before(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    source, _ = _quantise(model, tmp_path / "blocks", "50%+4bit")
    tokens = torch.randint(3, 101, (4, 16), generator=torch.Generator().manual_seed(5))
    again = tmp_path / "again"
    get("magnitude", {}).prune(
        source, Calibration(tokens[:0], tokens), Target.parse("60%"), BlockFolder(again), Run()
    )
    assert all(CheckpointSource(model, overlay=again).grids(index) == {} for index in range(3))


@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
def test_eight_bits_err_far_less_than_two(tmp_path: Path, schedule: str) -> None:
    model = saved(tmp_path / "model", "llama")
    errors = {}
    for bits in (2, 8):
        _, report = _quantise(model, tmp_path / str(bits), f"0%+{bits}bit", schedule=schedule)
        errors[bits] = sum(matrix.heldout_error or 0 for matrix in report.matrices)
        assert all(matrix.removed == 0 for matrix in report.matrices)
    assert errors[8] * 100 < errors[2]


def test_grids_wider_than_a_byte_are_not_kept() -> None:
    from methods.quantise.grid import GridMaker

    with pytest.raises(ValueError, match="a grid of 16 bits is not kept: pass 8 at most"):
        grid_tensors("fc1", GridMaker(16).whole(torch.ones(2, 2)))
