"""Products of packed weights, and of dense ones to measure them against: y = x Wᵀ + bias, summed in float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from methods.kernels import _native
from methods.kernels._structs import BitmapMatmulParams, DenseMatmulParams
from methods.kernels.formats import DTYPE_IDS, Bitmap, struct_of
from methods.kernels.twins import bitmap as twin

__all__ = ["CUDA_TOKENS", "bitmap_matmul", "dense_matmul"]

CUDA_TOKENS = 16
"""Tokens up to which the CUDA kernel beats unpacking: it has a sum for each in registers."""


def bitmap_matmul(x: Tensor, weight: Bitmap, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for a packed ``weight`` [rows, columns], without a dense copy.

    ``x`` [tokens, columns] float32, bfloat16 or float16, any strides; ``bias`` [rows] floating or None. Returns
    [tokens, rows] in x's dtype; sums are float32, whatever the dtypes. Any number of threads gives the same bits;
    other instruction sets sum in another order. A NaN or infinity in ``x`` may or may not spread through weights
    that are not stored.

    Raises ValueError or TypeError for arguments that do not fit, RuntimeError where the weight's parts do not
    belong together; nothing outside of them is ever read.
    """
    y: Tensor = torch.ops.prune_bench.bitmap_matmul.default(
        x,
        weight.bitmap,
        weight.offsets,
        weight.values,
        weight.scales,
        bias,
        weight.columns,
        weight.keep,
        weight.group,
    )
    return y


def dense_matmul(
    x: Tensor, weight: Tensor, scales: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The same for a dense ``weight`` [rows, columns] in any dtype that packing has: the kernels' own baseline."""
    y: Tensor = torch.ops.prune_bench.dense_matmul.default(x, weight, scales, bias)
    return y


def _check_x(x: Tensor, columns: int, rows: int, bias: Tensor | None, device: torch.device) -> None:
    if x.dim() != 2 or x.shape[1] != columns:
        raise ValueError(f"x has shape {tuple(x.shape)}: pass [tokens, {columns}]")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}: pass torch.float32, torch.bfloat16 or torch.float16")
    if bias is not None and (tuple(bias.shape) != (rows,) or not bias.is_floating_point()):
        raise ValueError(f"bias is {bias.dtype} {tuple(bias.shape)}: pass floating ({rows},)")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, the weight on {device}: pass both on one device")


def _check_dense(weight: Tensor, scales: Tensor | None) -> None:
    if weight.dim() != 2 or weight.dtype not in DTYPE_IDS:
        raise TypeError(
            f"weight is {weight.dtype} {tuple(weight.shape)}: pass float32, bfloat16, float16 or int8 [rows, columns]"
        )
    if (scales is None) != (weight.dtype != torch.int8):
        raise ValueError(f"weight is {weight.dtype}: scales go with int8, and with no other")
    if scales is not None and (scales.dtype != torch.float32 or tuple(scales.shape) != (len(weight),)):
        raise ValueError(f"scales are {scales.dtype} {tuple(scales.shape)}: pass float32 ({len(weight)},)")


def _float_rows(x: Tensor) -> Tensor:
    """x as float32 with neighbouring columns side by side and rows that do not overlap."""
    wide = x.float()
    apart = wide.shape[0] <= 1 or wide.stride(0) >= wide.shape[1]
    return wide if apart and (wide.shape[1] <= 1 or wide.stride(1) == 1) else wide.contiguous()


