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


def save_quantised(source: CheckpointSource, folder: Path, *, shard_bytes: int = 1 << 30) -> list[Path]:
    """Write the model of ``source`` to ``folder``, its quantised matrices packed, all else as stored.

    The weights that come back are those of ``source`` bit for bit. Zeros take their bits as other levels do: the
    form does not gain from sparsity. The folder appears whole or not at all. Raises UnsupportedTarget where
    nothing is quantised, or where the form cannot hold the grids; MachineError, CheckpointError.
    """
    bits, size, names = _scheme(source)
    config = {"quantization_config": _config(bits, size, names)}
    return write_folder(source, folder, _tensors(source), config, shard_bytes=shard_bytes)


def _scheme(source: CheckpointSource) -> tuple[int, int, list[str]]:
    """Bits and group size (0: the whole row) of all grids, and the full names of the quantised matrices.

    Raises UnsupportedTarget where no one scheme of the library describes them.
    """
    columns = {matrix.name: matrix.columns for matrix in source.family.matrices(source.shape)}
    found: dict[tuple[int, int], list[str]] = {}
    whole: set[tuple[int, int]] = set()
    for index in range(source.shape.blocks):
        prefix = source.family.block_prefix(index)
        for name, grid in source.grids(index).items():
            if columns[name] % grid.groupsize:
                raise UnsupportedTarget(
                    f"{prefix}{name}: groups of {grid.groupsize} columns do not divide its {columns[name]}, and "
                    "compressed-tensors packs whole groups only; use another --set sparsegpt.groupsize"
                )
            scheme = (grid.bits, grid.groupsize)
            found.setdefault(scheme, []).append(prefix + name)
            if grid.groupsize == columns[name]:
                whole.add(scheme)
    where = source.overlay or source.folder
    if not found:
        raise UnsupportedTarget(
            f"{where}: no matrix is quantised, so there is nothing to pack; prune with --bits"
        )
    names = [name for members in found.values() for name in members]
    bits, size = next(iter(found))
    if len(found) == 1:
        return bits, size, names
    if whole == set(found) and len({scheme[0] for scheme in found}) == 1:
        return bits, 0, names
    raise UnsupportedTarget(
        f"{where}: grids span {', '.join(str(size) for _, size in sorted(found))} columns, and transformers unpacks "
        "by one scheme only; use a sparsegpt.groupsize that is no wider than any matrix, or 0"
    )


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
