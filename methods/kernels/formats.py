"""Sparse matrices as bitmap and packed values: pack, unpack, validate.

A matrix costs one bit a weight and its stored values: float32, bfloat16, float16, or int8 with a float32 scale a row.
With N:M the rows need no offsets, since every group of M columns stores exactly N values.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.kernels import _native
from methods.kernels._structs import BitmapPackParams, BitmapStruct, BitmapUnpackParams
from methods.kernels.twins import bitmap as twin

__all__ = ["DTYPE_IDS", "Bitmap", "check_parts", "pack", "struct_of", "unpack", "validate"]

DTYPE_IDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
_BAD_FORMAT = 14


@dataclass(frozen=True)
class Bitmap:
    """A matrix [rows, columns] in packed form; all tensors contiguous and on one device.

    ``bitmap`` [rows, ceil(columns / 64)] int64: bit c % 64 of word c // 64 says whether column c is stored.
    ``values`` [nonzeros] float32, bfloat16, float16 or int8, row by row. ``offsets`` [rows + 1] int64 is where each
    row's values begin; None with N:M, that is ``keep`` of every ``group`` columns. ``scales`` [rows] float32 with
    int8: a weight is its row's scale times the value.
    """

    bitmap: Tensor
    offsets: Tensor | None
    values: Tensor
    scales: Tensor | None
    columns: int
    keep: int = 0
    group: int = 0

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return self.bitmap.shape[0]

    @property
    def nonzeros(self) -> int:
        """Stored values."""
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        """Bytes held: bitmap, values, offsets and scales."""
        return sum(part.nbytes for part in self.parts().values())

    def parts(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        parts = {"bitmap": self.bitmap, "offsets": self.offsets, "values": self.values, "scales": self.scales}
        return {name: part for name, part in parts.items() if part is not None}


def pack(weight: Tensor, *, dtype: torch.dtype | None = None, keep: int = 0, group: int = 0) -> Bitmap:
    """Pack a dense matrix with zeros.

    ``weight`` [rows, columns] float32, bfloat16 or float16, any strides. Every entry is stored whose bits are not
    all zero, so -0.0, NaN and infinities come back bit for bit. ``dtype`` rounds the values first; int8 rounds
    each row to 127 steps of a scale (its largest magnitude / 127). ``keep``/``group`` pack N:M: at most ``keep``
    non-zero entries in every ``group`` columns; where there are fewer, zeros of the lowest index are stored.

    Raises TypeError or ValueError for arguments that do not fit, a group that is too full, or an int8 row that is
    not finite.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: pass [rows, columns]")
    if weight.dtype not in DTYPE_IDS or weight.dtype == torch.int8:
        raise TypeError(f"weight is {weight.dtype}: pass torch.float32, torch.bfloat16 or torch.float16")
    target = weight.dtype if dtype is None else dtype
    if target not in DTYPE_IDS:
        raise TypeError(f"dtype is {target}: pass torch.float32, torch.bfloat16, torch.float16 or torch.int8")
    _check_group(weight.shape[1], keep, group)
    scales, mask = None, None
    if target == torch.int8:
        mask = weight != 0
        weight, scales = _round_rows(weight)
    else:
        weight = weight.to(target)
    if group > 0:
        mask = _grouped(weight if mask is None else mask, keep, group)
    bitmap, offsets = torch.ops.prune_bench.bitmap_scan(weight, mask)
    values = torch.ops.prune_bench.bitmap_gather(weight, bitmap, offsets, int(offsets[-1]))
    return Bitmap(bitmap, None if group > 0 else offsets, values, scales, weight.shape[1], keep, group)


def unpack(packed: Bitmap) -> Tensor:
    """The dense matrix [rows, columns] in the dtype of the values, bit for bit; int8 comes back as float32.

    Raises RuntimeError where the parts do not belong together.
    """
    dense: Tensor = torch.ops.prune_bench.bitmap_unpack(
        packed.bitmap, packed.offsets, packed.values, packed.columns, packed.keep, packed.group
    )
    return dense if packed.scales is None else dense.float() * packed.scales[:, None]