def _plain_bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _bitmap_cpu(
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
    library = _native.load("cpu")
    if library.handle is None:
        _check_x(x, columns, bitmap.shape[0], bias, bitmap.device)
        plain = x.float().contiguous()  # torch's products round by strides
        return twin.bitmap_matmul(plain, bitmap, offsets, values, scales, bias, columns, keep, group).to(
            x.dtype
        )
    parts = (bitmap, offsets, values, scales, columns, keep, group)
    return call_bitmap(library, x, parts, bias, isa="best", threads=torch.get_num_threads())


Parts = tuple[Tensor, Tensor | None, Tensor, Tensor | None, int, int, int]


def call_bitmap(
    library: _native.Library, x: Tensor, parts: Parts, bias: Tensor | None, *, isa: str, threads: int
) -> Tensor:
    """Hand a product to a native library; tensors stay referenced until it returns, or the stream keeps them."""
    weight = struct_of(*parts)
    rows, tokens = weight.rows, x.shape[0]
    _check_x(x, weight.columns, rows, bias, parts[0].device)
    wide, plain = _float_rows(x), _plain_bias(bias)
    y = torch.empty((tokens, rows), dtype=torch.float32, device=x.device)
    params = BitmapMatmulParams(
        abi=_native.ABI,
        isa=_native.ISA_IDS[isa],
        threads=threads,
        weight=weight,
        tokens=tokens,
        x=wide.data_ptr() or None,
        x_row_stride=wide.stride(0),
        bias=None if plain is None else plain.data_ptr() or None,
        y=y.data_ptr() or None,
        y_row_stride=rows,
    )
    what = f"bitmap_matmul of {rows} x {weight.columns} with {tokens} tokens"
    stream = (ctypes.c_void_p(_stream(x)),) if library.kind == "cuda" else ()
    library.expect(library.call("bitmap_matmul", params, *stream), what)
    return y.to(x.dtype)


def _stream(x: Tensor) -> int | None:
    """The stream that torch would use, where ``x`` is on a GPU."""
    return int(torch.cuda.current_stream(x.device).cuda_stream) if x.is_cuda else None


def _bitmap_cuda(
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
    library = _native.load("cuda")
    if library.handle is not None and x.shape[0] <= CUDA_TOKENS:
        parts = (bitmap, offsets, values, scales, columns, keep, group)
        with torch.cuda.device(x.device):
            return call_bitmap(library, x, parts, bias, isa="best", threads=0)
    _check_x(x, columns, bitmap.shape[0], bias, bitmap.device)
    # Many tokens are for a matrix unit: the matrix is unpacked, and gone again at once.
    dense = twin.bitmap_unpack(bitmap, offsets, values, columns, keep, group)
    if scales is not None:
        dense = dense.float() * scales[:, None]
    return torch.nn.functional.linear(x, dense.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _dense_cpu(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
    library = _native.load("cpu")
    if library.handle is None:
        _check_dense(weight, scales)
        _check_x(x, weight.shape[1], weight.shape[0], bias, weight.device)
        plain = x.float().contiguous()
        return twin.dense_matmul(plain, weight.contiguous(), scales, bias).to(x.dtype)
    return call_dense(library, x, weight, scales, bias, isa="best", threads=torch.get_num_threads())


def call_dense(
    library: _native.Library,
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    *,
    isa: str,
    threads: int,
) -> Tensor:
    """Hand a dense product to the native CPU library."""
    _check_dense(weight, scales)
    rows, columns = weight.shape
    _check_x(x, columns, rows, bias, weight.device)
    apart = rows <= 1 or weight.stride(0) >= columns
    held = weight if apart and (columns <= 1 or weight.stride(1) == 1) else weight.contiguous()
    wide, plain = _float_rows(x), _plain_bias(bias)
    factors = None if scales is None else scales.contiguous()
    y = torch.empty((x.shape[0], rows), dtype=torch.float32)
    params = DenseMatmulParams(
        abi=_native.ABI,
        isa=_native.ISA_IDS[isa],
        threads=threads,
        dtype=DTYPE_IDS[weight.dtype],
        rows=rows,
        columns=columns,
        weight=held.data_ptr() or None,
        weight_row_stride=held.stride(0),
        scales=None if factors is None else factors.data_ptr() or None,
        tokens=x.shape[0],
        x=wide.data_ptr() or None,
        x_row_stride=wide.stride(0),
        bias=None if plain is None else plain.data_ptr() or None,
        y=y.data_ptr() or None,
        y_row_stride=rows,
    )
    library.expect(library.call("dense_matmul", params), f"dense_matmul of {rows} x {columns}")
    return y.to(x.dtype)


_library = torch.library.Library("prune_bench", "FRAGMENT")
_library.define(
    "bitmap_matmul(Tensor x, Tensor bitmap, Tensor? offsets, Tensor values, Tensor? scales, Tensor? bias,"
    " int columns, int keep, int group) -> Tensor"
)
_library.define("dense_matmul(Tensor x, Tensor weight, Tensor? scales, Tensor? bias) -> Tensor")
_library.impl("bitmap_matmul", twin.bitmap_matmul, "CompositeExplicitAutograd")  # any other device
_library.impl("bitmap_matmul", _bitmap_cpu, "CPU")
_library.impl("bitmap_matmul", _bitmap_cuda, "CUDA")
_library.impl("dense_matmul", twin.dense_matmul, "CompositeExplicitAutograd")
_library.impl("dense_matmul", _dense_cpu, "CPU")


def _bitmap_shape(
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
    return x.new_empty((x.shape[0], bitmap.shape[0]))


def _dense_shape(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


torch.library.register_fake("prune_bench::bitmap_matmul", _bitmap_shape, lib=_library)
torch.library.register_fake("prune_bench::dense_matmul", _dense_shape, lib=_library)
