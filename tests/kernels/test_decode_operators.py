"""What a decode step does between its products, natively, against plain torch; and the programs that chain it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.kernels import _native, decode
from methods.kernels.formats import pack
from methods.kernels.prepared import BitmapProduct, DenseProduct
from methods.kernels.twins import decode as twin

ISAS = ["portable", "avx2", "avx512"]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    if not decode.available():
        pytest.skip(f"needs the native CPU library: {_native.load('cpu').reason}")
    if not _native.cpu_has_isa(request.param):
        pytest.skip(f"needs a processor with {request.param}")
    return str(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("width", [1, 7, 16, 33, 576])
@pytest.mark.parametrize("centred", [False, True])
def test_add_norm(isa: str, width: int, centred: bool) -> None:
    update, weight, bias = (random(width, seed=seed) for seed in (1, 2, 3))
    for parts in ((update, weight, bias), (update, None, None), (None, weight, None)):
        hidden, out = random(width) + 3, torch.empty(width)
        eps, divisor = 1e-3, width + 5
        sums, wanted = twin.add_norm(
            hidden.double(),
            *(None if part is None else part.double() for part in parts),
            eps=eps,
            divisor=divisor,
            centred=centred,
        )
        program = decode.Program(1, isa)
        names = dict(zip(("update", "weight", "bias"), parts, strict=True))
        program.add_norm(hidden, out, eps=eps, divisor=divisor, centred=centred, **names)
        program.run()
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=3e-6)
        torch.testing.assert_close(hidden.double(), sums, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("heads", "shared", "dim"), [(1, 1, 1), (3, 1, 6), (4, 2, 64), (2, 2, 80), (6, 3, 33)]
)
def test_attend(isa: str, dtype: torch.dtype, heads: int, shared: int, dim: int) -> None:
    capacity, threads = 40, 2
    turn = dim % 2 == 0
    cos, sin = (random(capacity, dim, seed=seed) if turn else None for seed in (1, 2))
    place = decode.Place(cos=cos, sin=sin)
    fused = torch.empty(heads + 2 * shared, dim + 3)[:, :dim]  # rows that lie apart
    query, key, value = fused.split([heads, shared, shared])
    caches = [torch.full((shared, capacity, dim), torch.nan, dtype=dtype) for _ in range(4)]
    out = torch.empty(heads * dim)
    program = decode.Program(threads, isa)
    program.attend(place, query, key, value, *caches[:2], out, scale=0.3)
    for position in range(capacity):
        fused.copy_(random(heads + 2 * shared, dim, seed=position))
        bias = 4 * random(heads, position + 1) if position % 3 else None
        place.at(position, bias)
        program.run()
        tables = {} if cos is None or sin is None else {"cos": cos[position], "sin": sin[position]}
        wanted = twin.attend(query, key, value, *caches[2:], position, scale=0.3, bias=bias, **tables)
        torch.testing.assert_close(out.view(heads, dim), wanted, rtol=0, atol=2e-5)
        for ours, theirs in zip(caches[:2], caches[2:], strict=True):
            # turned by a fused product or not, a key may round to the neighbour
            torch.testing.assert_close(
                ours[:, : position + 1], theirs[:, : position + 1], rtol=2**-8, atol=1e-6
            )
            theirs.copy_(ours)


def test_stored_values_round_to_the_nearest_even(isa: str) -> None:
    bits = torch.arange(-(2**31), 2**31, 65521 * 3, dtype=torch.int64).to(torch.int32)
    value = bits.view(torch.float32)[: 2**14].clone()
    special = [
        0.0,
        -0.0,
        65504.0,
        65519.9,
        65520.0,
        2**-24,
        2**-25,
        1.5 * 2**-24,
        3.4e38,
        torch.inf,
        torch.nan,
    ]
    value = torch.cat([value, torch.tensor(special), torch.linspace(-7e-5, 7e-5, 4001)])[None]
    for dtype in (torch.bfloat16, torch.float16):
        keys, values = (
            torch.zeros(1, 1, value.shape[1], dtype=dtype),
            torch.zeros(1, 1, value.shape[1], dtype=dtype),
        )
        place, out = decode.Place(), torch.empty(value.shape[1])
        place.at(0)
        program = decode.Program(1, isa)
        program.attend(place, torch.zeros_like(value), value, value, keys, values, out, scale=1.0)
        program.run()
        torch.testing.assert_close(values[0], value.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", decode.ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_activate(isa: str, kind: str, gated: bool) -> None:
    for width in (1, 15, 16, 100):
        x = torch.cat([torch.linspace(-100, 100, width), random(width)])[: 2 * width if gated else width]
        out = torch.empty(width)
        program = decode.Program(1, isa)
        program.activate(x, out, kind, gated=gated)
        program.run()
        torch.testing.assert_close(out, twin.activate(x, kind, gated=gated), rtol=2e-6, atol=1e-6)
    wide = torch.cat([random(4000) * 3, torch.tensor([torch.nan])])
    out = torch.empty(4001)
    program = decode.Program(1, isa)
    program.activate(wide, out, kind, gated=False)
    program.run()
    torch.testing.assert_close(
        out, twin.activate(wide, kind, gated=False), rtol=2e-6, atol=1e-6, equal_nan=True
    )


def test_nan_and_infinity_in_a_head_stay_in_it(isa: str) -> None:
    query, key, value = random(2, 16), random(2, 16, seed=1), random(2, 16, seed=2)
    query[0, 3] = torch.nan
    out, place = torch.empty(32), decode.Place()
    keys, values = torch.zeros(2, 4, 16), torch.zeros(2, 4, 16)
    program = decode.Program(1, isa)
    program.attend(place, query, key, value, keys, values, out, scale=1.0)
    for position in range(4):
        place.at(position)
        program.run()
        assert out[:16].isnan().all() and out[16:].isfinite().all()


def test_a_program_chains_products_steps_and_calls(isa: str) -> None:
    weight, narrow = random(20, 12), random(12, 20)
    weight[weight.abs() < 0.5] = 0
    x, middle, active, y, twice = (torch.empty(size) for size in (12, 20, 20, 12, 12))
    program = decode.Program(2, isa)
    program.product(BitmapProduct(pack(weight), random(20)), x, middle)
    program.activate(middle, active, "relu", gated=False)
    program.call(lambda: active.mul_(2))
    program.product(DenseProduct(narrow), active, y)
    program.add_norm(x, twice, update=y)
    for seed in range(3):
        given = random(12, seed=seed)
        x.copy_(given)
        program.run()
        wanted = given + narrow @ (2 * torch.relu(weight @ given + random(20)))
        torch.testing.assert_close(x, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(twice, wanted * torch.rsqrt(wanted.square().mean()), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    if not decode.available():
        pytest.skip(f"needs the native CPU library: {_native.load('cpu').reason}")
    program, four, place = decode.Program(1), torch.zeros(4), decode.Place()
    caches = torch.zeros(1, 8, 4), torch.zeros(1, 8, 4)
    row = four[None]
    for call, message in (
        (lambda: program.add_norm(four, torch.zeros(5)), r"out is torch\.float32 \(5,\)"),
        (lambda: program.add_norm(four.double(), None), r"hidden is torch\.float64"),
        (lambda: program.add_norm(torch.zeros(8)[::2], None), "pass contiguous float32"),
        (lambda: program.activate(four, torch.zeros(4), "relu", gated=True), r"x is .* \(4,\)"),
        (lambda: program.attend(place, row, row, torch.zeros(1, 5), *caches, four, scale=1), "value is"),
        (
            lambda: program.attend(place, row, row, row, caches[0], torch.zeros(1, 9, 4), four, scale=1),
            "values is",
        ),
        (lambda: program.product(DenseProduct(torch.zeros(3, 4)), torch.zeros(3), torch.zeros(3)), "x is"),
        (lambda: place.at(0, torch.zeros(1, 3)), r"bias is .* pass contiguous float32 \[heads, 1\]"),
        (lambda: decode.Place(cos=torch.zeros(3, 4)), "both or neither"),
        (lambda: decode.Place(cos=torch.zeros(3, 4), sin=torch.zeros(3, 4)).at(3), "position 3 is outside"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="caches are"):
        program.attend(place, row, row, row, caches[0].double(), caches[1].double(), four, scale=1)
    program.attend(place, row, row, row, *caches, four, scale=1)
    place.at(8)
    with pytest.raises(RuntimeError, match="step 0 of 1"):
        program.run()
