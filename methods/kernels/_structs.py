"""The parameter structs of cuda/include/prune_bench.h, field for field."""

from __future__ import annotations

import ctypes

__all__ = [
    "ActivateParams",
    "AddNormParams",
    "AttendParams",
    "BitmapMatmulParams",
    "BitmapPackParams",
    "BitmapStruct",
    "BitmapUnpackParams",
    "DecodePlace",
    "DecodeStep",
    "DenseMatmulParams",
    "ObsSweepParams",
]


class ObsSweepParams(ctypes.Structure):
    """``prune_bench_obs_sweep_params``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("keep", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("levels", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("weight_row_stride", ctypes.c_int64),
        ("weight_column_stride", ctypes.c_int64),
        ("factor", ctypes.c_void_p),
        ("factor_row_stride", ctypes.c_int64),
        ("factor_column_stride", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_row_stride", ctypes.c_int64),
        ("mask_column_stride", ctypes.c_int64),
        ("divisor", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
        ("removed", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
    )


class BitmapStruct(ctypes.Structure):
    """``prune_bench_bitmap``."""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("keep", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("nonzeros", ctypes.c_int64),
        ("bitmap", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )


class BitmapMatmulParams(ctypes.Structure):
    """``prune_bench_bitmap_matmul_params``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("weight", BitmapStruct),
        ("tokens", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_row_stride", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("y_row_stride", ctypes.c_int64),
    )


class DenseMatmulParams(ctypes.Structure):
    """``prune_bench_dense_matmul_params``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("weight_row_stride", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("tokens", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_row_stride", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("y_row_stride", ctypes.c_int64),
    )


class BitmapPackParams(ctypes.Structure):
    """``prune_bench_bitmap_pack_params``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("itemsize", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("weight_row_stride", ctypes.c_int64),
        ("weight_column_stride", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_row_stride", ctypes.c_int64),
        ("mask_column_stride", ctypes.c_int64),
        ("bitmap", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("nonzeros", ctypes.c_int64),
        ("values", ctypes.c_void_p),
    )


class BitmapUnpackParams(ctypes.Structure):
    """``prune_bench_bitmap_unpack_params``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("dense_row_stride", ctypes.c_int64),
        ("weight", BitmapStruct),
        ("dense", ctypes.c_void_p),
    )


class AddNormParams(ctypes.Structure):
    """``prune_bench_add_norm_params``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("centred", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("width", ctypes.c_int64),
        ("divisor", ctypes.c_int64),
        ("hidden", ctypes.c_void_p),
        ("update", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class DecodePlace(ctypes.Structure):
    """``prune_bench_decode_place``."""

    _fields_ = (
        ("position", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_stride", ctypes.c_int64),
    )


class AttendParams(ctypes.Structure):
    """``prune_bench_attend_params``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("place", ctypes.c_void_p),
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("query_stride", ctypes.c_int64),
        ("key_stride", ctypes.c_int64),
        ("value_stride", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        ("scratch", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class ActivateParams(ctypes.Structure):
    """``prune_bench_activate_params``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("width", ctypes.c_int64),
        ("in_", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class DecodeStep(ctypes.Structure):
    """``prune_bench_step``."""

    _fields_ = (("kind", ctypes.c_int32), ("reserved", ctypes.c_int32), ("params", ctypes.c_void_p))
