"""Products that are called for every token: all that does not change is checked and laid out once."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from methods.kernels import _native
from methods.kernels._structs import BitmapMatmulParams, DenseMatmulParams
from methods.kernels.formats import DTYPE_IDS, Bitmap, struct_of
from methods.kernels.products import bitmap_matmul, dense_matmul

__all__ = ["BitmapProduct", "DenseProduct"]


class _Product:
    """y = x Wᵀ + bias with x [..., columns] floating and y [..., rows] in x's dtype; sums are float32.

    With the native library a call costs a few microseconds less than the operator it equals bit for bit; where the
    weight lies elsewhere, or without the library, that operator serves. Calls may come from any thread.
    """

    rows: int
    columns: int

    def __init__(self, device: torch.device, bias: Tensor | None, rows: int) -> None:
        if bias is not None and (tuple(bias.shape) != (rows,) or not bias.is_floating_point()):
            raise ValueError(f"bias is {bias.dtype} {tuple(bias.shape)}: pass floating ({rows},)")
        if bias is not None and bias.device != device:
            raise ValueError(f"bias is on {bias.device}, the weight on {device}: pass both on one device")
        self.device = device
        self.bias = bias
        self._wide_bias = None if bias is None else bias.detach().float().contiguous()
        library = _native.load("cpu")
        self._library = library if device.type == "cpu" and library.handle is not None else None
        self._kind: Any = None
        self._template: ctypes.Structure | None = None
        self._call: Any = None

    def _native(self, name: str, params: Any) -> None:
        if self._library is None:
            return
        params.abi = _native.ABI
        params.isa = _native.ISA_IDS["best"]
        params.bias = None if self._wide_bias is None else self._wide_bias.data_ptr() or None
        params.y_row_stride = self.rows
        params.x_row_stride = self.columns
        self._kind, self._template = type(params), params
        self._call = getattr(self._library.handle, f"prune_bench_cpu_{name}")

    def _operator(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """The product. Raises TypeError or ValueError for an ``x`` that does not fit."""
        *outer, columns = x.shape
        if columns != self.columns:
            raise ValueError(f"x has shape {tuple(x.shape)}: pass [..., {self.columns}]")
        if self._template is None or x.device != self.device or not x.is_floating_point():
            return self._operator(x.reshape(-1, columns)).view(*outer, self.rows)
        wide = x if x.dtype == torch.float32 else x.float()
        if not wide.is_contiguous():
            wide = wide.contiguous()
        y = torch.empty((*outer, self.rows), dtype=torch.float32)
        params = self._kind.from_buffer_copy(self._template)  # its own, so that threads do not share one
        params.threads = torch.get_num_threads()
        params.tokens = y.numel() // self.rows if self.rows else 0
        params.x = wide.data_ptr() or None
        params.y = y.data_ptr() or None
        status = self._call(ctypes.byref(params))
        if status != 0 and self._library is not None:
            self._library.expect(status, f"product of {self.rows} x {self.columns} weights")
        return y if x.dtype == torch.float32 else y.to(x.dtype)

    def bound(self, x: int | None, y: int | None, threads: int) -> ctypes.Structure | None:
        """The native call for one token, float32 vectors [columns] at ``x`` and [rows] at ``y``, as addresses.

        For ``decode.Program``, which checks them and keeps them alive. None where the operator serves.
        """
        if self._template is None:
            return None
        params: ctypes.Structure = self._kind.from_buffer_copy(self._template)
        params.threads, params.tokens, params.x, params.y = threads, 1, x, y
        return params


class BitmapProduct(_Product):
    """The product of a packed weight; holds its parts, not a copy."""

    def __init__(self, weight: Bitmap, bias: Tensor | None = None) -> None:
        self.weight, self.rows, self.columns = weight, weight.rows, weight.columns
        super().__init__(weight.bitmap.device, bias, weight.rows)
        parts = (weight.bitmap, weight.offsets, weight.values, weight.scales)
        struct = struct_of(*parts, weight.columns, weight.keep, weight.group)
        self._native("bitmap_matmul", BitmapMatmulParams(weight=struct))

    def _operator(self, x: Tensor) -> Tensor:
        return bitmap_matmul(x, self.weight, self.bias)


class DenseProduct(_Product):
    """The product of a dense weight [rows, columns], contiguous, in a dtype that packing has."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, scales: Tensor | None = None) -> None:
        if weight.dim() != 2 or weight.dtype not in DTYPE_IDS or not weight.is_contiguous():
            raise ValueError(
                f"weight is {weight.dtype} {tuple(weight.shape)} with strides {weight.stride()}: "
                "pass contiguous [rows, columns] in float32, bfloat16, float16 or int8"
            )
        if (scales is None) != (weight.dtype != torch.int8):
            raise ValueError(f"weight is {weight.dtype}: scales go with int8, and with no other")
        self.weight, self.scales = weight.detach(), None if scales is None else scales.contiguous()
        self.rows, self.columns = weight.shape
        super().__init__(weight.device, bias, self.rows)
        params = DenseMatmulParams(
            dtype=DTYPE_IDS[weight.dtype],
            rows=self.rows,
            columns=self.columns,
            weight=self.weight.data_ptr() or None,
            weight_row_stride=self.columns,
            scales=None if self.scales is None else self.scales.data_ptr() or None,
        )
        self._native("dense_matmul", params)

    def _operator(self, x: Tensor) -> Tensor:
        return dense_matmul(x, self.weight, self.scales, self.bias)
