"""OWL: outlier ratios, shares, exact budgets."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from tiny_models import tiny

from methods import registry
from methods.allocate.owl import OWL, outlier_ratio, owl_shares
from methods.errors import UserError
from methods.interface import Calibration, Run
from methods.layerwise.rule import Statistic
from methods.stream.dense import dense_moments
from methods.target import Target

F = Fraction


def _tokens(windows: int = 6) -> torch.Tensor:
    return torch.randint(3, 101, (windows, 16), generator=torch.Generator().manual_seed(2))


def test_shares_are_the_papers_line() -> None:
    """density = (1 - p) + 2λ (scaled - mean scaled), as published, in exact numbers."""
    ratios = [0.5, 2.5, 1.0]
    shares = owl_shares(ratios, F(7, 10), F(8, 100))
    scaled = [F(0), F(1), F(1, 4)]
    mean = sum(scaled) / 3
    assert [1 - share for share in shares] == [F(3, 10) + F(16, 100) * (ratio - mean) for ratio in scaled]
    assert sum(shares) / 3 == F(7, 10)
    assert owl_shares([0.2, 0.2], F(1, 2), F(8, 100)) == [F(1, 2)] * 2
    assert owl_shares(ratios, F(1, 2), F(0)) == [F(1, 2)] * 3


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_ratios_count_outliers_of_the_whole_block(family: str) -> None:
    _, source = tiny(family)
    for block in dense_moments(source, _tokens(), Statistic.NORMS, Run()):
        scores = torch.cat(
            [(weight.abs().double() * moments.norms).flatten() for _, weight, moments in block.matrices()]
        )
        for multiple in (1.5, 3.0):
            expected = float((scores > multiple * scores.mean()).double().mean())
            assert outlier_ratio(block, multiple) == pytest.approx(expected, abs=1e-4) and expected > 0


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
@pytest.mark.parametrize("target", ["30%", "70%", "93.7%"])
def test_budgets_add_up_to_the_last_weight(family: str, target: str) -> None:
    _, source = tiny(family)
    matrices = {matrix.name: matrix for matrix in source.family.matrices(source.shape)}
    aim = Target.parse(target)
    budgets = OWL(multiple=2.0)(source, Calibration(_tokens(), _tokens(1)), aim, Run())
    uniform = registry.get("magnitude", {}).allocation(source, None, aim, Run())  # type: ignore[attr-defined]
    assert sum(b.remove for b in budgets.values()) == sum(b.remove for b in uniform.values())
    shares = {key: budget.remove / matrices[key[1]].size for key, budget in budgets.items()}
    for block in range(3):
        inside = [share for (index, _), share in shares.items() if index == block]
        assert max(inside) - min(inside) < 0.01, "the matrices of a block lose one share"
    assert max(shares.values()) - min(shares.values()) > 0.01
    assert max(shares.values()) <= 0.96


def test_blocks_with_more_outliers_keep_more() -> None:
    model, source = tiny("llama")
    weight = model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    weight[::5, ::5] *= 30
    budgets = OWL()(source, Calibration(_tokens(), _tokens(1)), Target.parse("60%"), Run())
    lost = [sum(b.remove for (index, _), b in budgets.items() if index == block) for block in range(3)]
    assert lost[1] == min(lost) and lost[1] < lost[0]


def test_no_spread_is_uniform() -> None:
    _, source = tiny("opt")
    aim = Target.parse("50%")
    budgets = OWL(lambda_=0.0)(source, Calibration(_tokens(), _tokens(1)), aim, Run())
    uniform = registry.get("magnitude", {}).allocation(source, None, aim, Run())  # type: ignore[attr-defined]
    assert budgets == uniform


def test_refusals() -> None:
    _, source = tiny("opt")
    pruner = registry.get("wanda@owl", {"owl.lambda": 0.05})
    assert pruner.allocation == OWL(lambda_=0.05)  # type: ignore[attr-defined]
    assert "leaves nothing to @owl" in str(pruner.refuse(source.shape, Target.parse("2:4")))
    assert (
        pruner.refuse(source.shape, Target.parse("96%"))
        == "@owl leaves every matrix 5% of its weights and cannot reach 96%"
    )
    assert pruner.refuse(source.shape, Target.parse("70%")) is None
    assert registry.get("magnitude@owl", {}).needs_calibration
    for calibration in (None, Calibration(_tokens(1)[:0], _tokens(1))):
        with pytest.raises(UserError, match="needs calibration windows"):
            OWL()(source, calibration, Target.parse("50%"), Run())
