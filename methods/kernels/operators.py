"""Operators declared once, with a kernel for each device: native code where it is, else the torch twin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.kernels import _native
from methods.kernels.twins import obs_sweep as twin

__all__ = ["Grid", "NativeStatus", "Sweep", "native_status", "obs_sweep"]

CUDA_COLUMNS = 128  # what the CUDA kernel holds in shared memory


@dataclass(frozen=True)
class Grid:
    """A row-wise quantiser: q = scale (clamp(round(w / scale) + zero, 0, levels - 1) - zero), halves to even.

    ``scale`` and ``zero`` [rows] float32; ``levels`` is 2 to the number of bits.
    """

    scale: Tensor
    zero: Tensor
    levels: int


@dataclass(frozen=True)
class Sweep:
    """What a sweep gives.

    ``values`` [rows, B] float32, pruned and on the grid. ``errors`` [rows, B] float32, (w - q) / U_jj, which
    the caller spreads over later blocks. ``mask`` [rows, B] bool, True where a weight was removed by choice.
    ``loss`` [rows] float32, half the sum of squared errors.
    """

    values: Tensor
    errors: Tensor
    mask: Tensor
    loss: Tensor


@dataclass(frozen=True)
class NativeStatus:
    """One native library as ``bench doctor`` shows it: in use, or the reason why the torch twin serves."""

    kind: str
    loaded: bool
    path: str
    version: str
    isa: str
    reason: str


def native_status() -> tuple[NativeStatus, ...]:
    """State of the CPU and the CUDA library, in that order."""
    libraries = (_native.load("cpu"), _native.load("cuda"))
    return tuple(
        NativeStatus(lib.kind, lib.handle is not None, lib.path, lib.version, lib.isa, lib.reason)
        for lib in libraries
    )


def obs_sweep(
    weight: Tensor,
    factor: Tensor,
    *,
    mask: Tensor | None = None,
    keep: int = 0,
    group: int = 0,
    grid: Grid | None = None,
    divisor: Tensor | None = None,
) -> Sweep:
    """Prune and quantise one block of columns, compensating within the block (SparseGPT, algorithm 1).

    Per column j: q; e = (w - q) / U_jj; w[:, k] -= e U[j, k] for k > j.

    ``weight`` [rows, B] float32, any strides, left unchanged: the block as compensated so far. ``factor`` [B,
    B] float32, the block of the upper triangular U with H^-1 = U^T U; its diagonal must be positive. At most
    one of ``mask`` [rows, B] bool (True removes) and ``keep``/``group``: keep ``keep`` of every ``group``
    consecutive columns, chosen inside the sweep by w^2 / d_j^2 on current weights, the lowest index removed
    first among equal ones, a NaN kept longest; d is ``divisor`` [B] float32, U's diagonal where None. ``grid`` is
    applied after masking. A NaN or infinity spreads along its row only.

    The result has the same bits on every device, instruction set and thread count, and in the torch twin.
    Raises ValueError or TypeError for arguments that do not fit together.
    """
    _check(weight, factor, mask, keep, group, grid, divisor)
    scale, zero, levels = (None, None, 0) if grid is None else (grid.scale, grid.zero, grid.levels)
    op = torch.ops.prune_bench.obs_sweep.default
    return Sweep(*op(weight, factor, mask, keep, group, scale, zero, levels, divisor))


def _check(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    keep: int,
    group: int,
    grid: Grid | None,
    divisor: Tensor | None,
) -> None:
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: pass [rows, columns]")
    rows, columns = weight.shape
    named: list[tuple[str, Tensor, tuple[int, ...], torch.dtype]] = [
        ("weight", weight, (rows, columns), torch.float32),
        ("factor", factor, (columns, columns), torch.float32),
    ]
    if mask is not None:
        named.append(("mask", mask, (rows, columns), torch.bool))
    if divisor is not None:
        named.append(("divisor", divisor, (columns,), torch.float32))
    if grid is not None:
        named += [
            ("grid.scale", grid.scale, (rows,), torch.float32),
            ("grid.zero", grid.zero, (rows,), torch.float32),
        ]
        if not 2 <= grid.levels <= 65536:
            raise ValueError(
                f"grid.levels is {grid.levels}: pass 2 to 65536, which is 2 to the number of bits"
            )
    for name, tensor, shape, dtype in named:
        if tensor.dtype != dtype:
            raise TypeError(f"{name} is {tensor.dtype}: pass {dtype}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: pass {shape}, to match weight")
        if tensor.device != weight.device:
            raise ValueError(
                f"{name} is on {tensor.device}, weight on {weight.device}: pass both on one device"
            )
    if mask is not None and group != 0:
        raise ValueError(f"mask and group={group} exclude each other: pass one of them")
    if divisor is not None and group == 0:
        raise ValueError("divisor without group ranks nothing: leave it out, or pass keep and group")
    if group < 0 or (group == 0 and keep != 0) or not 0 <= keep <= group:
        raise ValueError(f"keep={keep} of group={group}: keep must lie between 0 and group")
    if group > 0 and columns % group != 0:
        raise ValueError(
            f"group={group} does not divide the {columns} columns of the block: pass a multiple of it"
        )


def _outputs(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = weight.shape
    values = weight.new_empty((rows, columns))
    return (
        values,
        weight.new_empty((rows, columns)),
        weight.new_empty((rows, columns), dtype=torch.bool),
        weight.new_empty(rows),
    )


def _call(
    library: _native.Library,
    tensors: tuple[Tensor, ...],
    optional: tuple[Tensor | None, ...],
    sizes: tuple[int, ...],
    *,
    isa: str,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hand pointers, sizes and strides to a native library; tensors stay referenced until it returns."""
    weight, factor = tensors
    mask, scale, zero, divisor = optional
    keep, group, levels = sizes
    scale = None if scale is None else scale.contiguous()
    zero = None if zero is None else zero.contiguous()
    divisor = None if divisor is None else divisor.contiguous()
    values, errors, removed, loss = outputs = _outputs(weight)
    params = _native.ObsSweepParams(
        abi=_native.ABI,
        isa=_native.ISA_IDS[isa],
        threads=threads,
        keep=keep,
        group=group,
        levels=levels,
        rows=weight.shape[0],
        columns=weight.shape[1],
        weight=weight.data_ptr(),
        weight_row_stride=weight.stride(0),
        weight_column_stride=weight.stride(1),
        factor=factor.data_ptr(),
        factor_row_stride=factor.stride(0),
        factor_column_stride=factor.stride(1),
        mask=None if mask is None else mask.data_ptr(),
        mask_row_stride=0 if mask is None else mask.stride(0),
        mask_column_stride=0 if mask is None else mask.stride(1),
        divisor=None if divisor is None else divisor.data_ptr(),
        scale=None if scale is None else scale.data_ptr(),
        zero=None if zero is None else zero.data_ptr(),
        values=values.data_ptr(),
        errors=errors.data_ptr(),
        removed=removed.data_ptr(),
        loss=loss.data_ptr(),
    )
    if weight.is_cuda:
        with torch.cuda.device(weight.device):
            library.obs_sweep(params, torch.cuda.current_stream().cuda_stream)
    else:
        library.obs_sweep(params)
    return outputs


