"""Programs of a decode step: products and what lies between them, done for one token by one native call.

All buffers are float32 vectors that the caller owns and the program keeps alive; caches are of the model's dtype.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from methods.kernels import _native
from methods.kernels._structs import (
    ActivateParams,
    AddNormParams,
    AttendParams,
    DecodePlace,
    DecodeStep,
)
from methods.kernels.formats import DTYPE_IDS
from methods.kernels.prepared import BitmapProduct, DenseProduct

__all__ = ["ACTIVATIONS", "Place", "Program", "available"]

ACTIVATIONS: Final = {"relu": 0, "silu": 1, "gelu_tanh": 2, "gelu": 3}
"""Activations that the library has."""
_KINDS: Final = {"bitmap": 0, "dense": 1, "add_norm": 2, "attend": 3, "activate": 4}


def available() -> bool:
    """Whether the CPU library is there."""
    return _native.load("cpu").handle is not None


class Place:
    """Where in a text a program's next step is: one for all its blocks."""

    def __init__(self, *, cos: Tensor | None = None, sin: Tensor | None = None) -> None:
        """``cos`` and ``sin``: float32 [capacity, head_dim], contiguous; both or neither."""
        for name, table in (("cos", cos), ("sin", sin)):
            if table is not None and (table.dtype != torch.float32 or not table.is_contiguous()):
                raise ValueError(f"{name} is {table.dtype}: pass contiguous float32")
        if (cos is None) != (sin is None):
            raise ValueError("cos and sin go together: pass both or neither")
        self._tables = (cos, sin)
        self._bias: Tensor | None = None
        self.struct = DecodePlace()

    def at(self, position: int, bias: Tensor | None = None) -> None:
        """Go to ``position``; ``bias`` [heads, position + 1] float32, contiguous, is added to the scores."""
        if bias is not None and (
            bias.dtype != torch.float32 or not bias.is_contiguous() or bias.shape[1] != position + 1
        ):
            raise ValueError(
                f"bias is {bias.dtype} {tuple(bias.shape)}: pass contiguous float32 [heads, {position + 1}]"
            )
        struct, self._bias = self.struct, bias
        struct.position = position
        for name, table in zip(("cos", "sin"), self._tables, strict=True):
            if table is not None:
                if not 0 <= position < table.shape[0]:
                    raise ValueError(f"position {position} is outside the tables of {table.shape[0]}")
                setattr(struct, name, table.data_ptr() + 4 * position * table.shape[1])
        struct.bias = None if bias is None else bias.data_ptr()
        struct.bias_stride = position + 1


