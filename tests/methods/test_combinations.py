"""Rules, allocations and refinements put together, through the whole walk, on all three families."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from tiny_models import tiny

from methods import registry
from methods.interface import Block, Calibration, Observer, PruneReport, Run, Silent
from methods.stream.sink import BlockFolder
from methods.target import Target

_METHODS = ("wanda", "ria", "alps", "wanda+dsnot", "sparsegpt+dsnot", "magnitude@owl", "alps@owl+dsnot")


def _prune(method: str, family: str, out: Path, target: str = "50%", **run: object) -> PruneReport:
    _, source = tiny(family)
    tokens = torch.randint(3, 101, (9, 16), generator=torch.Generator().manual_seed(5))
    return registry.get(method, {}).prune(
        source,
        Calibration(tokens[:7], tokens[7:]),
        Target.parse(target),
        BlockFolder(out / "blocks"),
        Run(batch_tokens=48, **run),  # type: ignore[arg-type]
    )


def _digest(out: Path) -> list[str]:
    return [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / "blocks").glob("block-*"))
    ]


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
@pytest.mark.parametrize("method", _METHODS)
def test_the_budget_is_met_and_the_report_is_whole(tmp_path: Path, family: str, method: str) -> None:
    report = _prune(method, family, tmp_path)
    assert sum(m.removed for m in report.matrices) * 2 == sum(m.rows * m.columns for m in report.matrices)
    for matrix in report.matrices:
        assert matrix.heldout_error is not None and 0 < matrix.heldout_error < 1.5
        gram = "alps" in method or "sparsegpt" in method
        assert (matrix.calibration_error is not None) == gram
        assert matrix.damping == (0.01 if gram else None)
    assert report.seconds["allocate"] >= 0 and len(_digest(tmp_path)) == 3


@pytest.mark.parametrize("method", ["wanda", "ria", "alps", "wanda+dsnot", "alps+dsnot", "sparsegpt+dsnot"])
@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
def test_patterns_hold_in_every_group(tmp_path: Path, method: str, schedule: str) -> None:
    from safetensors.torch import load_file

    _prune(method, "llama", tmp_path, "2:4", schedule=schedule)
    for path in (tmp_path / "blocks").glob("block-*"):
        for name, weight in load_file(path).items():
            if weight.ndim == 2:
                assert bool(((weight.view(len(weight), -1, 4) == 0).sum(-1) == 2).all()), name


class _Stop(Silent):
    """An observer that kills the walk after its first block."""

    def step(self, done: int, note: str = "") -> None:
        if done == 2 and note:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["wanda@owl+dsnot", "alps"])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _prune(method, "opt", whole)
    observer: Observer = _Stop()
    with pytest.raises(KeyboardInterrupt):
        _prune(method, "opt", cut, work=cut / "work", identity="same", observer=observer)
    report = _prune(method, "opt", cut, work=cut / "work", identity="same")
    assert report.resumed_blocks == 2
    assert _digest(cut) == _digest(whole)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    for method in ("alps", "wanda+dsnot"):
        _prune(method, "llama", tmp_path / method / "one")
        _prune(method, "llama", tmp_path / method / "two")
        assert _digest(tmp_path / method / "one") == _digest(tmp_path / method / "two")


def test_dead_inputs_are_counted_for_every_rule(tmp_path: Path) -> None:
    """A zero row of the norm's weight and bias makes an input that is always zero."""
    model, source = tiny("opt")
    state = model.state_dict()
    for name in ("weight", "bias"):
        state[f"model.decoder.layers.0.self_attn_layer_norm.{name}"][3] = 0
    tokens = torch.randint(3, 101, (4, 16), generator=torch.Generator().manual_seed(5))
    counted: dict[str, list[int]] = {}
    for method in ("wanda", "alps", "sparsegpt", "magnitude"):
        blocks: Block | BlockFolder = BlockFolder(tmp_path / method)
        report = registry.get(method, {}).prune(
            source,
            Calibration(tokens[:3], tokens[3:]),
            Target.parse("50%"),
            blocks,
            Run(),  # type: ignore[arg-type]
        )
        counted[method] = [matrix.dead_columns for matrix in report.matrices[:4]]
    assert counted["wanda"] == counted["alps"] == counted["sparsegpt"] == [1, 1, 1, 0]
    assert counted["magnitude"] == [0] * 4, "nothing is gathered, so nothing is known"
