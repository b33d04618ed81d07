"""Targets of a size: the sparsity is the least that reaches it, whatever the dtypes, and the record's figures say so."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import saved
from sliced_models import FAMILIES, calibration

from methods.errors import UnsupportedTarget
from methods.families import shape_of, sizes
from methods.interface import Run
from methods.layerwise.reach import Inventory, sized
from methods.layerwise.select import round_half_up
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target


def _achieved(source: CheckpointSource) -> tuple[int, int]:
    """Non-zero parameters, and bytes with prunable matrices as bitmaps, counted tensor by tensor."""
    linears = {f"{matrix.name}.weight" for matrix in source.family.matrices(source.shape)}
    nonzero = packed = 0
    for index in range(source.shape.blocks):
        for name, tensor in source.raw_block(index).items():
            kept = int((tensor != 0).sum())
            nonzero += kept
            bits = -(-tensor.numel() // 8) + kept * tensor.element_size()
            packed += bits if name in linears else tensor.nbytes
    for name in source.family.outer_tensors(source.shape):
        tensor = source.raw_outer(name)
        nonzero += int((tensor != 0).sum())
        packed += tensor.nbytes
    return nonzero, packed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("method", ["magnitude", "magnitude@global", "sparsegpt"])
@pytest.mark.parametrize("target", ["params-20%", "params-33.333%", "bytes-30%", "bytes-10%"])
def test_the_size_is_reached_and_barely(
    tmp_path: Path, family: str, dtype: torch.dtype, method: str, target: str
) -> None:
    model, aim = saved(tmp_path / "model", family, dtype=dtype), Target.parse(target)
    dense = CheckpointSource(model)
    get(method, {}).prune(dense, calibration(), aim, BlockFolder(tmp_path / "blocks"), Run())
    nonzero, packed = _achieved(CheckpointSource(model, overlay=tmp_path / "blocks"))
    inventory = Inventory.of_source(dense)
    assert inventory.parameters == sizes.parameters(dense.shape)
    assert inventory.bytes == inventory.parameters * dtype.itemsize
    # each of the matrices may round up by less than one weight
    spare = len(inventory.matrices)
    if aim.kind == "params":
        most = (1 - aim.amount) * inventory.parameters
        assert most - 1 - spare < nonzero <= most
    else:
        most = (1 - aim.amount) * inventory.bytes
        assert most - (1 + spare) * dtype.itemsize < packed <= most


def test_mixed_dtypes_are_counted_as_stored(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama", dtype=torch.float16)
    tensors = load_file(model / "model.safetensors")
    wide = {name: t.float() if t.ndim == 1 or "embed" in name else t for name, t in tensors.items()}
    save_file(wide, model / "model.safetensors", {"format": "pt"})
    dense = CheckpointSource(model)
    inventory = Inventory.of_source(dense)
    assert inventory.bytes == sum(tensor.nbytes for tensor in wide.values())
    assert inventory.itemsize == 2
    aim = Target.parse("bytes-20%")
    get("magnitude", {}).prune(dense, calibration(), aim, BlockFolder(tmp_path / "blocks"), Run())
    _, packed = _achieved(CheckpointSource(model, overlay=tmp_path / "blocks"))
    assert packed <= (1 - aim.amount) * inventory.bytes < packed + 100


def test_from_a_shape_and_from_what_is_stored_it_is_the_same(tmp_path: Path) -> None:
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            source = CheckpointSource(saved(tmp_path / f"{family}{dtype}", family, dtype=dtype))
            shape = shape_of(source.config)
            assert shape.itemsize == dtype.itemsize
            assert Inventory.of_shape(shape) == Inventory.of_source(source)


def test_rounding_takes_less_than_a_weight_a_matrix_more() -> None:
    """Three matrices of 5 weights: 7 of 15 are 2.33 each, which rounds to 6 in all, so the share is raised."""
    inventory = Inventory(parameters=20, bytes=40, matrices=(5, 5, 5), matrix_bytes=30, itemsize=2)
    for needed in range(1, 15):
        target = Target("params", Fraction(needed, 20))
        assert inventory.to_remove(target) == needed
        found = sized(target, inventory)
        removed = sum(round_half_up(found.amount * size) for size in inventory.matrices)
        assert needed <= removed < needed + 3
    assert sized(Target("params", Fraction(7, 20)), inventory).amount > Fraction(7, 15)
    assert sized(Target.parse("50%"), inventory) == Target.parse("50%")
    assert sized(Target.parse("2:4"), inventory) == Target.parse("2:4")


def test_a_size_already_reached_removes_nothing() -> None:
    """Bitmaps of 32-bit weights cost a 32nd: below that, bytes rise at first."""
    inventory = Inventory(parameters=1000, bytes=4000, matrices=(800,), matrix_bytes=3200, itemsize=4)
    assert inventory.size_without(0, "bytes") == 4000 + 100
    assert inventory.to_remove(Target("bytes", Fraction(1, 1000))) == 26
    assert inventory.to_remove(Target("params", Fraction(1, 1000))) == 1


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (
            "params-90%",
            (
                "params-90% allows 100 of 1,000 parameters; with all 800 prunable weights removed 200 are left "
                "(embeddings, head, norms and biases are not pruned)"
            ),
        ),
        (
            "bytes-78%",
            (
                "bytes-78% allows 880 of 4,000 bytes; with all 800 prunable weights removed 900 are left "
                "(embeddings, head, norms and biases are not pruned)"
            ),
        ),
        ("params-80%", "params-80% would remove every prunable weight"),
    ],
)
def test_a_size_out_of_reach_is_refused_with_the_figures(target: str, reason: str) -> None:
    inventory = Inventory(parameters=1000, bytes=4000, matrices=(800,), matrix_bytes=3200, itemsize=4)
    with pytest.raises(UnsupportedTarget) as caught:
        sized(Target.parse(target), inventory)
    assert str(caught.value) == reason


def test_bitmap_bytes_in_whole_bytes() -> None:
    assert [sizes.bitmap_bytes(n, 3, 2) for n in (0, 1, 8, 9)] == [6, 7, 7, 8]
