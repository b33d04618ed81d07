"""Packing, unpacking, checking and multiplying of bitmap matrices, in plain torch.

A weight is stored where its bits are not all zero; ``bitmap`` [rows, ceil(columns / 64)] int64 holds column c as bit
c % 64 of word c // 64; ``values`` [nonzeros] follow row by row, column by column; row r's begin at ``offsets[r]``,
or with N:M (``keep`` of every ``group``) at r x columns / group x keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "bitmap_fault",
    "bitmap_gather",
    "bitmap_matmul",
    "bitmap_scan",
    "bitmap_unpack",
    "bits_of",
    "dense_matmul",
    "words_of",
]

_BITS_AT_A_TIME = 1 << 20
"""Bits turned into words at a time, which take eight bytes each meanwhile."""
_BITS_AS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def words_of(mask: Tensor) -> Tensor:
    """Bool [rows, columns] as int64 words [rows, ceil(columns / 64)]."""
    rows, columns = mask.shape
    words = -(-columns // 64)
    shifts = torch.arange(64, device=mask.device)
    found = torch.empty(rows, words, dtype=torch.int64, device=mask.device)
    step = max(1, _BITS_AT_A_TIME // max(1, columns))
    for begin in range(0, rows, step):
        part = torch.nn.functional.pad(mask[begin : begin + step], (0, 64 * words - columns))
        found[begin : begin + step] = (part.unflatten(1, (words, 64)).long() << shifts).sum(2)
    return found


def bits_of(bitmap: Tensor, columns: int) -> Tensor:
    """Words [rows, words] as bool [rows, columns]."""
    rows, words = bitmap.shape
    shifts = torch.arange(64, device=bitmap.device)
    found = torch.empty(rows, 64 * words, dtype=torch.bool, device=bitmap.device)
    step = max(1, _BITS_AT_A_TIME // max(1, columns))
    for begin in range(0, rows, step):
        bits = bitmap[begin : begin + step, :, None] >> shifts & 1
        found[begin : begin + step] = bits.flatten(1).bool()
    return found[:, :columns]


def bitmap_scan(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bitmap and offsets of ``weight`` [rows, columns]; ``mask`` says what is stored in place of the bits."""
    stored = weight.view(_BITS_AS[weight.itemsize]) != 0 if mask is None else mask
    counts = stored.sum(1, dtype=torch.int64)
    return words_of(stored), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def bitmap_gather(weight: Tensor, bitmap: Tensor, offsets: Tensor, nonzeros: int) -> Tensor:
    """The stored values of ``weight``, row by row."""
    values = weight[bits_of(bitmap, weight.shape[1])]
    if values.numel() != nonzeros or int(offsets[-1]) != nonzeros:
        raise RuntimeError(f"the bitmap stores {values.numel()} values, not {nonzeros}")
    return values


def bitmap_unpack(
    bitmap: Tensor, offsets: Tensor | None, values: Tensor, columns: int, keep: int, group: int
) -> Tensor:
    """The dense matrix [rows, columns], in the dtype of ``values``, zero where nothing is stored."""
    if int(bitmap_fault(bitmap, offsets, values.numel(), columns, keep, group)) != -1:
        raise RuntimeError("bitmap, offsets and values do not belong together")
    dense = values.new_zeros(bitmap.shape[0], columns)
    dense[bits_of(bitmap, columns)] = values
    return dense


def bitmap_fault(
    bitmap: Tensor, offsets: Tensor | None, nonzeros: int, columns: int, keep: int, group: int
) -> Tensor:
    """The first row that does not belong to its bitmap; -1 without a fault, -2 where totals disagree."""
    bits = bits_of(bitmap, 64 * bitmap.shape[1])
    beyond = bits[:, columns:].any(1)
    if group > 0:
        groups = bits[:, :columns].unflatten(1, (columns // group, group)).sum(2)
        bad = (groups != keep).any(1) | beyond
        total = bitmap.shape[0] * (columns // group) * keep
    elif offsets is None:
        raise ValueError("offsets go with group = 0")
    else:
        bad = (offsets.diff() != bits.sum(1)) | beyond
        bad |= (offsets[:-1] < 0) | (offsets[1:] > nonzeros)
        if bitmap.shape[0] > 0 and (int(offsets[0]) != 0 or int(offsets[-1]) != nonzeros):
            return torch.tensor(-2)
        total = nonzeros
    if total != nonzeros:
        return torch.tensor(-2)
    return bad.int().argmax() if bool(bad.any()) else torch.tensor(-1)


def bitmap_matmul(
    x: Tensor,
    bitmap: Tensor,
    offsets: Tensor | None,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    columns: int,
    keep: int,
    group: int,
) -> Tensor:
    """x [tokens, columns] times the transposed matrix, in float32, as x's dtype [tokens, rows]."""
    return dense_matmul(x, bitmap_unpack(bitmap, offsets, values, columns, keep, group), scales, bias)


def dense_matmul(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
    """The same for a dense ``weight`` [rows, columns]."""
    y = x.float() @ weight.float().T
    if scales is not None:
        y = y * scales
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)
