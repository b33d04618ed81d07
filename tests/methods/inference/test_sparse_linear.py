"""Packed linears against the dense layers they stand for, alone and in the place of a model's own."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from pruned_nanos import NANOS, PROMPT, pruned
from torch import Tensor, nn

from methods.errors import UnsupportedModel, UnsupportedTarget
from methods.inference.assemble import assemble
from methods.inference.sparse_linear import SparseLinear
from methods.inference.swap import PAYS, Swap, pack_linear, swap

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _weight(rows: int = 37, columns: int = 68, sparsity: float = 0.6, *, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=made)
    return weight * (torch.rand(rows, columns, generator=made) >= sparsity)  # leaves zeros of either sign


def _halved(rows: int = 40, columns: int = 64) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    smallest = weight.abs().unflatten(1, (-1, 4)).argsort(2)[..., :2]
    return weight.unflatten(1, (-1, 4)).scatter(2, smallest, 0.0).flatten(1)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(68,), (1, 68), (3, 5, 68), (0, 68)], ids=str)
def test_the_product_is_that_of_the_dense_layer(
    shape: tuple[int, ...], dtype: torch.dtype, bias: bool
) -> None:
    weight = _weight().to(dtype)
    offset = torch.randn(37, generator=torch.Generator().manual_seed(2)).to(dtype) if bias else None
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    layer = SparseLinear.from_dense(weight, offset)
    exact = nn.functional.linear(x.double(), weight.double(), None if offset is None else offset.double())
    got = layer(x)
    assert got.dtype == dtype and got.shape == exact.shape
    torch.testing.assert_close(got.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2e-5)


def test_strided_inputs_and_threads_change_nothing() -> None:
    layer, wide = SparseLinear.from_dense(_weight()), torch.randn(2, 7, 136)
    expected = layer(wide[..., ::2].contiguous())
    assert torch.equal(layer(wide[..., ::2]), expected)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(layer(wide[..., ::2]), expected)
    finally:
        torch.set_num_threads(before)


def test_zeros_of_either_sign_are_left_out() -> None:
    weight = _weight()
    assert bool((weight.signbit() & (weight == 0)).any())
    assert SparseLinear.from_dense(weight).values.numel() == int(torch.count_nonzero(weight))


def test_the_matrix_comes_back_and_takes_fewer_bytes() -> None:
    weight = _weight(64, 256)
    layer = SparseLinear.from_dense(weight)
    assert torch.equal(layer.dense(), weight + 0.0)
    assert layer.nbytes == layer.packed.nbytes == sum(part.nbytes for part in layer.buffers())
    assert layer.nbytes < 0.5 * weight.nbytes and not list(layer.parameters())
    assert "format=bitmap" in repr(layer) and "sparsity=0.59" in repr(layer)


def test_n_of_m_and_int8() -> None:
    weight, x = _halved(), torch.randn(3, 64)
    layer = SparseLinear.from_dense(weight, keep=2, group=4)
    assert layer.offsets is None and "format=2:4" in repr(layer)
    torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-5, atol=1e-5)
    small = SparseLinear.from_dense(weight, dtype=torch.int8)
    assert small.nbytes < 0.2 * weight.nbytes + 8 * 41
    torch.testing.assert_close(small(x), x @ small.dense().T, rtol=1e-5, atol=1e-5)
    assert float((small.dense() - weight).abs().max()) <= float(weight.abs().max()) / 254 + 1e-6


def test_state_and_copies_are_whole() -> None:
    layer, other = (SparseLinear.from_dense(_weight(seed=seed), torch.ones(37)) for seed in (0, 1))
    x = torch.randn(2, 68)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    twin = SparseLinear.from_dense(_weight(), torch.zeros(37))
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), expected) and not torch.equal(other(x), expected)
    assert torch.equal(layer.to("cpu")(x), expected)


def test_what_cannot_be_is_named() -> None:
    layer = SparseLinear.from_dense(_weight(), torch.zeros(37))
    with pytest.raises(ValueError, match=r"x has shape \(2, 67\): pass \[\.\.\., 68\]"):
        layer(torch.zeros(2, 67))
    for dtype in (torch.int64, torch.float64):
        with pytest.raises(TypeError, match=rf"x is {dtype}: pass torch\.float32"):
            layer(torch.zeros(2, 68, dtype=dtype))
    with pytest.raises(ValueError, match="x is on meta, the packed weight on cpu: move one"):
        layer(torch.zeros(2, 68, device="meta"))
    with pytest.raises(RuntimeError, match=r"no backward pass: run it under torch\.no_grad"):
        layer(torch.zeros(2, 68, requires_grad=True))
    with pytest.raises(
        TypeError, match=r"of torch\.float32 is not converted to torch\.float16: pack the dense"
    ):
        layer.half()
    with pytest.raises(ValueError, match=r"bias is torch\.float32 \(36,\): pass floating \(37,\)"):
        SparseLinear.from_dense(_weight(), torch.zeros(36))
    with pytest.raises(TypeError, match=r"weight is torch\.float64"):
        SparseLinear.from_dense(_weight().double())
    with pytest.raises(ValueError, match="row 0 has more than 2 non-zero weights in a group of 4"):
        SparseLinear.from_dense(torch.ones(2, 8), keep=2, group=4)
    broken = SparseLinear.from_dense(_weight()).packed
    broken.bitmap[3, 0] ^= 1
    with pytest.raises(ValueError, match="row 3: its bitmap does not store as many as its offsets"):
        SparseLinear(broken)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NANOS)
def test_swapped_models_give_the_masked_dense_logits(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    source = pruned(name, tmp_path, dtype=dtype)
    dense, sparse = assemble(source), assemble(source)
    found = swap(sparse, source.family, source.shape, format="bitmap")
    matrices = source.shape.blocks * len(source.family.matrices(source.shape))
    assert found.packed == matrices and found.dense == 0
    assert found.bytes_after < (0.5 if dtype == torch.float32 else 0.55) * found.bytes_before
    held = sum(module.nbytes for module in sparse.modules() if isinstance(module, SparseLinear))
    assert sum(t.nbytes for t in (*sparse.parameters(), *sparse.buffers())) < 0.8 * sum(
        t.nbytes for t in (*dense.parameters(), *dense.buffers())
    )
    assert found.bytes_after <= held
    with torch.inference_mode():
        expected, got = dense(PROMPT).logits, sparse(PROMPT).logits
    allowed = 1e-4 if dtype == torch.float32 else 0.04
    assert float((got - expected).abs().max()) <= allowed * float(expected.abs().max())


def test_a_dense_weight_is_freed_as_soon_as_it_is_packed(tmp_path: Path) -> None:
    source = pruned("nano-llama", tmp_path)
    model = assemble(source)
    prefix = source.family.block_prefix
    matrices = source.family.matrices(source.shape)
    weights = [
        weakref.ref(model.get_parameter(f"{prefix(index)}{matrix.name}.weight"))
        for index in range(source.shape.blocks)
        for matrix in matrices
    ]
    alive: list[int] = []
    original = SparseLinear.__init__

    def counted(self: SparseLinear, *arguments: object) -> None:
        alive.append(sum(weight() is not None for weight in weights))
        original(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseLinear, "__init__", counted)
        swap(model, source.family, source.shape, format="bitmap")
    gc.collect()
    assert alive == list(range(len(weights), 0, -1))
    assert not any(weight() is not None for weight in weights)


def test_auto_packs_where_it_pays_and_as_n_of_m_where_that_holds(tmp_path: Path) -> None:
    few = torch.randn(8, 128)
    assert pack_linear(few, None, "w", format="auto") is None
    barely = few.clone()
    barely.view(-1)[: int((1 - PAYS + 1 / 32) * few.numel()) + 1] = 0
    packed = pack_linear(barely, None, "w", format="auto")
    assert packed is not None and packed.group == 0
    assert pack_linear(_halved(), None, "w", format="auto", keep=2, group=4).group == 4  # type: ignore[union-attr]
    assert pack_linear(_weight(), None, "w", format="auto", keep=2, group=4).group == 0  # type: ignore[union-attr]
    source = pruned("nano-opt", tmp_path, "10%")
    model = assemble(source)
    found = swap(model, source.family, source.shape)
    assert found == Swap(0, found.dense, found.bytes_before, found.bytes_before) and found.dense > 0


def test_a_swap_that_cannot_be_is_named(tmp_path: Path) -> None:
    source = pruned("nano-opt", tmp_path)
    model = assemble(source)
    with pytest.raises(ValueError, match="format is 'csr': pass bitmap, nm, auto"):
        swap(model, source.family, source.shape, format="csr")
    with pytest.raises(ValueError, match="pass keep=N and group=M"):
        swap(model, source.family, source.shape, format="nm")
    with pytest.raises(UnsupportedTarget, match=r"layers\.0\.self_attn\.q_proj: row \d+ has more than 2"):
        swap(model, source.family, source.shape, format="nm", keep=2, group=4)
    swap(model, source.family, source.shape, format="bitmap")
    with pytest.raises(UnsupportedModel, match=r"q_proj' is a SparseLinear: only nn\.Linear"):
        swap(model, source.family, source.shape, format="bitmap")
    with pytest.raises(UnsupportedModel, match=r"no module 'model\.decoder\.layers\.0\.self_attn\.q_proj'"):
        swap(nn.Linear(2, 2), source.family, source.shape)
