"""The level database and the allocation that looks budgets up in it."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from tiny_models import MemorySource, tiny

from methods import registry
from methods.allocate import database, levels
from methods.allocate.database import build, key_of, load, path_of, save
from methods.allocate.levels import Levels, cheapest_counts, convex, grid
from methods.errors import UserError
from methods.interface import Calibration, Run
from methods.layerwise.magnitude import Magnitude
from methods.layerwise.pruner import layerwise
from methods.layerwise.sparsegpt import SparseGPT
from methods.stream.sink import BlockFolder
from methods.target import Target

F = Fraction


def _calibration() -> Calibration:
    tokens = torch.randint(3, 101, (8, 16), generator=torch.Generator().manual_seed(4))
    return Calibration(tokens[:6], tokens[6:])


def test_the_grid_ends_at_95_percent() -> None:
    assert grid(4) == [F(1, 4), F(1, 2), F(3, 4), F(19, 20)]
    assert grid(20) == [F(n, 20) for n in range(1, 20)]
    assert grid(2) == [F(1, 2), F(19, 20)]


def test_the_hull_is_below_the_curve_and_convex() -> None:
    curve = [(0, 0.0), (10, 3.0), (20, 4.0), (30, 9.0), (40, 10.0), (50, 30.0)]
    assert convex(curve) == [(0, 0.0), (20, 4.0), (40, 10.0), (50, 30.0)]
    falling = [(0, 0.0), (10, 2.0), (20, 1.0), (30, 4.0)]
    assert convex(falling) == [(0, 0.0), (20, 1.0), (30, 4.0)]
    straight = [(0, 0.0), (10, 1.0), (20, 2.0)]
    assert convex(straight) == [(0, 0.0), (20, 2.0)]
    assert convex([(0, 0.0), (0, 0.5), (3, 1.0)]) == [(0, 0.0), (3, 1.0)]


def _on_hull(curve: list[tuple[int, float]], count: int) -> float:
    hull = convex(curve)
    for (low, start), (high, stop) in itertools.pairwise(hull):
        if count <= high:
            return start + (stop - start) * (count - low) / (high - low)
    raise AssertionError("beyond the curve")


@pytest.mark.parametrize("seed", range(5))
def test_the_cheapest_steps_are_the_optimum(seed: int) -> None:
    """Against trying every split of the budget over three small matrices."""
    generator = torch.Generator().manual_seed(seed)
    curves = []
    for size in (6, 9, 4):
        rises = torch.rand(size, generator=generator).tolist()
        curves.append([(n, sum(rises[:n])) for n in range(size + 1)])
    for total in (0, 1, 7, 13, 19):
        found = cheapest_counts(curves, total)
        assert sum(found) == total
        cost = sum(_on_hull(curve, count) for curve, count in zip(curves, found, strict=True))
        best = min(
            sum(_on_hull(curve, count) for curve, count in zip(curves, split, strict=True))
            for split in itertools.product(range(7), range(10), range(5))
            if sum(split) == total
        )
        assert cost == pytest.approx(best, abs=1e-12)


def _database(source: MemorySource, rule: Magnitude | SparseGPT, run: Run) -> database.Database:
    tokens = _calibration().tokens
    return build(source, tokens, rule, key_of(source, tokens, rule, [F(1, 4), F(1, 2)], run), run)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_its_errors_are_those_of_the_first_matrices_pruned(tmp_path: Path, family: str) -> None:
    """In the first stage of the first block, dense inputs are the inputs of any run."""
    _, source = tiny(family)
    for rule in (Magnitude(), SparseGPT()):
        held = _database(source, rule, Run())
        assert len(held.errors) == 3 * len(source.family.matrices(source.shape))
        for number, target in enumerate(("25%", "50%")):
            report = layerwise(SparseGPT() if rule.name == "sparsegpt" else _Measured()).prune(
                source,
                _calibration(),
                Target.parse(target),
                BlockFolder(tmp_path / f"{rule.name}{number}"),
                Run(),
            )
            first = report.matrices[0]
            error = held.errors[first.block, first.name][number]
            assert first.calibration_error == pytest.approx(error, rel=1e-3)
        assert all(low < high for low, high in held.errors.values())


class _Measured(Magnitude):
    """Magnitude that has its calibration error measured."""

    def __init__(self) -> None:
        super().__init__()
        from methods.layerwise.rule import Statistic

        object.__setattr__(self, "needs", Statistic.GRAM)


@pytest.mark.parametrize("target", ["30%", "50%", "83.3%", "95%"])
def test_budgets_are_exact_and_cheaper_than_uniform(target: str) -> None:
    _, source = tiny("llama")
    aim = Target.parse(target)
    allocation = Levels(rule="magnitude", steps=20)
    budgets = allocation(source, _calibration(), aim, Run())
    uniform = registry.get("magnitude", {}).allocation(source, None, aim, Run())  # type: ignore[attr-defined]
    assert sum(b.remove for b in budgets.values()) == sum(b.remove for b in uniform.values())
    sizes = {matrix.name: matrix.size for matrix in source.family.matrices(source.shape)}
    assert all(0 <= budget.remove <= 0.96 * sizes[name] for (_, name), budget in budgets.items())
    if target != "95%":
        tokens = _calibration().tokens
        held = build(source, tokens, Magnitude(), key_of(source, tokens, Magnitude(), grid(20), Run()), Run())
        curves = {
            key: [
                (0, 0.0),
                *zip((round(float(level) * sizes[key[1]]) for level in grid(20)), errors, strict=True),
            ]
            for key, errors in held.errors.items()
        }
        ours, theirs = (
            sum(_on_hull(curves[key], budget.remove) for key, budget in found.items())
            for found in (budgets, uniform)
        )
        assert ours < theirs


def test_a_database_is_kept_and_serves_every_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = tiny("opt")
    run = Run(shared=tmp_path, model="abc")
    allocation = Levels(rule="wanda", steps=4)
    first = allocation(source, _calibration(), Target.parse("50%"), run)
    (file,) = tmp_path.glob("levels/wanda-*.json")
    value = json.loads(file.read_text())
    assert value["inputs"] == "dense" and value["key"]["model"] == "abc" and value["key"]["rule"] == "wanda"

    def refuse(*_: object) -> None:
        raise AssertionError("it is there already")

    monkeypatch.setattr(levels, "build", refuse)
    again = allocation(source, _calibration(), Target.parse("50%"), run)
    assert again == first and again.earlier == value["seconds"] and first.earlier == 0  # type: ignore[attr-defined]
    assert allocation(source, _calibration(), Target.parse("70%"), run) != first
    for other in (Levels(rule="ria", steps=4), Levels(rule="wanda", steps=5)):
        with pytest.raises(AssertionError):
            other(source, _calibration(), Target.parse("50%"), run)
    with pytest.raises(AssertionError):
        allocation(source, _calibration(), Target.parse("50%"), Run(shared=tmp_path, model="other"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 9}, "no level database of version 1; remove it"),
        ({"format": "x"}, "no level database"),
        ({"inputs": "pruned"}, "no level database"),
        ({"seconds": -1.0}, "damaged"),
        ({"seconds": "NaN"}, "damaged"),
        ({"matrices": []}, "damaged"),
        ({"matrices": [{"block": 0, "name": "fc1", "errors": [0.1]}]}, "damaged"),
        ({"matrices": [{"block": 0, "name": "fc1", "errors": [0.1, -2.0]}]}, "damaged"),
        ({"matrices": 3}, "damaged"),
        ({"key": {}}, "other work"),
        (None, "damaged"),
    ],
)
def test_damaged_files_are_refused_and_written_over(
    tmp_path: Path, change: dict[str, object] | None, said: str
) -> None:
    _, source = tiny("opt")
    run = Run(shared=tmp_path, model="abc")
    held = _database(source, Magnitude(), run)
    path = path_of(tmp_path, held.key)
    save(path, held)
    assert load(path, held.key, source) == held
    text = path.read_text()
    path.write_text(text[:-40] if change is None else json.dumps({**json.loads(text), **change}))
    with pytest.raises(UserError, match=said):
        load(path, held.key, source)


def test_a_damaged_database_is_computed_again(tmp_path: Path) -> None:
    _, source = tiny("opt")
    run = Run(shared=tmp_path, model="abc")
    first = Levels("magnitude", 4)(source, _calibration(), Target.parse("50%"), run)
    (file,) = tmp_path.glob("levels/*.json")
    whole = json.loads(file.read_text())
    file.write_text("{")
    assert Levels("magnitude", 4)(source, _calibration(), Target.parse("50%"), run) == first
    assert json.loads(file.read_text())["matrices"] == whole["matrices"]


def test_refusals() -> None:
    _, source = tiny("opt")
    pruner = registry.get("alps@levels", {"levels.rule": "wanda"})
    assert pruner.allocation == Levels(rule="wanda")  # type: ignore[attr-defined]
    assert "leaves nothing to @levels" in str(pruner.refuse(source.shape, Target.parse("2:4")))
    assert "@levels leaves every matrix 5% of its weights" in str(
        pruner.refuse(source.shape, Target.parse("96%"))
    )
    with pytest.raises(UserError, match="@levels needs calibration windows"):
        Levels()(source, None, Target.parse("50%"), Run())
    with pytest.raises(UserError, match="method 'nothing' is unknown"):
        registry.rule("nothing")
