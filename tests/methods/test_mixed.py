"""Mixed sparsity on small models: budgets, reuse of sensitivities, refusals."""

from __future__ import annotations

import dataclasses
import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import saved

from methods.allocate import mixed
from methods.allocate.global_ import Global
from methods.allocate.mixed import Mixed
from methods.allocate.uniform import Uniform
from methods.errors import UserError
from methods.interface import Calibration, Matrix, PruneReport, Run, Silent
from methods.layerwise.magnitude import Magnitude
from methods.layerwise.pruner import LayerwisePruner
from methods.layerwise.rule import Budget, Rule
from methods.layerwise.sparsegpt import SparseGPT
from methods.registry import get
from methods.sensitivity.estimate import Sensitivity
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

FAMILIES = ("opt", "bloom", "llama")
FEW = {"probes": 2, "windows": 2}


def calibration(seed: int = 5) -> Calibration:
    tokens = torch.randint(3, 101, (8, 16), generator=torch.Generator().manual_seed(seed))
    return Calibration(tokens[:6], tokens[6:])


def prune(
    folder: Path, out: Path, rule: Rule, allocation: Any, target: str, /, **run: Any
) -> tuple[PruneReport, dict[str, str], list[str]]:
    """The report, the digest of every block, and what was warned of."""
    observer = Silent()
    blocks = BlockFolder(out / "blocks")
    pruner = LayerwisePruner(rule, allocation)
    settings = Run(work=out / "work", observer=observer, **run)
    report = pruner.prune(CheckpointSource(folder), calibration(), Target.parse(target), blocks, settings)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in blocks.folder.iterdir()}
    return report, digests, observer.warnings


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.mark.parametrize("target", ["37%", "4:8"])
@pytest.mark.parametrize("level", ["matrix", "layer"])
def test_equal_shares_give_the_base_method_bit_for_bit(
    model: Path, tmp_path: Path, target: str, level: str
) -> None:
    for number, rule in enumerate((SparseGPT(), SparseGPT(saliency="isc"), Magnitude())):
        out = tmp_path / str(number)
        _, base, _ = prune(model, out / "base", rule, Uniform(), target)
        equal = Mixed(alpha=0.0, level=level, **FEW)
        _, ours, warnings = prune(model, out / "mixed", rule, equal, target)
        assert ours == base
        assert warnings == []


@pytest.mark.parametrize("target", ["37%", "85%"])
@pytest.mark.parametrize("level", ["matrix", "layer"])
def test_as_many_weights_go_as_under_uniform_shares(
    model: Path, tmp_path: Path, target: str, level: str
) -> None:
    uniform, _, _ = prune(model, tmp_path / "uniform", Magnitude(), Uniform(), target)
    report, _, _ = prune(model, tmp_path / "mixed", Magnitude(), Mixed(level=level, **FEW), target)
    assert sum(m.removed for m in report.matrices) == sum(m.removed for m in uniform.matrices)
    shares = [m.removed / (m.rows * m.columns) for m in report.matrices]
    assert all(m.removed <= 0.95 * m.rows * m.columns + 1 for m in report.matrices)
    assert len({round(share, 2) for share in shares}) > 1
    if level == "layer":
        for block in range(3):
            mine = [s for s, m in zip(shares, report.matrices, strict=True) if m.block == block]
            assert max(mine) - min(mine) < 0.01


def test_the_most_sensitive_keeps_most() -> None:
    felt = [
        Sensitivity(0, "a", 100, (5.0, 7.0)),
        Sensitivity(0, "b", 100, (1.0, 1.0)),
        Sensitivity(1, "a", 100, (9.0, 1.0)),
    ]
    found = Mixed(alpha=0.2).budgets(
        (*felt, Sensitivity(1, "b", 100, (2.0, 2.0))),
        (Matrix("a", 10, 10), Matrix("b", 10, 10)),
        Target.parse("60%"),
        Run(),
    )
    assert found == {
        (0, "b"): Budget(remove=80),
        (1, "b"): Budget(remove=67),
        (1, "a"): Budget(remove=53),
        (0, "a"): Budget(remove=40),
    }


@pytest.mark.parametrize("estimator", ["fisher", "hutchinson", "inputs"])
def test_every_estimator_serves(llama: Path, tmp_path: Path, estimator: str) -> None:
    allocation = Mixed(estimator=estimator, **FEW)
    report, _, _ = prune(llama, tmp_path, SparseGPT(), allocation, "50%")
    assert len({m.removed / (m.rows * m.columns) for m in report.matrices}) > 5


