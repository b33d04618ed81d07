"""Fuzzed: packed matrices as the operators take them, and the arguments of every function of the C interface.

A finding here may be a dead process, so these run in one of their own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fuzz.refusals import Finding, refusals

from methods.kernels import _native, _structs, formats, products
from methods.kernels.formats import Bitmap

_GUARD = 64
_CANARY = 0xA5
_LAST_STATUS = 14
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
_INT32 = (-1, -(1 << 31), (1 << 31) - 1, 0, 1, 2, 3, 4, 5, 64, 70000)
_SIZES = (-1, -(1 << 63), (1 << 63) - 1, (1 << 62) + 1, 1 << 45, 0)
"""None of these is a size that a caller could have: 0, or out of all bounds."""


class _Bytes:
    """An input as a source of small decisions; zeros once it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1."""
        self._at += 1
        return self._data[self._at - 1] % bound if self._at <= len(self._data) else 0

    def of(self, choices: Any) -> Any:
        """One of the choices."""
        return choices[self.below(len(choices))]

    def fill(self, size: int) -> np.ndarray[Any, Any]:
        """So many bytes, what is left of the input over and over."""
        rest = self._data[self._at :] or b"\0"
        return np.resize(np.frombuffer(rest, np.uint8), size)


def packed(data: bytes) -> None:
    """A bitmap matrix whose every part comes from the input: valid ones multiply as they unpack, others are refused."""
    given = _Bytes(data)
    rows, columns, tokens = given.below(7), given.below(200), given.below(4)
    dtype = given.of(_DTYPES)
    group = given.of((0, 0, 4, 8, 3, 64))
    keep = given.below(group + 2) if group else given.of((0, 0, 0, 1))
    odd = given.below(32)
    words = -(-columns // 64)
    bits = torch.from_numpy(given.fill(rows * words * 8).copy().view(np.int64)).reshape(rows, words)
    if columns % 64 and odd != 1:
        bits[:, -1:] &= (1 << columns % 64) - 1
    counts = torch.tensor(
        [sum((int(word) & (1 << 64) - 1).bit_count() for word in row) for row in bits], dtype=torch.int64
    )
    nonzeros = int(counts.sum()) + (given.of((-1, 1, 1000)) if odd == 2 else 0)
    values = torch.from_numpy(given.fill(max(0, nonzeros) * 4).copy().view(np.float32)).to(dtype)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    if odd == 3 and rows:
        offsets[given.below(rows + 1)] = given.of((-1, 1 << 40, -(1 << 62), 0, 7))
    scales = torch.from_numpy(given.fill(rows * 4).copy().view(np.float32)) if dtype == torch.int8 else None
    if odd == 4:
        columns = given.of((-1, 1 << 62, columns + 64, columns + 1, 1 << 40))
    if odd == 5:
        bits = bits.flatten()
    if odd == 6:
        bits = torch.cat([bits, bits], 1)[:, ::2]
    matrix = Bitmap(bits, None if group else offsets, values, scales, columns, keep, group)
    valid = False
    with refusals(ValueError, TypeError, RuntimeError):
        formats.validate(matrix)
        valid = True
    x = torch.ones(tokens, max(0, min(columns, 400)))
    steps: tuple[Callable[[], Any], ...] = (
        lambda: formats.unpack(matrix),
        lambda: products.bitmap_matmul(x, matrix),
    )
    for step in steps:
        if valid:
            step()
        else:
            with refusals(ValueError, TypeError, RuntimeError):
                step()


class _Buffers:
    """Memory handed to the library, with guards around it that it must leave alone."""

    def __init__(self, given: _Bytes) -> None:
        self._given, self._kept = given, list[np.ndarray[Any, Any]]()

    def pointer(self, items: int, *, hostile: bool = False) -> int:
        """Address, aligned to 64 bytes, of room for so many items of 8 bytes; small floats, or bytes of the input."""
        size = max(1, items) * 8
        room = np.full(size + 4 * _GUARD, _CANARY, np.uint8)
        start = -room.ctypes.data % 64 + _GUARD
        inner = room[start : start + size]
        inner[:] = (
            self._given.fill(size)
            if hostile
            else np.resize(np.array([0.5, 1.0], np.float32).view(np.uint8), size)
        )
        self._kept += [room, np.array([start, size])]
        return room.ctypes.data + start

    def check(self) -> None:
        """Raises Finding where a guard was written to."""
        for room, (start, size) in zip(self._kept[::2], self._kept[1::2], strict=True):
            if (room[:start] != _CANARY).any() or (room[start + size + 8 :] != _CANARY).any():
                raise Finding("the library wrote outside of what it was given")


def abi(data: bytes) -> None:
    """Sound arguments of one function with up to four faults in them: null or odd pointers, sizes that cannot be, unknown ids."""
    library = _native.load("cpu")
    if library.handle is None:
        raise Finding(f"there is no native library to fuzz: {library}")
    given = _Bytes(data)
    buffers = _Buffers(given)
    name, params, free = given.of(_FUNCTIONS)(given, buffers)
    for _ in range(given.below(5)):
        _spoil(params, given, free)
    code = ctypes.c_int64(-1)
    function = getattr(library.handle, f"prune_bench_cpu_{name}")
    this = None if given.below(64) == 63 else ctypes.byref(params)
    if name == "bitmap_validate":
        status = function(
            given.of((_native.ABI, _native.ABI, 0, -1)), this, given.of((ctypes.byref(code),) * 7 + (None,))
        )
    else:
        status = function(this)
    if not 0 <= status <= _LAST_STATUS or not library.handle.prune_bench_message(status):
        raise Finding(f"{name} returned {status}")
    buffers.check()


def _spoil(params: ctypes.Structure, given: _Bytes, free: frozenset[str]) -> None:
    """One fault, in a field that the library can judge: those of `free` are strides that any value may have."""
    fields = [(name, kind) for name, kind, *_ in params._fields_ if name not in free]
    name, kind = given.of(fields)
    value = getattr(params, name)
    if isinstance(value, ctypes.Structure):
        _spoil(value, given, free)
    elif kind is ctypes.c_void_p:
        setattr(
            params,
            name,
            given.of((None, None if value is None else value + 1, None if value is None else value + 2)),
        )
    elif kind is ctypes.c_int32:
        setattr(params, name, given.of(_INT32))
    elif kind is ctypes.c_int64:
        setattr(params, name, given.of((*_SIZES, max(0, value - 1))))
    else:
        setattr(params, name, given.of((0.0, -1.0, float("nan"), float("inf"), 1e-30)))


def _sizes(given: _Bytes) -> tuple[int, int, int]:
    return given.below(6), given.below(140), given.below(4)


def _bitmap(given: _Bytes, buffers: _Buffers, rows: int, columns: int) -> _structs.BitmapStruct:
    """Parts that fit by their sizes; what they say is the input's, or sound."""
    words = -(-columns // 64)
    group = given.of((0, 0, 4)) if columns % 4 == 0 else 0
    keep = given.below(5) if group else 0
    weight = _structs.BitmapStruct(dtype=given.below(4), keep=keep, group=group, rows=rows, columns=columns)
    weight.nonzeros = rows * (columns // group * keep) if group else given.below(rows * columns + 1)
    weight.bitmap = buffers.pointer(rows * words, hostile=True)
    weight.offsets = None if group else buffers.pointer(rows + 1, hostile=True)
    weight.values = buffers.pointer(rows * columns)
    weight.scales = buffers.pointer(rows) if weight.dtype == 3 else None
    if given.below(2) and not group:
        # a diagonal: one value a row, as the offsets say
        bits = (ctypes.c_uint64 * (rows * words)).from_address(weight.bitmap)
        starts = (ctypes.c_int64 * (rows + 1)).from_address(weight.offsets)
        weight.nonzeros = rows if columns else 0
        for row in range(rows + 1):
            starts[row] = row if columns else 0
        for row in range(rows if columns else 0):
            for word in range(words):
                bits[row * words + word] = 1 << row % min(64, columns) if word == 0 else 0
    return weight


def _matmul(given: _Bytes, buffers: _Buffers) -> tuple[str, ctypes.Structure, frozenset[str]]:
    rows, columns, tokens = _sizes(given)
    return (
        "bitmap_matmul",
        _structs.BitmapMatmulParams(
            abi=_native.ABI,
            threads=given.below(3),
            weight=_bitmap(given, buffers, rows, columns),
            tokens=tokens,
            x=buffers.pointer(tokens * columns),
            x_row_stride=columns,
            bias=given.of((None, buffers.pointer(rows))),
            y=buffers.pointer(tokens * rows),
            y_row_stride=rows,
        ),
        frozenset(),
    )


def _dense(given: _Bytes, buffers: _Buffers) -> tuple[str, ctypes.Structure, frozenset[str]]:
    rows, columns, tokens = _sizes(given)
    dtype = given.below(4)
    return (
        "dense_matmul",
        _structs.DenseMatmulParams(
            abi=_native.ABI,
            threads=given.below(3),
            dtype=dtype,
            rows=rows,
            columns=columns,
            weight=buffers.pointer(rows * columns),
            weight_row_stride=columns,
            scales=buffers.pointer(rows) if dtype == 3 else None,
            tokens=tokens,
            x=buffers.pointer(tokens * columns),
            x_row_stride=columns,
            bias=given.of((None, buffers.pointer(rows))),
            y=buffers.pointer(tokens * rows),
            y_row_stride=rows,
        ),
        frozenset(),
    )


def _packing(given: _Bytes, buffers: _Buffers, name: str) -> tuple[str, ctypes.Structure, frozenset[str]]:
    rows, columns, _ = _sizes(given)
    hostile = name == "bitmap_gather"
    return (
        name,
        _structs.BitmapPackParams(
            abi=_native.ABI,
            threads=given.below(3),
            itemsize=given.of((1, 2, 4)),
            rows=rows,
            columns=columns,
            weight=buffers.pointer(rows * columns),
            weight_row_stride=columns,
            weight_column_stride=1,
            mask=given.of((None, buffers.pointer(rows * columns))),
            mask_row_stride=columns,
            mask_column_stride=1,
            bitmap=buffers.pointer(rows * -(-columns // 64), hostile=hostile),
            offsets=buffers.pointer(rows + 1, hostile=hostile),
            nonzeros=given.below(rows * columns + 1),
            values=buffers.pointer(rows * columns),
        ),
        frozenset({"weight_row_stride", "weight_column_stride", "mask_row_stride", "mask_column_stride"}),
    )


def _unpacking(given: _Bytes, buffers: _Buffers) -> tuple[str, ctypes.Structure, frozenset[str]]:
    rows, columns, _ = _sizes(given)
    weight = _bitmap(given, buffers, rows, columns)
    room = buffers.pointer(rows * columns)
    params = _structs.BitmapUnpackParams(
        abi=_native.ABI, threads=given.below(3), dense_row_stride=columns, weight=weight, dense=room
    )
    return "bitmap_unpack", params, frozenset()


def _validating(given: _Bytes, buffers: _Buffers) -> tuple[str, ctypes.Structure, frozenset[str]]:
    rows, columns, _ = _sizes(given)
    return "bitmap_validate", _bitmap(given, buffers, rows, columns), frozenset()


def _sweep(given: _Bytes, buffers: _Buffers) -> tuple[str, ctypes.Structure, frozenset[str]]:
    rows, columns, _ = _sizes(given)
    size = rows * columns
    group = given.of((0, 4, 2)) if columns % 4 == 0 else 0
    levels = given.of((0, 16))
    params = _structs.ObsSweepParams(
        abi=_native.ABI,
        threads=given.below(3),
        keep=given.below(group + 1),
        group=group,
        levels=levels,
        rows=rows,
        columns=columns,
        weight=buffers.pointer(size),
        weight_row_stride=columns,
        weight_column_stride=1,
        factor=buffers.pointer(columns * columns),
        factor_row_stride=columns,
        factor_column_stride=1,
        mask=None if group else given.of((None, buffers.pointer(size))),
        mask_row_stride=columns,
        mask_column_stride=1,
        divisor=given.of((None, buffers.pointer(columns))),
        scale=buffers.pointer(rows),
        zero=buffers.pointer(rows),
        values=buffers.pointer(size),
        errors=buffers.pointer(size),
        removed=buffers.pointer(size),
        loss=buffers.pointer(rows),
    )
    strides = {f"{part}_{way}_stride" for part in ("weight", "factor", "mask") for way in ("row", "column")}
    return "obs_sweep", params, frozenset(strides)


def _norm(given: _Bytes, buffers: _Buffers) -> tuple[str, ctypes.Structure, frozenset[str]]:
    width = 1 + given.below(140)
    return (
        "add_norm",
        _structs.AddNormParams(
            abi=_native.ABI,
            centred=given.below(2),
            eps=1e-5,
            width=width,
            divisor=width,
            hidden=buffers.pointer(width),
            update=buffers.pointer(width),
            weight=buffers.pointer(width),
            bias=buffers.pointer(width),
            out=buffers.pointer(width),
        ),
        frozenset(),
    )


def _attend(given: _Bytes, buffers: _Buffers) -> tuple[str, ctypes.Structure, frozenset[str]]:
    kv_heads, head_dim, capacity = 1 + given.below(3), 2 + 2 * given.below(20), 1 + given.below(20)
    heads = kv_heads * (1 + given.below(3))
    position = given.below(capacity)
    place = buffers.pointer(8)
    at = _structs.DecodePlace.from_address(place)
    at.position, at.cos, at.sin = position, buffers.pointer(head_dim), buffers.pointer(head_dim)
    at.bias, at.bias_stride = given.of((None, buffers.pointer(heads * capacity))), position + 1
    for _ in range(given.below(3)):
        _spoil(at, given, frozenset())
    cache = kv_heads * capacity * head_dim
    return (
        "attend",
        _structs.AttendParams(
            abi=_native.ABI,
            threads=given.below(3),
            dtype=given.below(3),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            capacity=capacity,
            place=place,
            query=buffers.pointer(heads * head_dim),
            key=buffers.pointer(kv_heads * head_dim),
            value=buffers.pointer(kv_heads * head_dim),
            query_stride=head_dim,
            key_stride=head_dim,
            value_stride=head_dim,
            keys=buffers.pointer(cache),
            values=buffers.pointer(cache),
            scale=0.5,
            scratch=buffers.pointer(heads * (head_dim + capacity)),
            out=buffers.pointer(heads * head_dim),
        ),
        frozenset(),
    )


def _activate(given: _Bytes, buffers: _Buffers) -> tuple[str, ctypes.Structure, frozenset[str]]:
    width = 1 + given.below(140)
    return (
        "activate",
        _structs.ActivateParams(
            abi=_native.ABI,
            kind=given.below(4),
            gated=given.below(2),
            width=width,
            in_=buffers.pointer(2 * width),
            out=buffers.pointer(width),
        ),
        frozenset(),
    )


_FUNCTIONS = (
    _matmul,
    _dense,
    lambda given, buffers: _packing(given, buffers, "bitmap_scan"),
    lambda given, buffers: _packing(given, buffers, "bitmap_gather"),
    _unpacking,
    _validating,
    _sweep,
    _norm,
    _attend,
    _activate,
)


def packed_seeds() -> list[bytes]:
    """Every dtype and group."""
    return [
        bytes([3, 70, 2, dtype, group, 2, odd]) + bytes(range(1, 90))
        for dtype in range(4)
        for group in (0, 2)
        for odd in range(7)
    ]


def abi_seeds() -> list[bytes]:
    """Every function, sound and spoilt."""
    return [
        bytes([function, 3, 68, 2, 1]) + bytes([seed] * 12) + bytes(range(48))
        for function in range(10)
        for seed in (0, 3, 77)
    ]
