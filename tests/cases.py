"""One list of kernel cases, for the tests and for the speed measurements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.kernels.formats import Bitmap
from methods.kernels.operators import Grid
from methods.kernels.products import Parts


@dataclass(frozen=True)
class SweepCase:
    """An OBS sweep: sizes; what goes (a mask, or all but `keep` of every `group`); `bits` of its grid.

    `divided`: the selection has a divisor of its own.
    """

    rows: int
    columns: int
    masked: bool = False
    keep: int = 0
    group: int = 0
    bits: int = 0
    divided: bool = False

    def __str__(self) -> str:
        choice = "mask" if self.masked else f"{self.keep}:{self.group}" if self.group else "none"
        bits = f"-{self.bits}bit" if self.bits else ""
        return f"{self.rows}x{self.columns}-{choice}{bits}" + ("-divided" if self.divided else "")

    @property
    def flops(self) -> int:
        """Multiplications and subtractions of the compensation: two for each pair of columns j < k."""
        return self.rows * self.columns * (self.columns - 1)

    @property
    def bytes(self) -> int:
        """Bytes that must move: weights (and mask) in; values, errors, mask and loss out; the factor once."""
        per_weight = 4 + self.masked + 4 + 4 + 1
        return self.rows * self.columns * per_weight + 4 * self.rows + 4 * self.columns * self.columns


@dataclass(frozen=True)
class SweepInputs:
    """Tensors of a case: weight is a view into a larger buffer, so its strides are odd."""

    weight: Tensor
    factor: Tensor
    mask: Tensor | None
    grid: Grid | None
    divisor: Tensor | None = None


def factor_of(columns: int, generator: torch.Generator) -> Tensor:
    """U with H^-1 = U^T U of a random, well-conditioned Hessian."""
    if columns == 0:
        return torch.zeros(0, 0)
    x = torch.randn(4 * columns, columns, generator=generator)
    hessian = x.T @ x / (4 * columns) + 0.1 * torch.eye(columns)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def inputs(case: SweepCase, seed: int = 0) -> SweepInputs:
    """Random tensors for a case, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = case.rows, case.columns
    weight = torch.randn(rows, columns + 5, generator=generator)[:, 2 : 2 + columns]
    mask = torch.rand(rows, columns + 1, generator=generator)[:, 1:] < 0.5 if case.masked else None
    grid = None
    if case.bits:
        levels = 2**case.bits
        low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
        scale = (high - low) / (levels - 1)
        grid = Grid(scale, torch.round(-low / scale), levels)
    factor = factor_of(columns, generator)
    divisor = None
    if case.divided:
        divisor = (0.1 + torch.rand(columns, 3, generator=generator))[:, 1]
    return SweepInputs(weight, factor, mask, grid, divisor)


SIZES = [(1, 1), (1, 128), (3, 7), (16, 16), (17, 33), (50, 100), (31, 64), (40, 127), (37, 128)]
PATTERNS = [
    (1, 2),
    (2, 4),
    (4, 8),
    (1, 4),
    (3, 4),
    (0, 4),
    (4, 4),
    (2, 3),
    (5, 7),
    (8, 16),
    (9, 17),
    (20, 40),
    (64, 128),
]

SWEEPS = [
    *(SweepCase(rows, columns, masked=True) for rows, columns in SIZES),
    *(SweepCase(19, 128 // group * group, keep=keep, group=group) for keep, group in PATTERNS),
    *(SweepCase(23, 96, masked=True, bits=bits) for bits in (2, 3, 4, 8)),
    *(SweepCase(23, 96, bits=bits) for bits in (2, 4)),
    *(SweepCase(23, 96, keep=2, group=4, bits=bits) for bits in (3, 4)),
    *(SweepCase(21, 96, keep=keep, group=group, divided=True) for keep, group in ((2, 4), (4, 8), (10, 32))),
    SweepCase(23, 96, keep=2, group=4, bits=4, divided=True),
    SweepCase(9, 40),
    SweepCase(20, 160, masked=True),
]

SPEED = [
    SweepCase(rows, 128, **choice)  # type: ignore[arg-type]
    for rows in (576, 3072)
    for choice in ({"masked": True}, {"keep": 2, "group": 4}, {"masked": True, "bits": 4})
]


@dataclass(frozen=True)
class ProductCase:
    """A product of a pruned matrix [rows, columns], `dtype` stored, with some tokens; pattern as for sweeps."""

    rows: int
    columns: int
    tokens: int
    dtype: torch.dtype = torch.float32
    sparsity: float = 0.5
    keep: int = 0
    group: int = 0

    def __str__(self) -> str:
        pattern = f"{self.keep}:{self.group}" if self.group else f"{self.sparsity:g}"
        return f"{self.rows}x{self.columns}-{pattern}-{str(self.dtype).removeprefix('torch.')}-b{self.tokens}"


def product_inputs(case: ProductCase, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight with zeros (in the stored dtype; float32 for int8), x (a view with odd strides), bias."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(case.rows, case.columns, generator=generator)
    draw = torch.rand(case.rows, case.columns, generator=generator)
    if case.group:
        order = draw.unflatten(1, (case.columns // case.group, case.group)).argsort(2).argsort(2)
        removed = (order >= case.keep).flatten(1)
    else:
        removed = draw < case.sparsity
    weight = weight.masked_fill(removed, 0).to(torch.float32 if case.dtype == torch.int8 else case.dtype)
    x = torch.randn(case.tokens, case.columns + 5, generator=generator)[:, 2 : 2 + case.columns]
    return weight, x, torch.randn(case.rows, generator=generator)


PRODUCTS = [
    *(
        ProductCase(rows, columns, tokens, dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8)
        for rows, columns, tokens in (
            (0, 8, 2),
            (5, 0, 3),
            (4, 8, 0),
            (1, 1, 1),
            (3, 7, 5),
            (2, 64, 4),
            (17, 63, 2),
            (33, 65, 3),
            (70, 200, 1),
            (45, 577, 16),
            (40, 300, 70),
            (9, 1030, 300),
        )
    ),
    *(
        ProductCase(50, 200, tokens, sparsity=sparsity)
        for tokens in (1, 4, 16)
        for sparsity in (0.0, 0.99, 1.0)
    ),
    *(
        ProductCase(21, 240, tokens, keep=keep, group=group)
        for tokens in (1, 20)
        for keep, group in ((2, 4), (1, 3))
    ),
    ProductCase(21, 240, 2, torch.int8, keep=4, group=8),
]


def product_parts(packed: Bitmap) -> Parts:
    """What a native product takes of a packed matrix, in its order."""
    return (
        packed.bitmap,
        packed.offsets,
        packed.values,
        packed.scales,
        packed.columns,
        packed.keep,
        packed.group,
    )