@pytest.mark.parametrize("method", ["wanda@mixed", "ria@mixed", "magnitude@mixed", "mixed+dsnot"])
@pytest.mark.parametrize("target", ["60%", "4:8"])
def test_goes_with_any_layerwise_method(llama: Path, tmp_path: Path, method: str, target: str) -> None:
    pruner = get(method, {"mixed.probes": 1, "mixed.windows": 2, "mixed.alpha": 0.2})
    source, aim = CheckpointSource(llama), Target.parse(target)
    assert pruner.refuse(source.shape, aim) is None
    report = pruner.prune(source, calibration(), aim, BlockFolder(tmp_path / "blocks"), Run())
    sizes = [m.rows * m.columns for m in report.matrices]
    removed = sum(m.removed for m in report.matrices)
    assert abs(removed - aim.amount * sum(sizes)) <= (max(sizes) / 16 if ":" in target else len(sizes) / 2)
    assert len({m.removed / size for m, size in zip(report.matrices, sizes, strict=True)}) > 2


def test_every_matrix_gets_an_n_of_its_own(llama: Path, tmp_path: Path) -> None:
    report, _, warnings = prune(llama, tmp_path, SparseGPT(), Mixed(alpha=0.2, **FEW), "4:8")
    pruned = CheckpointSource(llama, overlay=tmp_path / "blocks")
    patterns = set()
    for matrix in report.matrices:
        weight = pruned.raw_block(matrix.block)[f"{matrix.name}.weight"]
        zeros = (weight == 0).view(matrix.rows, -1, 8).sum(-1)
        assert int(zeros.min()) == int(zeros.max())
        patterns.add(int(zeros[0, 0]))
    assert {3, 4, 5} <= patterns
    total = sum(m.rows * m.columns for m in report.matrices)
    removed = sum(m.removed for m in report.matrices)
    largest = max(m.rows * m.columns for m in report.matrices) / 8
    assert abs(removed - total / 2) <= largest / 2
    if removed * 2 != total:
        share = f"{removed / total - 0.5:+.4%}"
        said = f"@mixed: {removed} of {total} weights go, {share} beside 4:8's share"
        assert warnings == [f"{said}, the nearest that n:8 reaches in this order"]


def test_the_gap_of_a_pattern_is_told() -> None:
    observer = Silent()
    felt = (Sensitivity(0, "a", 64, (1.0,)), Sensitivity(0, "b", 320, (2.0,)))
    matrices = (Matrix("a", 8, 8), Matrix("b", 8, 40))
    found = Mixed(alpha=0.3).budgets(felt, matrices, Target.parse("4:8"), Run(observer=observer))
    assert found == {(0, "a"): Budget(keep=1, group=8), (0, "b"): Budget(keep=5, group=8)}
    said = "@mixed: 176 of 384 weights go, -4.1667% beside 4:8's share"
    assert observer.warnings == [f"{said}, the nearest that n:8 reaches in this order"]


def test_the_paper_to_the_letter_averages_over_matrices_not_weights(llama: Path, tmp_path: Path) -> None:
    report, _, warnings = prune(llama, tmp_path, Magnitude(), Mixed(paper_literal=True, **FEW), "70%")
    shares = [m.removed / (m.rows * m.columns) for m in report.matrices]
    assert sum(shares) / len(shares) == pytest.approx(0.7, abs=1e-3)
    assert sorted(shares) == pytest.approx([0.6 + 0.2 * i / 20 for i in range(21)], abs=2e-3)
    removed = sum(m.removed for m in report.matrices) / sum(m.rows * m.columns for m in report.matrices)
    said = f"@mixed with paper_literal: {removed:.2%} of the weights go, not 70%"
    assert warnings == [f"{said}, since shares are averaged without regard to sizes"]


@pytest.mark.parametrize(
    ("allocation", "target", "reason"),
    [
        (
            Mixed(),
            "2:4",
            "2:4 with mixed.alpha=0.1 moves no matrix away from 2:4; use --set mixed.alpha=0.125",
        ),
        (Mixed(alpha=0.05), "4:8", "use --set mixed.alpha=0.0625 or more, or a wider pattern such as 4:8"),
        (Mixed(), "96%", "@mixed leaves every matrix 5% of its weights and cannot reach 96%"),
        (Mixed(), "3:7", "3:7 needs widths divisible by 7"),
        (Mixed(file="/no/such"), "50%", "mixed.file '/no/such' does not exist; give a file of sensitivities"),
    ],
)
def test_refusals(llama: Path, allocation: Mixed, target: str, reason: str) -> None:
    pruner = LayerwisePruner(SparseGPT(), allocation)
    said = pruner.refuse(CheckpointSource(llama).shape, Target.parse(target))
    assert said is not None and reason in said


