"""Slicing block by block: what is reported, what memory and kills change (nothing), what is seeded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import saved
from sliced_models import FAMILIES, calibration, sliced, streamed

from bench.measure.memory import PeakMemory
from methods.errors import NonFiniteError, UnsupportedTarget, UserError
from methods.families import sizes
from methods.interface import Block, Calibration, Run
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target


def _digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slice_head", [False, True])
def test_removed_is_by_how_much_each_matrix_shrank(tmp_path: Path, family: str, slice_head: bool) -> None:
    model = saved(tmp_path / "model", family)
    report, cut = sliced(model, tmp_path, "slice30%", slice_head=slice_head)
    dense = CheckpointSource(model)
    names = [matrix.name for matrix in dense.family.matrices(dense.shape)]
    assert [(m.block, m.name) for m in report.matrices] == [(i, name) for i in range(3) for name in names]
    for matrix in report.matrices:
        whole = dense.raw_block(matrix.block)[f"{matrix.name}.weight"]
        left = cut.raw_block(matrix.block)[f"{matrix.name}.weight"]
        assert (matrix.rows, matrix.columns) == tuple(whole.shape)
        assert matrix.removed == whole.numel() - left.numel()
        uncut = matrix.block == 2 and matrix.name == names[-1] and not slice_head
        assert (matrix.removed == 0) == uncut
        assert matrix.calibration_error is None and matrix.damping is None
        error = matrix.heldout_error
        assert error is not None
        assert error < 1e-10 if uncut else 0 < error < 1
    stored = sum(t.numel() for i in range(3) for t in cut.raw_block(i).values())
    stored += sum(cut.raw_outer(name).numel() for name in cut.family.outer_tensors(cut.shape))
    assert stored == sizes.parameters(cut.shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_grow_with_the_share_and_vanish_without_one(tmp_path: Path, family: str) -> None:
    model = saved(tmp_path / "model", family)
    means = []
    for target in ("slice0%", "slice10%", "slice30%", "slice60%"):
        report, _ = sliced(model, tmp_path / target, target, round_interval=1)
        errors = [matrix.heldout_error or 0.0 for matrix in report.matrices]
        means.append(sum(errors) / len(errors))
    assert means[0] < 1e-10
    assert means == sorted(means) and means[-1] > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_for_states_never_changes_a_bit(tmp_path: Path, family: str) -> None:
    """All in memory, wide states computed again, and everything on disk: the same model."""
    model = saved(tmp_path / "model", family)
    digests = []
    for budget in (1 << 30, 12 * 16 * 24 * 4, 0):
        out = tmp_path / str(budget)
        sliced(model, out, run={"hidden_budget": budget}, slice_head=True)
        digests.append(_digest(out / "blocks"))
        assert not list((out / "work").glob("*.map")), "mapped states are removed"
    assert digests[0] == digests[1] == digests[2]
    tables = 2 if family == "opt" else 1
    assert len(digests[0]) == 3 + tables + 1 + 1, "blocks, tables, head, config"


class _Killed(Exception):
    pass


class _DyingSink(BlockFolder):
    """Dies as a kill would: at a block, before or after it reaches the disk, or at a write outside the blocks."""

    def __init__(self, folder: Path, survive: int | None, *, written: bool, outer: int | None = None) -> None:
        super().__init__(folder)
        self.survive, self.written, self.outer = survive, written, outer

    def put(self, index: int, block: Block) -> None:
        if index == self.survive:
            if self.written:
                super().put(index, block)
            raise _Killed
        super().put(index, block)

    def put_outer(self, tensors: Any) -> None:
        if self.outer == 0:
            raise _Killed
        self.outer = None if self.outer is None else self.outer - 1
        super().put_outer(tensors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("survive", "written", "outer"),
    [(0, False, None), (1, False, None), (1, True, None), (2, True, None), (None, True, 0), (None, True, 1)],
)
@pytest.mark.parametrize("slice_head", [False, True])
def test_a_resumed_slicing_is_bit_identical(
    tmp_path: Path, family: str, survive: int | None, written: bool, outer: int | None, slice_head: bool
) -> None:
    model = saved(tmp_path / "model", family)
    parameters = {"slice_head": slice_head, "orientation": "random", "slope": 0.2}
    whole, _ = sliced(model, tmp_path / "whole", **parameters)
    run = Run(batch_tokens=48, work=tmp_path / "work", identity="same")
    pruner, target = get("slicegpt", parameters), Target.parse("slice25%")
    sink = _DyingSink(tmp_path / "blocks", survive, written=written, outer=outer)
    with pytest.raises(_Killed):
        pruner.prune(CheckpointSource(model), calibration(), target, sink, run)
    report = pruner.prune(
        CheckpointSource(model), calibration(), target, BlockFolder(tmp_path / "blocks"), run
    )
    assert report.resumed_blocks == (survive or 0 if outer is None else report.resumed_blocks)
    assert _digest(tmp_path / "blocks") == _digest(tmp_path / "whole" / "blocks")
    assert [(m.block, m.name, m.removed, m.heldout_error) for m in report.matrices] == [
        (m.block, m.name, m.removed, m.heldout_error) for m in whole.matrices
    ]
    again = pruner.prune(
        CheckpointSource(model), calibration(), target, BlockFolder(tmp_path / "blocks"), run
    )
    assert again.resumed_blocks == 3 and again.matrices == report.matrices


def test_seeds_turn_random_orientations_only(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    digests: dict[tuple[str, int], dict[str, str]] = {}
    logits: dict[tuple[str, int], torch.Tensor] = {}
    for orientation in ("pca", "random"):
        for seed in (0, 0, 1):
            out = tmp_path / f"{orientation}{seed}{len(digests)}"
            _, cut = sliced(model, out, orientation=orientation, run={"seed": seed})
            found = _digest(out / "blocks")
            assert digests.setdefault((orientation, seed), found) == found
            logits[orientation, seed] = streamed(cut)
    assert digests["pca", 0] == digests["pca", 1]
    assert digests["random", 0] != digests["random", 1]
    # what is kept is the same, however it is turned
    torch.testing.assert_close(logits["random", 0], logits["pca", 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits["random", 1], logits["pca", 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_keeps_the_dtype_it_was_stored_in(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    model = saved(tmp_path / "model", family, dtype=dtype)
    for compute in (torch.float32, dtype):
        _, cut = sliced(model, tmp_path / str(compute), dtype=compute)
        found = {t.dtype for i in range(3) for t in cut.raw_block(i).values()}
        assert found | {cut.raw_outer(n).dtype for n in cut.family.outer_tensors(cut.shape)} == {dtype}
        dense = streamed(CheckpointSource(model, dtype=torch.float32))
        _, full = sliced(model, tmp_path / f"{compute}full", "slice0%", dtype=compute)
        full = CheckpointSource(model, dtype=torch.float32, overlay=tmp_path / f"{compute}full" / "blocks")
        assert float((streamed(full) - dense).abs().mean()) < (0.02 if dtype == torch.float16 else 0.15)


def test_padding_reaches_the_base_family(tmp_path: Path) -> None:
    """Left padding shifts positions and masks keys in sliced models as in dense ones."""
    tokens = torch.randint(3, 101, (2, 10), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.ones(2, 4, dtype=torch.long), tokens], 1)
    mask = (torch.arange(14) >= 4).long().expand(2, 14)
    for family in FAMILIES:
        model = saved(tmp_path / family, family)
        _, cut = sliced(model, tmp_path / f"{family}-out")
        plain, shifted = streamed(cut, tokens), streamed(cut, padded, mask)[:, 4:]
        torch.testing.assert_close(shifted, plain, rtol=0, atol=2e-4)


def test_non_finite_weights_are_named(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    tensors = load_file(model / "model.safetensors")
    broken = {
        **tensors,
        "model.decoder.layers.1.fc2.weight": tensors["model.decoder.layers.1.fc2.weight"].clone(),
    }
    broken["model.decoder.layers.1.fc2.weight"][3, 4] = float("nan")
    save_file(broken, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"block 1 fc2\.weight: the checkpoint holds NaN"):
        sliced(model, tmp_path)
    broken = {
        **tensors,
        "model.decoder.embed_tokens.weight": tensors["model.decoder.embed_tokens.weight"] * float("inf"),
    }
    save_file(broken, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match="the embeddings: the residual stream holds NaN or infinity"):
        sliced(model, tmp_path / "other")


def test_weights_that_do_not_fit_their_dtype_are_named(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama", dtype=torch.float16)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"].fill_(60000.0)
    tensors["model.layers.0.self_attn.q_proj.weight"].fill_(100.0)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"block 0 self_attn\.q_proj: a rotated weight is NaN or beyond"):
        sliced(model, tmp_path)


def test_a_model_that_grows_says_so(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "bloom")
    report, cut = sliced(model, tmp_path / "light", "slice0%")
    dense = sizes.parameters(CheckpointSource(model).shape)
    (warning,) = report.warnings
    assert warning == (
        f"slicing made the model larger: {sizes.parameters(cut.shape):,} parameters (2,424 in the head, which had been "
        f"the token table) against {dense:,} dense; slicegpt.slice_head=true slices the head too"
    )
    report, _ = sliced(model, tmp_path / "deep", "slice60%", slice_head=True)
    assert report.warnings == ()


def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path) -> None:
    source = CheckpointSource(saved(tmp_path / "model", "opt"))
    sink, pruner = BlockFolder(tmp_path / "blocks"), get("slicegpt", {})
    with pytest.raises(UnsupportedTarget, match="slicegpt narrows matrices and cannot reach 50%"):
        pruner.prune(source, calibration(), Target.parse("50%"), sink, Run())
    none = Calibration(calibration().tokens[:0], calibration().heldout)
    for windows in (None, none):
        with pytest.raises(UserError, match="slicegpt needs calibration windows"):
            pruner.prune(source, windows, Target.parse("slice25%"), sink, Run())
    with pytest.raises(UserError, match=r"slicegpt\.orientation is 'up'; it must be one of pca, random"):
        get("slicegpt", {"orientation": "up"})


def test_without_heldout_text_there_are_no_errors(tmp_path: Path) -> None:
    source = CheckpointSource(saved(tmp_path / "model", "opt"))
    windows = Calibration(calibration().tokens, calibration().heldout[:0])
    report = get("slicegpt", {}).prune(
        source, windows, Target.parse("slice25%"), BlockFolder(tmp_path / "blocks"), Run()
    )
    assert {matrix.heldout_error for matrix in report.matrices} == {None}


def test_memory_does_not_grow_with_the_blocks(tmp_path: Path) -> None:
    """12 blocks more, of 3 MB each, add less than four of them to the peak; a first run warms the allocator up."""
    widths = {"hidden_size": 256, "ffn_dim": 1024, "word_embed_proj_dim": 256, "num_attention_heads": 8}
    growth = []
    for blocks in (2, 2, 14):
        model = saved(tmp_path / f"{len(growth)}", "opt", num_hidden_layers=blocks, **widths)
        with PeakMemory() as memory:
            sliced(model, tmp_path / f"out{len(growth)}", run={"batch_tokens": 8192})
        growth.append(memory.peak - memory.base)
    block = 4 * sizes.block_parameters(CheckpointSource(model).shape)
    assert growth[2] < growth[1] + 4 * block, growth
