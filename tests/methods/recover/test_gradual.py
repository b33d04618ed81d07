"""The gradual schedule: its targets, its steps, its last stage."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from recovered_models import FAMILIES, linears, prune, weights
from saved_models import saved

from methods.interface import Run
from methods.recover.gradual import stage_targets, steps_of_stages
from methods.recover.masked import places_of
from methods.selection import EVERYTHING
from methods.stream.source import CheckpointSource
from methods.target import Target


def test_the_schedule_is_cubic_and_exact() -> None:
    targets = stage_targets(Target.parse("80%"), 4)
    assert [target.amount for target in targets] == [
        Fraction(4, 5) * Fraction(37, 64),
        Fraction(4, 5) * Fraction(7, 8),
        Fraction(4, 5) * Fraction(63, 64),
        Fraction(4, 5),
    ]
    assert {target.kind for target in targets} == {"unstructured"}
    assert stage_targets(Target.parse("80%"), 1) == (Target.parse("80%"),)


def test_patterns_go_through_patterns_and_sizes_through_sizes() -> None:
    assert list(map(str, stage_targets(Target.parse("2:4"), 2))) == ["3:4", "2:4"]
    assert list(map(str, stage_targets(Target.parse("2:4"), 4))) == ["3:4", "3:4", "3:4", "2:4"]
    assert list(map(str, stage_targets(Target.parse("2:16"), 3))) == ["7:16", "3:16", "2:16"]
    assert str(stage_targets(Target.parse("7:8"), 9)[0]) == "7:8"  # one at least
    assert list(map(str, stage_targets(Target.parse("params-20%"), 2))) == ["params-17.5%", "params-20%"]
    assert list(map(str, stage_targets(Target.parse("bytes-40%"), 2))) == ["bytes-35%", "bytes-40%"]


@pytest.mark.parametrize(
    ("steps", "stages", "shared"), [(12, 4, (3, 3, 3, 3)), (10, 4, (2, 2, 3, 3)), (3, 3, (1, 1, 1))]
)
def test_stages_share_the_steps(steps: int, stages: int, shared: tuple[int, ...]) -> None:
    assert steps_of_stages(steps, stages) == shared


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "target"),
    [("sparsegpt", "90%"), ("magnitude@global", "80%"), ("magnitude", "2:4"), ("magnitude", "params-25%")],
)
def test_the_last_stage_hits_the_target(tmp_path: Path, family: str, method: str, target: str) -> None:
    """As many zeros as the pruner alone gives, where the target says, in the dtype stored."""
    options = {"family": family, "method": method, "target": target, "dtype": torch.float16}
    plain, shot = prune(tmp_path / "shot", **options)
    report, got = prune(tmp_path / "gradual", "3xfull", **options)
    zeros = {name: int((weight == 0).sum()) for name, weight in weights(got).items() if name in linears(got)}
    assert (
        sum(m.removed for m in report.matrices)
        == sum(m.removed for m in plain.matrices)
        == sum(zeros.values())
    )
    if "@" not in method:
        alone = {name: int((weight == 0).sum()) for name, weight in weights(shot).items() if name in zeros}
        assert zeros == alone
    if target == "2:4":
        for name in zeros:
            groups = (weights(got)[name] != 0).reshape(-1, 4).sum(1)
            assert bool((groups == 2).all())
    cost = report.recovery
    assert cost is not None and cost.steps == 24 and len(cost.targets) == 3 == len(cost.loss_after)
    assert cost.targets[-1] == target
    # every stage starts from what the one before was trained to, not from the dense model
    assert cost.loss_after[-1] < cost.loss_before[0]
    final = "model.norm.weight" if family == "llama" else None
    if final:
        assert not torch.equal(weights(got)[final], weights(shot)[final])


def test_later_stages_prune_what_was_trained(tmp_path: Path) -> None:
    """With magnitude, what a stage removed has magnitude 0, so that the next one removes it again, and more."""
    _, got = prune(tmp_path / "two", "2xfull", method="magnitude", target="80%")
    _, shot = prune(tmp_path / "one", method="magnitude", target="80%")
    _, early = prune(tmp_path / "early", method="magnitude", target="70%")  # 80 % x 7/8
    moved = 0
    for name in linears(got):
        gone, alone, first = (weights(source)[name] == 0 for source in (got, shot, early))
        assert bool((gone | ~first).all())
        moved += int((gone != alone).sum())
    assert moved > 0


def test_sensitivities_shared_by_cells_are_the_dense_models(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    prune(
        tmp_path / "mixed",
        "2xlora",
        method="mixed",
        target="60%",
        run={"shared": shared, "model": "rev"},
        steps=2,
    )
    kept = {path: path.stat().st_mtime_ns for path in shared.rglob("*.json")}
    assert len(kept) == 1
    prune(
        tmp_path / "again",
        "2xlora",
        method="mixed",
        target="60%",
        run={"shared": shared, "model": "rev"},
        steps=2,
    )
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*.json")} == kept


def test_a_matrix_that_gets_more_weights_back_than_it_had(tmp_path: Path) -> None:
    """An allocation may take less of a matrix in a later stage: its zeros beyond the budget train again."""
    dense = CheckpointSource(saved(tmp_path / "model", "opt"))
    _, pruned = prune(tmp_path / "pruned", model=dense.folder, target="50%")
    name, weight = "self_attn.q_proj", pruned.raw_block(0)["self_attn.q_proj.weight"]
    budgets = {(index, matrix.name): matrix.size // 2 for index, matrix in Run().selected(pruned)}
    budgets[0, name] -= 7
    places = places_of(pruned, dense, EVERYTHING, budgets)
    full = f"model.decoder.layers.0.{name}.weight"
    freed = places.matrices[full] & (weight == 0)  # type: ignore[operator]
    assert int(freed.sum()) == 7
    original = dense.raw_block(0)[f"{name}.weight"].abs()
    assert original[freed].min() >= original[(weight == 0) & ~freed].max()
    plain = places_of(pruned, dense, EVERYTHING)
    assert all(torch.equal(places.matrices[key], mask) for key, mask in plain.matrices.items() if key != full)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["sparsegpt@owl", "mixed"])
def test_budgets_that_change_between_stages_are_kept(tmp_path: Path, method: str) -> None:
    report, got = prune(tmp_path, "3xfull", method=method, target="70%", steps=30)
    zeros = sum(int((weights(got)[name] == 0).sum()) for name in linears(got))
    assert zeros == sum(m.removed for m in report.matrices)
    assert zeros == pytest.approx(
        0.7 * sum(m.rows * m.columns for m in report.matrices), abs=18
    )  # a matrix each


def test_patterns_are_freed_group_by_group(tmp_path: Path) -> None:
    dense = CheckpointSource(saved(tmp_path / "model", "opt"))
    _, pruned = prune(tmp_path / "pruned", model=dense.folder, target="1:4")
    budgets = {(index, matrix.name): matrix.size // 2 for index, matrix in Run().selected(pruned)}
    places = places_of(pruned, dense, EVERYTHING, budgets, 4)
    _, wanted = prune(tmp_path / "wanted", model=dense.folder, target="2:4")
    for name, mask in places.matrices.items():
        assert mask is not None and torch.equal(mask, weights(wanted)[name] != 0), name