@pytest.mark.parametrize(
    ("alpha", "target"), [(0.1, "4:8"), (0.125, "2:4"), (0.0, "2:4"), (0.1, "95%"), (0.1, "50%")]
)
def test_what_is_not_refused(llama: Path, alpha: float, target: str) -> None:
    pruner = LayerwisePruner(SparseGPT(), Mixed(alpha=alpha))
    assert pruner.refuse(CheckpointSource(llama).shape, Target.parse(target)) is None


def test_other_allocations_leave_patterns_alone(llama: Path) -> None:
    pruner = LayerwisePruner(Magnitude(), Global())
    said = pruner.refuse(CheckpointSource(llama).shape, Target.parse("2:4"))
    assert said == "2:4 fixes the share of every matrix, which leaves nothing to @global"


def test_cells_of_a_run_share_sensitivities_and_their_cost(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = mixed.estimate

    def counted(*given: Any) -> tuple[Sensitivity, ...]:
        calls.append(given[2])
        return original(*given)

    monkeypatch.setattr(mixed, "estimate", counted)
    shared = {"shared": tmp_path, "model": "rev-1"}
    allocation = Mixed(**FEW)
    first, _, _ = prune(llama, tmp_path / "a", SparseGPT(), allocation, "50%", **shared)
    assert calls == ["fisher"]
    (file,) = (tmp_path / "sensitivities").iterdir()
    again, same, _ = prune(llama, tmp_path / "b", SparseGPT(), allocation, "50%", **shared)
    prune(llama, tmp_path / "c", Magnitude(), Mixed(alpha=0.2, level="layer", **FEW), "70%", **shared)
    assert calls == ["fisher"], "other targets, rules, alphas and levels share them"
    seconds = mixed.load(file, CheckpointSource(llama)).seconds
    assert again.seconds["allocate"] >= seconds > 0
    assert first.seconds["allocate"] >= seconds
    prune(llama, tmp_path / "d", SparseGPT(), allocation, "50%", **{**shared, "seed": 1})
    prune(llama, tmp_path / "e", SparseGPT(), dataclasses.replace(allocation, probes=3), "50%", **shared)
    prune(llama, tmp_path / "f", SparseGPT(), allocation, "50%", **{**shared, "model": "rev-2"})
    assert len(calls) == 4, "another seed, number of probes or model does not"
    file.write_text("{")
    _, mended, _ = prune(llama, tmp_path / "g", SparseGPT(), allocation, "50%", **shared)
    assert len(calls) == 5 and mended == same, "a damaged file is written over"


def test_nothing_is_shared_without_a_name_for_the_model(llama: Path, tmp_path: Path) -> None:
    prune(llama, tmp_path / "a", Magnitude(), Mixed(**FEW), "50%", shared=tmp_path)
    assert not (tmp_path / "sensitivities").exists()


def test_a_file_is_reused_and_another_texts_is_refused(llama: Path, tmp_path: Path) -> None:
    allocation = Mixed(**FEW)
    _, ours, _ = prune(llama, tmp_path / "a", SparseGPT(), allocation, "50%", shared=tmp_path, model="rev-1")
    (file,) = (tmp_path / "sensitivities").iterdir()
    for number, place in enumerate((file, file.parent)):
        given = dataclasses.replace(allocation, file=str(place))
        _, same, warnings = prune(llama, tmp_path / f"b{number}", SparseGPT(), given, "50%", model="rev-1")
        assert same == ours
        assert len(warnings) == 1 and "which the time to prune leaves out" in warnings[0]
    with pytest.raises(UserError, match=r"seed 0 \(here 4\)"):
        prune(
            llama,
            tmp_path / "c",
            SparseGPT(),
            dataclasses.replace(allocation, file=str(file)),
            "50%",
            seed=4,
            model="rev-1",
        )


def test_needs_calibration_text_whatever_the_rule(llama: Path) -> None:
    pruner = LayerwisePruner(Magnitude(), Mixed())
    assert pruner.needs_calibration
    text = calibration()
    with pytest.raises(UserError, match="@mixed needs calibration windows"):
        Mixed()(
            CheckpointSource(llama), Calibration(text.tokens[:0], text.heldout), Target.parse("50%"), Run()
        )


def test_amounts_are_those_of_the_target_not_of_floats() -> None:
    """0.1 as a float is not a tenth: α is read as it is written."""
    felt = tuple(Sensitivity(index, "a", 10**6, (float(index),)) for index in range(3))
    found = Mixed(alpha=0.1).budgets(felt, (Matrix("a", 1000, 1000),), Target.parse("50%"), Run())
    assert [found[index, "a"].remove for index in range(3)] == [600_000, 500_000, 400_000]
    assert Fraction(str(0.1)) == Fraction(1, 10)
