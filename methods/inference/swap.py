"""Puts packed linears in the place of a model's dense ones, one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from methods.errors import UnsupportedModel, UnsupportedTarget
from methods.families.sizes import bitmap_bytes
from methods.inference.sparse_linear import SparseLinear
from methods.interface import Family, ModelShape

__all__ = ["FORMATS", "PAYS", "Swap", "pack_linear", "pays", "swap"]

FORMATS: Final = ("bitmap", "nm", "auto")
PAYS: Final = 0.75
"""``auto`` packs what gets smaller than this share of its dense bytes, from about 30 % of zeros on: products follow the
bytes they read, and with fewer zeros the work of unpacking takes the gain (`bench kernels --sparsity 0.2,0.3,0.4`)."""


@dataclass(frozen=True, slots=True)
class Swap:
    """What became of a model's prunable linears: how many are packed and how many were left dense, and the bytes of
    their weights before and after."""

    packed: int = 0
    dense: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    def __add__(self, other: Swap) -> Swap:
        return Swap(
            self.packed + other.packed,
            self.dense + other.dense,
            self.bytes_before + other.bytes_before,
            self.bytes_after + other.bytes_after,
        )


def swap(
    model: nn.Module,
    family: Family,
    shape: ModelShape,
    *,
    format: str = "auto",  # noqa: A002 - the word that the option has
    dtype: torch.dtype | None = None,
    keep: int = 0,
    group: int = 0,
) -> Swap:
    """Replace the prunable linears of an assembled ``model`` of ``family`` by packed ones, in place.

    ``format``: ``bitmap`` or ``nm`` (with ``keep``/``group``) pack every one, ``auto`` those where it pays, as N:M where
    ``keep``/``group`` are given and the matrix keeps to them. ``dtype``: of the values; the weights' own if None. A
    dense weight is freed as soon as its packed form stands, so memory never holds more than one matrix twice.

    Raises ValueError for an unknown format, UnsupportedTarget for a matrix that is not N:M where ``nm`` is asked for,
    UnsupportedModel where a linear is not where the family says.
    """
    total = Swap()
    for index in range(shape.blocks):
        for matrix in family.matrices(shape, index):
            path = f"{family.block_prefix(index)}{matrix.name}"
            parent, _, name = path.rpartition(".")
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise UnsupportedModel(f"the model has no module '{path}', which its family names") from None
            if not isinstance(module, nn.Linear):
                raise UnsupportedModel(
                    f"'{path}' is a {type(module).__name__}: only nn.Linear can be replaced"
                )
            before = module.weight.nbytes
            packed = pack_linear(
                module.weight, module.bias, path, format=format, dtype=dtype, keep=keep, group=group
            )
            if packed is None:
                total += Swap(dense=1, bytes_before=before, bytes_after=before)
                continue
            setattr(model.get_submodule(parent), name, packed)
            total += Swap(packed=1, bytes_before=before, bytes_after=packed.packed.nbytes)
    return total


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    path: str,
    *,
    format: str,  # noqa: A002
    dtype: torch.dtype | None = None,
    keep: int = 0,
    group: int = 0,
) -> SparseLinear | None:
    """One linear packed, or None where ``auto`` leaves it dense; see ``swap``. ``path`` is for messages."""
    if format not in FORMATS:
        raise ValueError(f"format is '{format}': pass {', '.join(FORMATS)}")
    if format == "nm" and group == 0:
        raise ValueError("format 'nm' packs N of every M columns: pass keep=N and group=M")
    if format == "auto" and not pays(weight, dtype):
        return None
    if format != "bitmap" and group:
        try:
            return SparseLinear.from_dense(weight, bias, dtype=dtype, keep=keep, group=group)
        except ValueError as error:
            if format == "nm":
                raise UnsupportedTarget(f"{path}: {error}") from None
    return SparseLinear.from_dense(weight, bias, dtype=dtype)


def pays(weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether ``weight`` gets so much smaller when packed that its product should be faster."""
    kept = int(torch.count_nonzero(weight))
    itemsize = (dtype or weight.dtype).itemsize
    return bitmap_bytes(weight.numel(), kept, itemsize) <= PAYS * weight.nbytes
