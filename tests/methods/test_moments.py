"""Gram matrices and the factor of the inverse Hessian."""

from __future__ import annotations

import pytest
import torch

from methods.errors import HessianError, NonFiniteError
from methods.moments import Gram, factorise, invert_lower_, reverse_
from methods.moments.factor import DEAD_PIVOT


def _hessian(columns: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    inputs = torch.randn(3 * columns + 2, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return inputs.T @ inputs


def three_calls(hessian: torch.Tensor) -> torch.Tensor:
    """The published code's way to U: factor H, invert it, factor the inverse."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


@pytest.mark.parametrize("columns", [1, 2, 7, 127, 128, 129, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_factorisation_gives_the_factor_of_three(columns: int, dtype: torch.dtype) -> None:
    hessian = _hessian(columns)
    factor = factorise(hessian.to(dtype), 0.01)
    damped = hessian + torch.eye(columns, dtype=torch.float64) * 0.01 * hessian.diagonal().mean()
    expected = three_calls(damped)
    tolerance = 5e-6 if dtype == torch.float32 else 1e-6
    assert (factor.upper - expected).abs().max() <= tolerance * expected.abs().max()
    assert factor.damping == 0.01 and factor.escalations == 0
    assert torch.equal(factor.upper, factor.upper.triu())


def with_copies(hessian: torch.Tensor, percdamp: float) -> torch.Tensor:
    """U by the operations of ``factorise``, each with a result of its own."""
    reversed_ = hessian.flip(0, 1)
    diagonal = hessian.diagonal()
    reversed_.diagonal().copy_((diagonal + percdamp * float(diagonal.mean(dtype=torch.float64))).flip(0))
    return invert_lower_(torch.linalg.cholesky(reversed_)).flip(0, 1).float()


@pytest.mark.parametrize("columns", [1, 2, 129, 513, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factorising_in_place_gives_the_bits_of_copies(columns: int, dtype: torch.dtype) -> None:
    hessian = _hessian(columns).to(dtype)
    hessian[0, -1] *= 1.0 if columns == 1 else 1.1  # only one triangle is read
    before = hessian.clone()
    for given in (hessian, hessian.T):
        factor = factorise(given, 0.01)
        expected = with_copies(given, 0.01)
        assert torch.equal(factor.upper, expected) and factor.upper.stride() == expected.stride()
    assert torch.equal(hessian, before)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 2), (511, 7), (512, 300), (1025, 4)])
def test_reversed_in_place_is_flipped(size: tuple[int, int]) -> None:
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(size[0]))
    for layout in (matrix.clone(), matrix.T.contiguous().T):
        result = reverse_(layout)
        assert result.data_ptr() == layout.data_ptr()
        assert torch.equal(result, matrix.flip(0, 1))


@pytest.mark.parametrize("size", [1, 5, 128, 129, 257, 400])
def test_triangular_inverse_in_place(size: int) -> None:
    lower = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)).tril()
    lower.diagonal().abs_().add_(size**0.5)
    expected = torch.linalg.inv(lower)
    for layout in (lower.clone(), lower.T.contiguous().T):
        result = invert_lower_(layout)
        assert result.data_ptr() == layout.data_ptr()
        assert (result - expected).abs().max() <= 1e-12


def test_dead_inputs_go_first_and_disturb_nothing() -> None:
    hessian = _hessian(40)
    hessian[7, :] = hessian[:, 7] = 0
    factor = factorise(hessian, 0.01)
    assert factor.dead.nonzero().flatten().tolist() == [7]
    assert factor.upper[7, 7] == DEAD_PIVOT
    alive = [i for i in range(40) if i != 7]
    living = hessian[alive][:, alive]
    expected = factorise(living, 0.01).upper
    assert torch.allclose(factor.upper[alive][:, alive], expected, rtol=1e-6, atol=1e-9)
    assert factorise(hessian, 0.01, reference=True).upper[7, 7] < 2


def test_everything_dead_still_factors() -> None:
    factor = factorise(torch.zeros(5, 5), 0.01)
    assert bool(factor.dead.all()) and bool(torch.isfinite(factor.upper).all())


def test_singular_hessian_escalates_and_says_so() -> None:
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 1e4
    factor = factorise(inputs.T @ inputs, 0.0)
    assert factor.escalations >= 1 and factor.damping > 0
    assert bool(torch.isfinite(factor.upper).all())


def test_hopeless_hessian_is_an_error_that_names_the_place() -> None:
    broken = -torch.eye(4)
    with pytest.raises(
        HessianError, match=r"block 3 fc1: the Hessian does not factor.*more calibration samples"
    ):
        factorise(broken - 1e6 * torch.ones(4, 4), 0.01, where="block 3 fc1")


def test_gram_is_the_sum_over_batches() -> None:
    inputs = torch.randn(6, 11, 17, generator=torch.Generator().manual_seed(1))
    gram = Gram(17, torch.float64, torch.device("cpu"))
    gram.add(inputs[:4])
    gram.add(inputs[4:, ::1].transpose(1, 2).contiguous().transpose(1, 2))
    rows = inputs.reshape(-1, 17).double()
    assert torch.allclose(gram.matrix, rows.T @ rows, rtol=1e-12)
    assert (gram.sequences, gram.tokens) == (6, 66)
    assert torch.allclose(gram.hessian(), rows.T @ rows / 3)
    weight = torch.randn(9, 17)
    assert gram.energy(weight) == pytest.approx(float(((rows @ weight.double().T) ** 2).sum()), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_energy_of_a_difference_is_that_of_the_difference_made_before(
    dtype: torch.dtype, wide: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    gram = Gram(17, wide, torch.device("cpu"))
    gram.add(torch.randn(1, 40, 17, generator=generator))
    dense = torch.randn(1500, 17, generator=generator).to(dtype)
    pruned = dense.masked_fill(torch.rand(1500, 17, generator=generator) < 0.5, 0).bfloat16()
    assert gram.energy(dense, pruned) == gram.energy(dense.float() - pruned.float())


@pytest.mark.parametrize("columns", [1, 143, 145, 300, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gram_accumulates_one_triangle_and_mirrors_it(columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(columns)
    inputs = torch.randn(3, columns, 40, generator=generator).to(dtype).transpose(1, 2)  # not contiguous
    gram = Gram(columns, torch.float64, torch.device("cpu"))
    gram.add(inputs[:1])
    first = inputs[0].double()
    assert torch.allclose(gram.matrix, first.T @ first, rtol=1e-12, atol=1e-12)
    gram.add(inputs[1:])  # after the matrix was read
    rows = inputs.reshape(-1, columns).double()
    assert torch.equal(gram.matrix, gram.matrix.T)
    assert torch.allclose(gram.matrix, rows.T @ rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_non_finite_inputs_are_named(value: float) -> None:
    gram = Gram(4, torch.float32, torch.device("cpu"))
    inputs = torch.ones(1, 3, 4)
    inputs[0, 1, 2] = value
    gram.add(inputs)
    with pytest.raises(NonFiniteError, match=r"block 0 q_proj: its calibration inputs hold NaN or infinity"):
        gram.check("block 0 q_proj")


def test_empty_batch_changes_nothing() -> None:
    gram = Gram(4, torch.float32, torch.device("cpu"))
    gram.add(torch.ones(0, 3, 4))
    assert not gram.matrix.any() and gram.tokens == 0