def _cpu(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    keep: int,
    group: int,
    scale: Tensor | None,
    zero: Tensor | None,
    levels: int,
    divisor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    library = _native.load("cpu")
    if library.handle is None:
        return twin.obs_sweep(weight, factor, mask, keep, group, scale, zero, levels, divisor)
    threads = torch.get_num_threads()
    optional, sizes = (mask, scale, zero, divisor), (keep, group, levels)
    return _call(library, (weight, factor), optional, sizes, isa="best", threads=threads)


def _cuda(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    keep: int,
    group: int,
    scale: Tensor | None,
    zero: Tensor | None,
    levels: int,
    divisor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    library = _native.load("cuda")
    if library.handle is None or weight.shape[1] > CUDA_COLUMNS:
        return twin.obs_sweep(weight, factor, mask, keep, group, scale, zero, levels, divisor)
    optional, sizes = (mask, scale, zero, divisor), (keep, group, levels)
    return _call(library, (weight, factor), optional, sizes, isa="best", threads=0)


def _shapes(weight: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(weight)


# Library.impl rather than custom_op: a third of the cost a call.
_library = torch.library.Library("prune_bench", "DEF")
_library.define(
    "obs_sweep(Tensor weight, Tensor factor, Tensor? mask, int keep, int group, Tensor? scale, Tensor? zero,"
    " int levels, Tensor? divisor) -> (Tensor values, Tensor errors, Tensor removed, Tensor loss)"
)
_library.impl("obs_sweep", twin.obs_sweep, "CompositeExplicitAutograd")  # any other device
_library.impl("obs_sweep", _cpu, "CPU")
_library.impl("obs_sweep", _cuda, "CUDA")
torch.library.register_fake("prune_bench::obs_sweep", _shapes, lib=_library)
