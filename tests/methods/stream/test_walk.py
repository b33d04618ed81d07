"""The walk: schedules, budgets of memory, dtypes, resume; on all three families."""

from __future__ import annotations

import hashlib
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import saved

from methods.errors import NonFiniteError, UserError
from methods.interface import Block, Calibration, PruneReport, Run
from methods.moments import Moments
from methods.registry import get
from methods.stream.errors import OutputErrors
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

_FAMILIES = ("opt", "bloom", "llama")


def _calibration(windows: int = 9, length: int = 16, heldout: int = 3) -> Calibration:
    tokens = torch.randint(3, 101, (windows + heldout, length), generator=torch.Generator().manual_seed(5))
    return Calibration(tokens[:windows], tokens[windows:])


def _digest(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("block-*"))
    }


def _prune(model: Path, out: Path, method: str = "sparsegpt", target: str = "50%", **run: Any) -> PruneReport:
    dtype = run.pop("dtype", torch.float32)
    source = CheckpointSource(model, dtype=dtype)
    settings: dict[str, Any] = {"batch_tokens": 48, "work": out / "work", "identity": "same", **run}
    return get(method, {}).prune(
        source, _calibration(), Target.parse(target), BlockFolder(out / "blocks"), Run(**settings)
    )


@pytest.mark.parametrize("family", _FAMILIES)
@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
@pytest.mark.parametrize("target", ["50%", "2:4", "37%"])
def test_exact_budget_in_every_matrix(tmp_path: Path, family: str, schedule: str, target: str) -> None:
    model = saved(tmp_path / "model", family)
    report = _prune(model, tmp_path, target=target, schedule=schedule)
    pruned = CheckpointSource(model, overlay=tmp_path / "blocks")
    for matrix in report.matrices:
        weight = pruned.raw_block(matrix.block)[f"{matrix.name}.weight"]
        assert int((weight == 0).sum()) == matrix.removed
        share = Target.parse(target).amount * matrix.rows * matrix.columns
        assert abs(matrix.removed - share) <= 0.5
        assert matrix.heldout_error is not None and 0 < matrix.heldout_error < 1
        assert matrix.calibration_error is not None and 0 < matrix.calibration_error < 1
    assert len(report.matrices) == 3 * len(pruned.family.matrices(pruned.shape))


