"""Safetensors files whose pruned matrices are bitmaps and non-zero values.

A matrix ``NAME`` [rows, columns] is two tensors: ``NAME|bitmap`` uint8 [rows, ceil(columns / 8)], bit c % 8 of byte
c // 8 saying whether column c is stored, and ``NAME|values`` [non-zeros] in the matrix's dtype, row by row. Other
tensors are as in any checkpoint. Each file's metadata names the format, its version and the sizes of its matrices.
The files are called ``bitmap*.safetensors``, so that no loader takes them for a model of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.errors import CheckpointError
from methods.kernels import formats
from methods.stream.tensor_files import TensorFiles

__all__ = ["FORMAT", "VERSION", "BitmapFiles", "Place", "has_bitmaps", "metadata", "tensor_files", "to_parts"]

FORMAT = "prune-bench bitmap"
"""The one key of a file's metadata, whose order safetensors leaves to chance; its value is JSON."""
VERSION = 1
"""Version written today, and the newest that is read. History: 1, the first format."""

_BITMAP, _VALUES = "|bitmap", "|values"
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_METADATA_LIMIT = 32 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: file name, dtype as safetensors spells it, sizes as a model sees them."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def to_parts(weight: Tensor) -> dict[str, Tensor] | None:
    """``weight`` [rows, columns] as ``|bitmap`` and ``|values``; None where they would take no less, or in other dtypes.

    Bit for bit: only entries whose bits are all zero are left out, -0.0 is kept.
    """
    if weight.dim() != 2 or weight.dtype not in _FLOATS.values():
        return None
    packed = formats.pack(weight)
    bitmap = packed.bitmap.view(torch.uint8)[:, : _row_bytes(packed.columns)].contiguous()
    if bitmap.nbytes + packed.values.nbytes >= weight.nbytes:
        return None
    return {_BITMAP: bitmap, _VALUES: packed.values}


def metadata(names: Iterable[str], sizes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """What a file that holds the tensors ``names`` says of itself; ``sizes`` of all matrices that are bitmaps."""
    matrices = {
        name.removesuffix(_BITMAP): sizes[name.removesuffix(_BITMAP)]
        for name in names
        if name.endswith(_BITMAP)
    }
    return {FORMAT: json.dumps({"version": VERSION, "matrices": matrices})}


def has_bitmaps(folder: Path) -> bool:
    """Whether the folder's model is in bitmap files; a plain model beside them comes first."""
    if any(folder.glob("model*.safetensors*")):
        return False
    return any((folder / f"bitmap.safetensors{end}").is_file() for end in ("", ".index.json"))


def tensor_files(folder: Path) -> TensorFiles:
    """The folder's tensors in either form. Raises CheckpointError."""
    return BitmapFiles(folder) if has_bitmaps(folder) else TensorFiles(folder)


class BitmapFiles(TensorFiles):
    """Tensors by full name; those kept as bitmaps are unpacked when asked for.

    Headers are checked at once, a matrix's bits when it is read. Raises CheckpointError.
    """

    stem: ClassVar[str] = "bitmap"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._parts = self.places
        self.headers: dict[str, Place] = {}
        """Every tensor as a model sees it."""
        self._matrices: dict[str, tuple[int, int]] = {}
        for path in sorted(self._open):
            self._take(path)
        self._pair()
        self.places = {name: folder / place.file for name, place in self.headers.items()}

    def _take(self, path: Path) -> None:
        """The file's claims and tensors, so far as they make sense on their own."""
        handle = self._handle(path)
        for name, size in _claimed(path, handle.metadata() or {}).items():
            if name in self._matrices:
                raise CheckpointError(f"{path}: {name!r:.90} is in another file too")
            self._matrices[name] = size
        for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
            if name in self.headers or self._parts[name] != path:
                raise CheckpointError(f"{path}: {name!r:.90} is in another file too")
            view = handle.get_slice(name)
            self.headers[name] = Place(path.name, view.get_dtype(), tuple(view.get_shape()))

    def _pair(self) -> None:
        """Put matrices in the place of their parts, or say what does not fit."""
        for name, (rows, columns) in self._matrices.items():
            bits, values = (self.headers.pop(name + end, None) for end in (_BITMAP, _VALUES))
            where = f"{self.folder}: {name!r:.90}"
            if bits is None or values is None:
                raise CheckpointError(f"{where} lacks its {'bitmap' if bits is None else 'values'}")
            if name in self.headers:
                raise CheckpointError(f"{where} is stored twice, whole and as a bitmap")
            if (bits.dtype, bits.shape) != ("U8", (rows, _row_bytes(columns))):
                raise CheckpointError(
                    f"{where}: its bitmap is {bits.dtype} {list(bits.shape)}; {rows} x {columns} take "
                    f"U8 [{rows}, {_row_bytes(columns)}]"
                )
            if values.dtype not in _FLOATS or len(values.shape) != 1 or values.shape[0] > rows * columns:
                raise CheckpointError(
                    f"{where}: its values are {values.dtype} {list(values.shape)}; {rows} x {columns} take at most "
                    f"{rows * columns} in one row, {', '.join(_FLOATS)}"
                )
            self.headers[name] = Place(values.file, values.dtype, (rows, columns))
        stray = next((name for name in self.headers if name.endswith((_BITMAP, _VALUES))), None)
        if stray is not None:
            raise CheckpointError(
                f"{self.folder}: {stray!r:.90} belongs to no matrix that the metadata names"
            )

    def get(self, name: str) -> Tensor:
        """The tensor, a matrix [rows, columns] dense again, bit for bit. Raises CheckpointError."""
        if name not in self._matrices:
            return super().get(name)
        bits, values = (self._read(self._parts[name + end], name + end) for end in (_BITMAP, _VALUES))
        columns = self._matrices[name][1]
        packed = _words(bits, values, columns)
        if packed.offsets is not None and int(packed.offsets[-1]) != packed.nonzeros:
            raise CheckpointError(
                f"{self.places[name]}: '{name}' has {packed.nonzeros} values, and its bitmap stores "
                f"{int(packed.offsets[-1])}; the file is damaged, save it again"
            )
        try:
            formats.validate(packed)
            return formats.unpack(packed)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.places[name]}: '{name}' is no matrix of {columns} columns ({str(error).splitlines()[0]})"
            ) from None


