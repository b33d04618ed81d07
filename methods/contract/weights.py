"""The contract's second part: what lies on disk afterwards, counted there."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods import registry
from methods.contract.checks import (
    GuardedSource,
    OnceSink,
    digests,
    final_states,
    is_one_line,
    outcome,
    weights,
    zeros,
)
from methods.contract.models import calibration
from methods.contract.setting import IN_PLACE, Setting
from methods.errors import PruneBenchError
from methods.interface import Calibration, PruneReport
from methods.layerwise.select import round_half_up
from methods.stream.source import CheckpointSource
from methods.target import Target

__all__ = ["WeightContract"]

_SLACK = 0.05


class WeightContract(Setting):
    """Budgets, inputs left alone, stored dtypes, degenerate inputs."""

    def test_budgets_are_exact(self, tmp_path: Path, family: str, counted: str) -> None:
        """As many weights are zero on disk as the target says, in every schedule, and the report says the same."""
        model = self.model(tmp_path, family)
        for schedule in self.schedules:
            report = self.prune(model, tmp_path / schedule, counted, schedule=schedule)
            self.check_counts(model, tmp_path / schedule, report, Target.parse(counted))

    def test_every_target_gives_a_whole_model(self, tmp_path: Path, family: str, target: str) -> None:
        """Every block is put once, is read back, and runs; nothing is NaN; the report covers every matrix in order."""
        model = self.model(tmp_path, family)
        sink = OnceSink(tmp_path / "blocks")
        report = self.prune(model, tmp_path, target, sink=sink)
        dense = CheckpointSource(model)
        assert sorted(sink.taken) == list(range(dense.shape.blocks))
        states = final_states(model, tmp_path, calibration().heldout)
        assert bool(torch.isfinite(states).all())
        matrices = [matrix.name for matrix in dense.family.matrices(dense.shape)]
        expected = [(index, name) for index in range(dense.shape.blocks) for name in matrices]
        assert [(matrix.block, matrix.name) for matrix in report.matrices] == expected
        for matrix in report.matrices:
            assert matrix.heldout_error is not None, f"{matrix.name}: no error on held-out text"
            for error in (matrix.calibration_error, matrix.heldout_error):
                assert error is None or (error >= 0 and math.isfinite(error)), f"{matrix.name}: error {error}"
        assert all(seconds >= 0 for seconds in report.seconds.values())
        assert all(is_one_line(warning) for warning in report.warnings)

    def test_inputs_are_left_alone(self, tmp_path: Path, family: str, target: str) -> None:
        """Stored tensors, the checkpoint's files and the tokens are as they were; so is all that is not pruned."""
        model, tokens = self.model(tmp_path, family), calibration()
        before = digests(model)
        source = GuardedSource(model)
        self.prune(model, tmp_path, target, source=source, tokens=tokens)
        assert source.written() == [], "tensors of raw_block and raw_outer are not to be written to"
        assert digests(model) == before
        assert torch.equal(tokens.tokens, calibration().tokens)
        assert torch.equal(tokens.heldout, calibration().heldout)
        if Target.parse(target).kind in IN_PLACE:
            self.check_only_matrices_change(model, tmp_path)

    def test_no_share_changes_nothing(self, tmp_path: Path, family: str) -> None:
        """A share that rounds to no weight leaves the weights bit for bit."""
        if not self.unchanged_at_zero or "50%" not in self.aims():
            pytest.skip("not promised")
        model = self.model(tmp_path, family)
        report = self.prune(model, tmp_path, "0.001%")
        assert sum(matrix.removed for matrix in report.matrices) == 0
        for (index, name), (dense, pruned) in weights(model, tmp_path).items():
            assert torch.equal(dense, pruned), f"block {index} {name} was changed"

    def test_stored_dtypes_are_kept(self, tmp_path: Path, dtype: str, target: str) -> None:
        """What comes in float16, bfloat16 or float32 leaves in it, with the budget exact in what is stored."""
        stored = getattr(torch, dtype)
        model = self.model(tmp_path, dtype=stored)
        report = self.prune(model, tmp_path, target)
        pruned = CheckpointSource(model, overlay=tmp_path / "blocks")
        for index in range(pruned.shape.blocks):
            for name, tensor in pruned.raw_block(index).items():
                assert tensor.dtype == stored, f"block {index} {name}"
                assert bool(torch.isfinite(tensor).all())
        if Target.parse(target).kind in IN_PLACE:
            self.check_counts(model, tmp_path, report, Target.parse(target))

    def test_dead_inputs(self, tmp_path: Path, family: str, target: str) -> None:
        """Inputs that are always zero, some of a layer's or all of them, neither break it nor change the budget."""
        for name, change in (("some", _some_dead), ("all", _all_dead)):
            out = tmp_path / name
            model = self.model(out, family, change=change)
            self.survives(model, out, target)

    def test_few_tokens(self, tmp_path: Path, target: str) -> None:
        """Fewer calibration tokens than columns: it prunes, or names the reason."""
        model = self.model(tmp_path)
        self.survives(model, tmp_path, target, tokens=calibration(1, length=2))

    def test_equal_weights(self, tmp_path: Path, target: str) -> None:
        """Where every weight is the same, budgets are still exact: ties go by index, not all at once."""

        def level(tensors: dict[str, Tensor]) -> None:
            for tensor in tensors.values():
                tensor.fill_(0.25)

        self.survives(self.model(tmp_path, change=level), tmp_path, target)

    def test_broken_weights_are_named(self, tmp_path: Path) -> None:
        """NaN in a checkpoint is a named error of one line, not a result."""

        def spoil(tensors: dict[str, Tensor]) -> None:
            last = max(name for name, tensor in tensors.items() if tensor.ndim == 2 and ".1." in name)
            tensors[last][2, 3] = math.nan

        model = self.model(tmp_path, change=spoil)
        with pytest.raises(PruneBenchError) as caught:
            self.prune(model, tmp_path, self.aims()[0])
        assert is_one_line(str(caught.value))

    def test_calibration_counts_only_where_it_should(self, tmp_path: Path) -> None:
        """A method that needs no calibration runs without it and is the same on any text."""
        if self.pruner().needs_calibration:
            pytest.skip("the method is calibrated")
        model, whole = self.model(tmp_path), calibration()
        texts = {
            "none": Calibration(whole.tokens[:0], whole.heldout),
            "other": calibration(seed=9),
            "one": whole,
        }
        found = []
        for name, tokens in texts.items():
            self.prune(model, tmp_path / name, self.aims()[0], tokens=tokens)
            found.append(digests(tmp_path / name / "blocks"))
        assert found[0] == found[1] == found[2]

    def survives(self, model: Path, out: Path, target: str, **run: Any) -> None:
        """Pruning ends with exact counts and finite weights, or with a named error of one line."""
        try:
            report = self.prune(model, out, target, **run)
        except PruneBenchError as error:
            assert is_one_line(str(error))
            return
        if Target.parse(target).kind in IN_PLACE:
            self.check_counts(model, out, report, Target.parse(target))
        assert all(bool(torch.isfinite(pruned).all()) for _, pruned in weights(model, out).values())
        assert outcome(report)

    def check_counts(self, model: Path, out: Path, report: PruneReport, target: Target) -> None:
        """Zeros on disk against the report and the target."""
        pairs = weights(model, out)
        reported = {(matrix.block, matrix.name): matrix.removed for matrix in report.matrices}
        assert set(reported) == set(pairs)
        size = sum(dense.numel() for dense, _ in pairs.values())
        narrow = any(dense.dtype != torch.float32 for dense, _ in pairs.values())
        quantised = target.bits is not None
        for place, (dense, pruned) in pairs.items():
            # a kept weight may have been zero, or round to zero in a narrow dtype or on a grid
            found, spare = zeros(pruned), pruned.numel() if narrow or quantised else zeros(dense)
            assert 0 <= found - reported[place] <= spare, (
                f"block {place[0]} {place[1]}: {found} zeros on disk, {reported[place]} reported"
            )
            if target.group and self.spread() == "uniform":
                groups = (pruned.reshape(-1, target.group) == 0).sum(dim=1)
                assert int(groups.min()) >= target.group - target.keep, f"{place}: a group keeps too many"
        removed = sum(reported.values())
        if not self.exact:
            assert abs(removed - target.amount * size) <= _SLACK * size
        elif self.spread() == "uniform":
            for place, (dense, _) in pairs.items():
                asked = round_half_up(target.amount * dense.numel())
                assert reported[place] == asked, f"block {place[0]} {place[1]}: {reported[place]} for {asked}"
        elif target.group:
            largest = max(dense.numel() for dense, _ in pairs.values())
            assert abs(removed - target.amount * size) <= Fraction(largest, target.group)
        else:
            # the share of all weights, or of each matrix, rounded and added up: as many as uniform shares remove
            each = sum(round_half_up(target.amount * dense.numel()) for dense, _ in pairs.values())
            assert removed in (round_half_up(target.amount * size), each), f"{removed} of {size} removed"

    def check_only_matrices_change(self, model: Path, out: Path) -> None:
        """Norms, biases and all outside the blocks are bit for bit as they were."""
        dense, pruned = CheckpointSource(model), CheckpointSource(model, overlay=out / "blocks")
        linears = {f"{matrix.name}.weight" for matrix in dense.family.matrices(dense.shape)}
        assert dict(pruned.config) == dict(dense.config)
        for index in range(dense.shape.blocks):
            before, after = dense.raw_block(index), pruned.raw_block(index)
            assert set(before) == set(after)
            for name in set(before) - linears:
                assert torch.equal(before[name], after[name]), f"block {index} {name} was changed"
        for name in dense.family.outer_tensors(dense.shape):
            assert torch.equal(dense.raw_outer(name), pruned.raw_outer(name)), f"{name} was changed"

    def spread(self) -> str:
        """The allocation's name; ``model`` where a method of its own kind decides by itself."""
        parsed = registry.spelling(self.method)
        if not registry.method(parsed.rule).layerwise:
            return "model"
        return parsed.allocation or "uniform"


def _each(tensors: dict[str, Tensor], words: tuple[str, ...], edit: Callable[[Tensor], object]) -> None:
    for name, tensor in tensors.items():
        if any(word in name for word in words):
            edit(tensor)


_FIRST_OF_FEEDFORWARD = ("fc1", "gate_proj", "dense_h_to_4h")
_BLOCK_NORMS = (
    "attn_layer_norm",
    "input_layernorm",
    "post_attention_layernorm",
    "0.final_layer_norm",
    "1.final_layer_norm",
)


def _some_dead(tensors: dict[str, Tensor]) -> None:
    """Some channels of every norm and some rows of every feed-forward's first matrix are zero."""
    _each(tensors, _BLOCK_NORMS, lambda tensor: tensor.index_fill_(0, torch.tensor([2, 5]), 0.0))
    _each(tensors, _FIRST_OF_FEEDFORWARD, lambda tensor: tensor.index_fill_(0, torch.tensor([1, 3]), 0.0))


def _all_dead(tensors: dict[str, Tensor]) -> None:
    """Every norm's output is zero, so that no linear behind one sees anything."""
    _each(tensors, _BLOCK_NORMS, lambda tensor: tensor.zero_())
