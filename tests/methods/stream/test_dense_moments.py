"""Moments of the dense model's inputs, streamed block by block, against those that hooks on the model see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny

from methods.errors import NonFiniteError, UserError
from methods.interface import Run
from methods.moments import Moments, Statistic
from methods.stream.dense import dense_moments

_ALL = Statistic.GRAM | Statistic.NORMS | Statistic.MEANS | Statistic.VARIANCES


def _hooked(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs [tokens, columns] float64 of every linear layer, by full name, from one plain forward pass."""
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=name: seen.setdefault(name, []).append(given[0].detach())
            )
    with torch.no_grad():
        model(tokens)
    return {
        name: torch.cat([x.reshape(-1, x.shape[-1]) for x in parts]).double() for name, parts in seen.items()
    }


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
@pytest.mark.parametrize("budget", [1 << 30, 0])
def test_they_are_the_models_own(tmp_path: Path, family: str, budget: int) -> None:
    model, source = tiny(family)
    tokens = torch.randint(3, 101, (5, 16), generator=torch.Generator().manual_seed(1))
    seen = _hooked(model, tokens)
    run = Run(batch_tokens=32, hidden_budget=budget, work=tmp_path, hessian_dtype=torch.float64)
    blocks = 0
    for dense in dense_moments(source, tokens, _ALL, run):
        assert dense.index == blocks
        blocks += 1
        for matrix, weight, moments in dense.matrices():
            full = source.family.block_prefix(dense.index) + matrix.name
            expected = next(x for name, x in seen.items() if name.endswith(full.removeprefix("model.")))
            scale = float(expected.square().sum())
            assert torch.equal(weight, model.state_dict()[f"{full}.weight"].float())
            assert (moments.gram.matrix - expected.T @ expected).abs().max() < 1e-5 * scale
            assert torch.allclose(moments.norms, expected.norm(dim=0), rtol=1e-4, atol=1e-5)
            assert torch.allclose(moments.means, expected.mean(dim=0), atol=1e-4)
            assert torch.allclose(
                moments.variances, expected.var(dim=0, unbiased=False), rtol=1e-3, atol=1e-5
            )
    assert blocks == 3
    assert not list(tmp_path.glob("*.map")), "the file of hidden states is gone"


def test_no_windows_is_one_line() -> None:
    _, source = tiny("opt")
    with pytest.raises(UserError, match="needs calibration windows"):
        next(dense_moments(source, torch.zeros(0, 16, dtype=torch.int64), _ALL, Run()))


def test_only_what_is_asked_for_is_there() -> None:
    moments = Moments(Statistic.NORMS, 3, torch.float32, torch.device("cpu"), "block 0 fc1")
    moments.add(torch.tensor([[[3.0, 0.0, 1.0], [4.0, 0.0, -1.0]]]))
    assert moments.norms.tolist() == pytest.approx([5.0, 0.0, 2**0.5])
    for name in ("gram", "means", "variances"):
        with pytest.raises(ValueError, match="block 0 fc1: nobody asked for Statistic"):
            getattr(moments, name)


def test_variances_survive_large_means() -> None:
    moments = Moments(Statistic.VARIANCES | Statistic.MEANS, 2, torch.float32, torch.device("cpu"), "x")
    inputs = torch.randn(4, 300, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([4096.0, 0.0])
    for batch in inputs.split(3):
        moments.add(batch)
    rows = inputs.reshape(-1, 2).double()
    assert torch.allclose(moments.variances, rows.var(dim=0, unbiased=False), rtol=1e-6)
    assert torch.allclose(moments.means, rows.mean(dim=0), rtol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_inputs_are_named(value: float) -> None:
    moments = Moments(Statistic.NORMS, 2, torch.float32, torch.device("cpu"), "block 1 fc2")
    moments.add(torch.tensor([[[1.0, value]]]))
    with pytest.raises(NonFiniteError, match="block 1 fc2: its calibration inputs hold NaN or infinity"):
        _ = moments.norms