def _words(bits: Tensor, values: Tensor, columns: int) -> formats.Bitmap:
    """Stored parts as the kernels take them: whole 64-bit words a row, and where each row's values begin."""
    padded = bits.new_zeros(bits.shape[0], 8 * -(-columns // 64))
    padded[:, : bits.shape[1]] = bits
    counts = _ones(bits).sum(1, dtype=torch.int64)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    # a hostile file may put values at any address
    aligned = values if values.data_ptr() % values.itemsize == 0 else values.clone()
    return formats.Bitmap(padded.view(torch.int64), offsets, aligned, None, columns)


def _ones(bits: Tensor) -> Tensor:
    """Set bits of every byte: sums of pairs, of fours, of all eight."""
    pairs = bits - ((bits >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (fours + (fours >> 4)) & 0x0F


def _row_bytes(columns: int) -> int:
    return -(-columns // 8)


def _claimed(path: Path, found: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Sizes of the matrices that a file's metadata names. Raises CheckpointError for what is no such metadata."""
    text = found.get(FORMAT)
    if text is None:
        raise CheckpointError(f"{path}: its metadata have no '{FORMAT}'; it is no bitmap checkpoint")
    try:
        said: Any = json.loads(text) if len(text) <= _METADATA_LIMIT else None
    except (ValueError, RecursionError):
        said = None
    version, claims = (said.get("version"), said.get("matrices")) if isinstance(said, dict) else (None, None)
    if type(version) is int and version > VERSION:
        raise CheckpointError(
            f"{path}: bitmap format of version {version!r:.20}, this program reads up to {VERSION}; upgrade prune-bench"
        )
    if type(version) is not int or version < 1 or not isinstance(claims, dict):
        raise CheckpointError(f"{path}: its metadata give no version and sizes of matrices; save it again")
    for name, size in claims.items():
        whole = isinstance(size, list) and len(size) == 2 and all(type(part) is int for part in size)
        if not whole or not all(0 < part < 1 << 40 for part in size):
            raise CheckpointError(
                f"{path}: its metadata give {name!r:.90} the size {size!r:.60}; [rows, columns] are wanted"
            )
    return {name: (rows, columns) for name, (rows, columns) in claims.items()}
