"""Quantised matrices packed into whole words, in the form of the library compressed-tensors (``pack-quantized``).

``AutoModelForCausalLM.from_pretrained`` loads the folder where that library is installed, and unpacks its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.checkpoints.dense import write_folder
from methods.errors import UnsupportedTarget
from methods.quantise.grid import MatrixGrid, requantise
from methods.stream.source import CheckpointSource

__all__ = ["save_quantised"]

_Scheme = tuple[int, int]  # bits, and columns per group: 0 for the whole row


def save_quantised(source: CheckpointSource, folder: Path, *, shard_bytes: int = 1 << 30) -> list[Path]:
    """Write the model of ``source`` to ``folder``, its quantised matrices packed, all else as stored.

    The weights that come back are those of ``source`` bit for bit. Zeros take their bits as other levels do: the
    form does not gain from sparsity. The folder appears whole or not at all. Raises UnsupportedTarget where
    nothing is quantised, or where the form cannot hold the grids; MachineError, CheckpointError.
    """
    (bits, size), names = _scheme(source)
    config = {"quantization_config": _config(bits, size, names)}
    return write_folder(source, folder, _tensors(source), config, shard_bytes=shard_bytes)


def _scheme(source: CheckpointSource) -> tuple[_Scheme, list[str]]:
    """The scheme that describes all grids, and the full names of the quantised matrices. Raises UnsupportedTarget."""
    found: dict[_Scheme, list[str]] = {}
    columns = {matrix.name: matrix.columns for matrix in source.family.matrices(source.shape)}
    for index in range(source.shape.blocks):
        prefix = source.family.block_prefix(index)
        for name, grid in source.grids(index).items():
            whole = grid.groupsize >= columns[name]
            if not whole and columns[name] % grid.groupsize:
                raise UnsupportedTarget(
                    f"{prefix}{name}: groups of {grid.groupsize} columns do not divide its {columns[name]}, and "
                    "compressed-tensors packs whole groups only; use another --set sparsegpt.groupsize"
                )
            found.setdefault((grid.bits, 0 if whole else grid.groupsize), []).append(prefix + name)
    where = source.overlay or source.folder
    if not found:
        raise UnsupportedTarget(
            f"{where}: no matrix is quantised, so there is nothing to pack; prune with --bits"
        )
    if len(found) > 1:
        names = ", ".join(sorted(f"{members[0]} {_spelled(*scheme)}" for scheme, members in found.items()))
        raise UnsupportedTarget(
            f"{where}: grids differ ({names}), and transformers unpacks by one scheme only; use a "
            "sparsegpt.groupsize below every matrix's columns, or 0"
        )
    return next(iter(found.items()))


def _spelled(bits: int, size: int) -> str:
    return f"{bits} bits a {f'{size} columns' if size else 'row'}"


def _config(bits: int, size: int, names: list[str]) -> dict[str, Any]:
    """``quantization_config`` for config.json.

    It asks transformers to unpack while loading: left packed, asymmetric grids do not load (compressed-tensors up
    to 0.20 gives their packed zero points the shape of unpacked ones).
    """
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        QuantizationStrategy,
    )

    weights = QuantizationArgs(
        num_bits=bits,
        symmetric=False,
        strategy=QuantizationStrategy.GROUP if size else QuantizationStrategy.CHANNEL,
        group_size=size or None,
    )
    scheme = QuantizationScheme(targets=names, weights=weights, format=CompressionFormat.pack_quantized.value)
    config: dict[str, Any] = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
    ).model_dump(mode="json")
    return {**config, "dequantize": True}


def _tensors(source: CheckpointSource) -> Iterator[tuple[str, Tensor]]:
    for name in source.family.outer_tensors(source.shape):
        yield name, source.raw_outer(name)
    for index in range(source.shape.blocks):
        prefix = source.family.block_prefix(index)
        grids = source.grids(index)
        for name, tensor in source.raw_block(index).items():
            matrix = name.removesuffix(".weight")
            if matrix == name or matrix not in grids:
                yield prefix + name, tensor
                continue
            for end, part in _packed(prefix + matrix, tensor, grids[matrix]).items():
                yield f"{prefix}{matrix}.{end}", part


def _packed(where: str, weight: Tensor, grid: MatrixGrid) -> dict[str, Tensor]:
    """The library's tensors for a matrix [rows, columns]: levels and zero points as signed numbers, packed."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    scale = grid.scale.to(weight.dtype)
    if not torch.equal(scale.float(), grid.scale):
        raise UnsupportedTarget(
            f"{where}: its scales need float32 and its weights are {weight.dtype}, which compressed-tensors reads scales "
            "in; prune without sparsegpt.reference"
        )
    levels = requantise(weight, grid)
    if levels is None:
        raise UnsupportedTarget(f"{where}: some weights lie on no level of its grid; prune it again")
    middle = grid.levels // 2
    return {
        "weight_packed": pack_to_int32((levels - middle).to(torch.int8), grid.bits),
        "weight_scale": scale,
        "weight_zero_point": pack_to_int32(
            (grid.zero - middle).to(torch.int8), grid.bits, packed_dim=0
        ).contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