@pytest.mark.parametrize("family", _FAMILIES)
@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
def test_memory_for_states_never_changes_a_bit(tmp_path: Path, family: str, schedule: str) -> None:
    """All in memory, wide states computed again, and everything on disk: the same weights."""
    model = saved(tmp_path / "model", family)
    hidden = 12 * 16 * 24 * 4
    digests = []
    for budget in (1 << 30, hidden, 0):
        out = tmp_path / str(budget)
        _prune(model, out, schedule=schedule, hidden_budget=budget)
        digests.append(_digest(out / "blocks"))
    assert len(digests[0]) == 3
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
def test_hessians_are_gone_before_held_out_errors_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    made: list[weakref.ref[Moments]] = []

    class Watched(Moments):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(weakref.ref(self))

    class Errors(OutputErrors):
        def __init__(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
            assert made and not [moments for moments in made if moments() is not None]
            super().__init__(pairs)

    monkeypatch.setattr("methods.stream.walk.Moments", Watched)
    monkeypatch.setattr("methods.stream.walk.OutputErrors", Errors)
    _prune(saved(tmp_path / "model", "opt"), tmp_path, schedule=schedule)
    assert len(made) == 3 * 4


def test_first_stage_is_the_same_in_both_schedules_and_later_ones_are_not(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    for schedule in ("sequential", "blockwise"):
        _prune(model, tmp_path / schedule, schedule=schedule)
    first, second = (
        CheckpointSource(model, overlay=tmp_path / schedule / "blocks").raw_block(0)
        for schedule in ("sequential", "blockwise")
    )
    for name in ("q_proj", "k_proj", "v_proj"):
        assert torch.equal(first[f"self_attn.{name}.weight"], second[f"self_attn.{name}.weight"])
    assert not torch.equal(first["self_attn.out_proj.weight"], second["self_attn.out_proj.weight"])


class _Killed(Exception):
    pass


class _DyingSink(BlockFolder):
    """Dies after so many blocks, as a kill would: before or after the block reaches the disk."""

    def __init__(self, folder: Path, survive: int, *, written: bool) -> None:
        super().__init__(folder)
        self.survive, self.written = survive, written

    def put(self, index: int, block: Block) -> None:
        if index == self.survive:
            if self.written:
                super().put(index, block)
            raise _Killed
        super().put(index, block)


@pytest.mark.parametrize("family", _FAMILIES)
@pytest.mark.parametrize(("survive", "written"), [(0, False), (1, False), (1, True), (2, True)])
@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
def test_resumed_prune_is_bit_identical(
    tmp_path: Path, family: str, survive: int, written: bool, schedule: str
) -> None:
    model = saved(tmp_path / "model", family)
    whole = _prune(model, tmp_path / "whole", schedule=schedule)
    run = Run(batch_tokens=48, work=tmp_path / "work", identity="same", schedule=schedule)
    pruner, target = get("sparsegpt", {}), Target.parse("50%")
    sink = _DyingSink(tmp_path / "blocks", survive, written=written)
    with pytest.raises(_Killed):
        pruner.prune(CheckpointSource(model), _calibration(), target, sink, run)
    report = pruner.prune(
        CheckpointSource(model), _calibration(), target, BlockFolder(tmp_path / "blocks"), run
    )
    assert report.resumed_blocks == survive
    assert _digest(tmp_path / "blocks") == _digest(tmp_path / "whole" / "blocks")
    assert [(m.block, m.name, m.removed, m.heldout_error) for m in report.matrices] == [
        (m.block, m.name, m.removed, m.heldout_error) for m in whole.matrices
    ]


def test_a_finished_prune_is_not_done_again(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    first = _prune(model, tmp_path)
    second = _prune(model, tmp_path)
    assert second.resumed_blocks == 3
    assert second.matrices == first.matrices


def test_a_resume_point_of_another_cell_or_torn_is_not_used(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    _prune(model, tmp_path)
    assert _prune(model, tmp_path, identity="another").resumed_blocks == 0
    state = tmp_path / "work" / "state.json"
    state.write_text(state.read_text()[:-20])
    assert _prune(model, tmp_path, identity="another").resumed_blocks == 0


def test_a_narrow_compute_dtype_does_not_round_what_is_stored(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    _prune(model, tmp_path, method="magnitude", dtype=torch.bfloat16)
    dense, pruned = CheckpointSource(model), CheckpointSource(model, overlay=tmp_path / "blocks")
    for name, tensor in dense.raw_block(1).items():
        kept = pruned.raw_block(1)[name]
        assert kept.dtype == torch.float32
        assert torch.equal(kept, torch.where(kept == 0, kept, tensor))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", _FAMILIES)
def test_stored_dtype_is_kept_and_rounding_seen_by_later_layers(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    model = saved(tmp_path / "model", family, dtype=dtype)
    for compute in (torch.float32, dtype):
        report = _prune(model, tmp_path / str(compute), dtype=compute)
        source = CheckpointSource(model, overlay=tmp_path / str(compute) / "blocks")
        assert {tensor.dtype for tensor in source.raw_block(1).values()} == {dtype}
        for matrix in report.matrices:
            assert int((source.raw_block(matrix.block)[f"{matrix.name}.weight"] == 0).sum()) >= matrix.removed


def test_norms_and_biases_stay(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "bloom")
    _prune(model, tmp_path, method="magnitude")
    dense, pruned = CheckpointSource(model), CheckpointSource(model, overlay=tmp_path / "blocks")
    prunable = {f"{matrix.name}.weight" for matrix in dense.family.matrices(dense.shape)}
    for index in range(3):
        for name, tensor in dense.raw_block(index).items():
            assert torch.equal(pruned.raw_block(index)[name], tensor) == (name not in prunable)


def test_global_magnitude_has_one_threshold_over_all_matrices(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    report = _prune(model, tmp_path, method="magnitude@global", target="30%")
    dense, pruned = CheckpointSource(model), CheckpointSource(model, overlay=tmp_path / "blocks")
    removed, kept = [], []
    for index in range(3):
        for matrix in dense.family.matrices(dense.shape):
            weight = dense.raw_block(index)[f"{matrix.name}.weight"].abs()
            gone = pruned.raw_block(index)[f"{matrix.name}.weight"] == 0
            removed.append(weight[gone])
            kept.append(weight[~gone])
    total = sum(m.rows * m.columns for m in report.matrices)
    assert sum(m.removed for m in report.matrices) == len(torch.cat(removed)) == int(0.3 * total + 0.5)
    assert torch.cat(removed).max() <= torch.cat(kept).min()
    assert len({m.removed / (m.rows * m.columns) for m in report.matrices}) > 1


def test_global_magnitude_looks_at_stored_weights_whatever_the_compute_dtype(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt", dtype=torch.float16)
    for dtype in (torch.float32, torch.bfloat16):
        _prune(model, tmp_path / str(dtype), method="magnitude@global", dtype=dtype)
    assert _digest(tmp_path / "torch.float32" / "blocks") == _digest(tmp_path / "torch.bfloat16" / "blocks")


def test_global_magnitude_counts_ties_once(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    from safetensors.torch import load_file, save_file

    tensors = {
        name: torch.full_like(tensor, 0.5) for name, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    report = _prune(model, tmp_path, method="magnitude@global", target="25%")
    total = sum(m.rows * m.columns for m in report.matrices)
    assert sum(m.removed for m in report.matrices) == total // 4
    shares = [m.removed / (m.rows * m.columns) for m in report.matrices]
    assert sorted(shares, reverse=True) == shares, "ties go by block, matrix, index"


def test_non_finite_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = saved(tmp_path / "model", "opt")
    tensors = load_file(model / "model.safetensors")
    tensors["model.decoder.layers.1.fc2.weight"][3, 4] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    for method in ("magnitude", "sparsegpt", "magnitude@global"):
        with pytest.raises(NonFiniteError, match=r"block 1 fc2.*NaN or infinity"):
            _prune(model, tmp_path / method, method=method)


def test_unknown_schedule_is_one_line(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    with pytest.raises(UserError, match="schedule 'random' is unknown; use sequential or blockwise"):
        _prune(model, tmp_path, schedule="random")


def test_refusals_name_matrix_and_width(tmp_path: Path) -> None:
    source = CheckpointSource(saved(tmp_path / "model", "opt"))
    pruner = get("sparsegpt", {})
    assert pruner.refuse(source.shape, Target.parse("2:4")) is None
    reason = pruner.refuse(source.shape, Target.parse("5:16"))
    assert reason == "5:16 needs widths divisible by 16; self_attn.q_proj has 24 input columns"
    assert "slice25%" in str(pruner.refuse(source.shape, Target.parse("slice25%")))
    assert "@global" in str(get("magnitude@global", {}).refuse(source.shape, Target.parse("2:4")))
    assert "+4bit" in str(get("magnitude", {}).refuse(source.shape, Target.parse("50%+4bit")))