class Program:
    """Steps in their order. What the library does not do is a Python call between two native runs of steps."""

    def __init__(self, threads: int, isa: str = "best") -> None:
        """Raises RuntimeError without the library."""
        library = _native.load("cpu")
        if library.handle is None:
            raise RuntimeError(f"no cpu library: {library.reason}")
        self._library, self._call = library, library.handle.prune_bench_cpu_run
        self._common = {"abi": _native.ABI, "isa": _native.ISA_IDS[isa]}
        self._threads = threads
        self._pieces: list[list[tuple[int, ctypes.Structure]] | Callable[[], object]] = []
        self._open: list[tuple[int, ctypes.Structure]] | None = (
            None  # the last piece, if it takes further steps
        )
        self._held: list[Any] = []
        self._ready: list[tuple[Any, int] | Callable[[], object]] | None = None
        self._failed = ctypes.c_int64()

    def add_norm(
        self,
        hidden: Tensor,
        out: Tensor | None,
        *,
        update: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 0.0,
        divisor: int | None = None,
        centred: bool = False,
    ) -> None:
        """``hidden`` += ``update``; ``out`` = its norm, unless that is None; see ``twins.decode.add_norm``."""
        width = hidden.shape[0]
        tensors = {"hidden": hidden, "update": update, "weight": weight, "bias": bias, "out": out}
        pointers = {name: self._vector(name, tensor, width) for name, tensor in tensors.items()}
        params = AddNormParams(
            **self._common, centred=centred, eps=eps, width=width, divisor=divisor or width, **pointers
        )
        self._add("add_norm", params)

    def attend(
        self,
        place: Place,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        *,
        scale: float,
    ) -> None:
        """``query`` [heads, dim], ``key`` and ``value`` [kv_heads, dim]: views with dense rows; caches as the twin."""
        heads, dim = query.shape
        kv_heads, capacity, _ = keys.shape
        for name, tensor, rows in (
            ("query", query, heads),
            ("key", key, kv_heads),
            ("value", value, kv_heads),
        ):
            bad = tuple(tensor.shape) != (rows, dim) or (dim > 1 and tensor.stride(1) != 1)
            if bad or tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}: pass float32 ({rows}, {dim})"
                )
        for name, cache in (("keys", keys), ("values", values)):
            if tuple(cache.shape) != (kv_heads, capacity, dim) or not cache.is_contiguous():
                raise ValueError(
                    f"{name} is {tuple(cache.shape)}: pass contiguous ({kv_heads}, {capacity}, {dim})"
                )
        if keys.dtype != values.dtype or keys.dtype not in DTYPE_IDS or keys.dtype == torch.int8:
            raise TypeError(f"caches are {keys.dtype}, {values.dtype}: pass float32, bfloat16 or float16")
        scratch = torch.empty(heads * (dim + capacity))
        self._held += [place, query, key, value, keys, values, scratch]
        params = AttendParams(
            **self._common,
            threads=self._threads,
            dtype=DTYPE_IDS[keys.dtype],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            capacity=capacity,
            place=ctypes.addressof(place.struct),
            query=query.data_ptr(),
            key=key.data_ptr(),
            value=value.data_ptr(),
            query_stride=query.stride(0),
            key_stride=key.stride(0),
            value_stride=value.stride(0),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            scale=scale,
            scratch=scratch.data_ptr(),
            out=self._vector("out", out, heads * dim),
        )
        self._add("attend", params)

    def activate(self, x: Tensor, out: Tensor, kind: str, *, gated: bool) -> None:
        """``x`` [width], or [2 width] where ``gated``, to ``out`` [width]; ``kind`` one of ``ACTIVATIONS``."""
        width = out.shape[0]
        params = ActivateParams(
            **self._common,
            kind=ACTIVATIONS[kind],
            gated=gated,
            width=width,
            in_=self._vector("x", x, 2 * width if gated else width),
            out=self._vector("out", out, width),
        )
        self._add("activate", params)

    def product(self, product: BitmapProduct | DenseProduct, x: Tensor, y: Tensor) -> None:
        """y = x Wᵀ + bias with vectors ``x`` and ``y``. Raises RuntimeError where the product is no native one."""
        ends = self._vector("x", x, product.columns), self._vector("y", y, product.rows)
        params = product.bound(*ends, self._threads)
        if params is None:
            raise RuntimeError("the product is not a native one")
        self._held.append(product)
        self._add("bitmap" if isinstance(product, BitmapProduct) else "dense", params)

    def call(self, function: Callable[[], object]) -> None:
        """Have ``function`` called between the steps before and those behind it."""
        self._ready = self._open = None
        self._pieces.append(function)

    def run(self) -> None:
        """Do all steps. Raises RuntimeError with the library's own line where it refuses one."""
        if self._ready is None:
            self._ready = [piece if callable(piece) else self._laid(piece) for piece in self._pieces]
        for piece in self._ready:
            if callable(piece):
                piece()
                continue
            steps, count = piece
            status = self._call(_native.ABI, steps, ctypes.c_int64(count), ctypes.byref(self._failed))
            self._library.expect(status, f"step {self._failed.value} of {count}")

    def _laid(self, piece: list[tuple[int, ctypes.Structure]]) -> tuple[Any, int]:
        steps = (DecodeStep * len(piece))(
            *(DecodeStep(kind, 0, ctypes.addressof(params)) for kind, params in piece)
        )
        return steps, len(piece)

    def _add(self, kind: str, params: ctypes.Structure) -> None:
        self._ready = None
        if self._open is None:
            self._open = []
            self._pieces.append(self._open)
        self._open.append((_KINDS[kind], params))

    def _vector(self, name: str, tensor: Tensor | None, size: int) -> int | None:
        if tensor is None:
            return None
        bad = tensor.dtype != torch.float32 or tuple(tensor.shape) != (size,) or not tensor.is_contiguous()
        if bad or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}: pass contiguous float32 ({size},)"
            )
        self._held.append(tensor)
        return tensor.data_ptr()