def validate(packed: Bitmap) -> None:
    """Check parts that come from outside: sizes, dtypes, and every row's bitmap against its offsets or groups.

    Raises ValueError, one line, naming the first row at fault.
    """
    check_parts(packed.bitmap, packed.offsets, packed.values, packed.scales, packed.columns, packed.group)
    _check_group(packed.columns, packed.keep, packed.group)
    row = int(
        torch.ops.prune_bench.bitmap_fault(
            packed.bitmap, packed.offsets, packed.nonzeros, packed.columns, packed.keep, packed.group
        )
    )
    if row == -2:
        raise ValueError(f"the offsets do not run from 0 to the {packed.nonzeros} values stored")
    if row >= 0:
        wanted = (
            f"{packed.keep} of every {packed.group} columns" if packed.group else "as many as its offsets"
        )
        raise ValueError(f"row {row}: its bitmap does not store {wanted} within {packed.columns} columns")


def check_parts(
    bitmap: Tensor,
    offsets: Tensor | None,
    values: Tensor,
    scales: Tensor | None,
    columns: int,
    group: int,
) -> None:
    """That the tensors have the shapes and dtypes of ``Bitmap``. Raises TypeError or ValueError."""
    rows = bitmap.shape[0] if bitmap.dim() == 2 else -1
    if rows < 0 or columns < 0 or bitmap.shape[1] != -(-columns // 64) or bitmap.dtype != torch.int64:
        raise ValueError(
            f"bitmap is {bitmap.dtype} {tuple(bitmap.shape)}: pass int64 [rows, {-(-columns // 64)}] for {columns} columns"
        )
    if values.dim() != 1 or values.dtype not in DTYPE_IDS:
        raise TypeError(
            f"values are {values.dtype} {tuple(values.shape)}: pass float32, bfloat16, float16 or int8 [nonzeros]"
        )
    if (offsets is None) != (group > 0):
        raise ValueError("offsets go with group = 0, and with no other")
    if offsets is not None and (offsets.dtype != torch.int64 or tuple(offsets.shape) != (rows + 1,)):
        raise ValueError(f"offsets are {offsets.dtype} {tuple(offsets.shape)}: pass int64 ({rows + 1},)")
    if (scales is None) != (values.dtype != torch.int8):
        raise ValueError(f"values are {values.dtype}: scales go with int8, and with no other")
    if scales is not None and (scales.dtype != torch.float32 or tuple(scales.shape) != (rows,)):
        raise ValueError(f"scales are {scales.dtype} {tuple(scales.shape)}: pass float32 ({rows},)")
    for part in (bitmap, offsets, values, scales):
        if part is not None and not part.is_contiguous():
            raise ValueError(f"a part of shape {tuple(part.shape)} is not contiguous: pass .contiguous()")
        if part is not None and part.device != bitmap.device:
            raise ValueError(f"a part is on {part.device}, bitmap on {bitmap.device}: pass all on one device")


def struct_of(
    bitmap: Tensor,
    offsets: Tensor | None,
    values: Tensor,
    scales: Tensor | None,
    columns: int,
    keep: int,
    group: int,
) -> BitmapStruct:
    """The parts as the native libraries take them; the caller keeps the tensors alive."""
    check_parts(bitmap, offsets, values, scales, columns, group)
    return BitmapStruct(
        dtype=DTYPE_IDS[values.dtype],
        keep=keep,
        group=group,
        rows=bitmap.shape[0],
        columns=columns,
        nonzeros=values.numel(),
        bitmap=bitmap.data_ptr() or None,
        offsets=None if offsets is None else offsets.data_ptr() or None,
        values=values.data_ptr() or None,
        scales=None if scales is None else scales.data_ptr() or None,
    )


def _check_group(columns: int, keep: int, group: int) -> None:
    if group < 0 or not 0 <= keep <= group:
        raise ValueError(f"keep={keep} of group={group}: keep must lie between 0 and group")
    if group > 0 and columns % group != 0:
        raise ValueError(f"group={group} does not divide the {columns} columns: pass a divisor")


def _round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and a float32 scale for each row: the largest magnitude becomes 127."""
    wide = weight.float()
    largest = wide.abs().amax(1) if weight.shape[1] else wide.new_zeros(weight.shape[0])
    if not bool(largest.isfinite().all()):
        row = int((~largest.isfinite()).int().argmax())
        raise ValueError(f"row {row} holds NaN or infinity, which int8 cannot: pack another dtype")
    scales = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return torch.round(wide / scales[:, None]).clamp(-127, 127).to(torch.int8), scales


def _grouped(weight: Tensor, keep: int, group: int) -> Tensor:
    """The mask of exactly ``keep`` entries in every group: the non-zero ones, then the lowest zeros."""
    stored = weight if weight.dtype == torch.bool else weight.view(twin._BITS_AS[weight.itemsize]) != 0
    groups = stored.unflatten(1, (stored.shape[1] // group, group))
    full = (groups.sum(2) > keep).any(1)
    if bool(full.any()):
        row = int(full.int().argmax())
        raise ValueError(
            f"row {row} has more than {keep} non-zero weights in a group of {group}: prune it to {keep}:{group}"
        )
    first = (~groups).to(torch.uint8).argsort(dim=2, stable=True)[..., :keep]
    return torch.zeros_like(groups).scatter_(2, first, True).flatten(1)


def _pack_params(weight: Tensor, bitmap: Tensor, offsets: Tensor) -> BitmapPackParams:
    return BitmapPackParams(
        abi=_native.ABI,
        threads=torch.get_num_threads(),
        itemsize=weight.itemsize,
        rows=weight.shape[0],
        columns=weight.shape[1],
        weight=weight.data_ptr() or None,
        weight_row_stride=weight.stride(0),
        weight_column_stride=weight.stride(1),
        bitmap=bitmap.data_ptr() or None,
        offsets=offsets.data_ptr(),
    )


def _scan_outputs(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    return (
        weight.new_empty((rows, -(-columns // 64)), dtype=torch.int64),
        weight.new_empty(rows + 1, dtype=torch.int64),
    )


def _scan(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    library = _native.load("cpu")
    if library.handle is None:
        return twin.bitmap_scan(weight, mask)
    bitmap, offsets = _scan_outputs(weight, mask)
    params = _pack_params(weight, bitmap, offsets)
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}: pass bool {tuple(weight.shape)}")
        params.mask, params.mask_row_stride, params.mask_column_stride = (
            mask.data_ptr() or None,
            *mask.stride(),
        )
    library.expect(library.call("bitmap_scan", params), f"bitmap_scan of {tuple(weight.shape)}")
    return bitmap, offsets


def _gather(weight: Tensor, bitmap: Tensor, offsets: Tensor, nonzeros: int) -> Tensor:
    library = _native.load("cpu")
    values = weight.new_empty(nonzeros)
    check_parts(bitmap, offsets, values, _scales_for(values, weight.shape[0]), weight.shape[1], 0)
    if library.handle is None:
        return twin.bitmap_gather(weight, bitmap, offsets, nonzeros)
    params = _pack_params(weight, bitmap, offsets)
    params.nonzeros, params.values = nonzeros, values.data_ptr() or None
    library.expect(library.call("bitmap_gather", params), f"bitmap_gather of {tuple(weight.shape)}")
    return values


def _scales_for(values: Tensor, rows: int) -> Tensor | None:
    """Stand-in scales, for steps that move values and leave scales alone."""
    return values.new_empty(rows, dtype=torch.float32) if values.dtype == torch.int8 else None


def _unpack(
    bitmap: Tensor, offsets: Tensor | None, values: Tensor, columns: int, keep: int, group: int
) -> Tensor:
    library = _native.load("cpu")
    weight = struct_of(bitmap, offsets, values, _scales_for(values, bitmap.shape[0]), columns, keep, group)
    weight.scales = None
    if library.handle is None:
        return twin.bitmap_unpack(bitmap, offsets, values, columns, keep, group)
    dense = values.new_empty(bitmap.shape[0], columns)
    params = BitmapUnpackParams(
        abi=_native.ABI,
        threads=torch.get_num_threads(),
        dense_row_stride=columns,
        weight=weight,
        dense=dense.data_ptr() or None,
    )
    library.expect(library.call("bitmap_unpack", params), f"bitmap_unpack to {tuple(dense.shape)}")
    return dense


def _fault(
    bitmap: Tensor, offsets: Tensor | None, nonzeros: int, columns: int, keep: int, group: int
) -> Tensor:
    library = _native.load("cpu")
    check_parts(bitmap, offsets, bitmap.new_empty(0, dtype=torch.float32), None, columns, group)
    if library.handle is None:
        return twin.bitmap_fault(bitmap, offsets, nonzeros, columns, keep, group)
    # Only bitmap and offsets are read; the values' place is filled by the bitmap's, which is never looked into.
    weight = BitmapStruct(
        dtype=DTYPE_IDS[torch.float32],
        keep=keep,
        group=group,
        rows=bitmap.shape[0],
        columns=columns,
        nonzeros=nonzeros,
        bitmap=bitmap.data_ptr() or None,
        offsets=None if offsets is None else offsets.data_ptr() or None,
        values=bitmap.data_ptr() or None,
    )
    row = ctypes.c_int64(-1)
    status = library.handle.prune_bench_cpu_bitmap_validate(
        _native.ABI, ctypes.byref(weight), ctypes.byref(row)
    )
    if status not in (0, _BAD_FORMAT):
        library.expect(status, f"bitmap_validate of {bitmap.shape[0]} x {columns}")
    return torch.tensor(row.value if status == 0 or row.value >= 0 else -2)


_library = torch.library.Library("prune_bench", "FRAGMENT")
_library.define("bitmap_scan(Tensor weight, Tensor? mask) -> (Tensor bitmap, Tensor offsets)")
_library.define("bitmap_gather(Tensor weight, Tensor bitmap, Tensor offsets, int nonzeros) -> Tensor")
_library.define(
    "bitmap_unpack(Tensor bitmap, Tensor? offsets, Tensor values, int columns, int keep, int group) -> Tensor"
)
_library.define(
    "bitmap_fault(Tensor bitmap, Tensor? offsets, int nonzeros, int columns, int keep, int group) -> Tensor"
)
for _name, _kernel in (
    ("bitmap_scan", _scan),
    ("bitmap_gather", _gather),
    ("bitmap_unpack", _unpack),
    ("bitmap_fault", _fault),
):
    _library.impl(_name, getattr(twin, _name), "CompositeExplicitAutograd")  # any other device
    _library.impl(_name, _kernel, "CPU")
torch.library.register_fake("prune_bench::bitmap_scan", _scan_outputs, lib=_library)


def _gathered(weight: Tensor, bitmap: Tensor, offsets: Tensor, nonzeros: int) -> Tensor:
    return weight.new_empty(nonzeros)


def _unpacked(
    bitmap: Tensor, offsets: Tensor | None, values: Tensor, columns: int, keep: int, group: int
) -> Tensor:
    return values.new_empty((bitmap.shape[0], columns))


def _found(
    bitmap: Tensor, offsets: Tensor | None, nonzeros: int, columns: int, keep: int, group: int
) -> Tensor:
    return bitmap.new_empty((), dtype=torch.int64)


torch.library.register_fake("prune_bench::bitmap_gather", _gathered, lib=_library)
torch.library.register_fake("prune_bench::bitmap_unpack", _unpacked, lib=_library)
torch.library.register_fake("prune_bench::bitmap_fault", _found, lib=_library)
