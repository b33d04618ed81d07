"""Reads a model from safetensors, one block at a time; parameters outside the blocks one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.errors import CheckpointError
from methods.families import family_of
from methods.interface import Block, Family, ModelShape, OuterTensors
from methods.quantise.grid import MatrixGrid
from methods.quantise.stored import is_grid, matrices_with_grids, read_grid
from methods.stream.bitmap_files import tensor_files
from methods.stream.tensor_files import OneFile, TensorFiles

__all__ = ["CheckpointSource", "config_of"]


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json`` as plain JSON. Raises CheckpointError."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); a model folder holds config.json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); fetch the model again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds {type(config).__name__}, not a mapping; fetch the model again")
    return config


class CheckpointSource:
    """A local Hugging Face folder as a BlockSource, plain or with its matrices as bitmaps.

    ``overlay``: a folder of finished blocks (see ``stream.sink``) that replace the checkpoint's. Blocks come
    in ``dtype`` on ``device``; ``raw_block`` gives them as stored. Raises CheckpointError, UnsupportedModel.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        overlay: Path | None = None,
    ) -> None:
        self.folder = folder
        self.overlay = overlay
        self.dtype = dtype
        self.device = torch.device(device)
        config = config_of(folder)
        if overlay is not None and (overlay / "config.json").exists():
            config = {**config, **config_of(overlay)}
        self.config: Mapping[str, Any] = config
        self.family: Family = family_of(config)
        self.shape: ModelShape = self.family.shape(config)
        self.files = tensor_files(folder)
        self._outer_overlay = _outer_files(overlay)

    @property
    def outer(self) -> OuterTensors:
        """Parameters outside the blocks."""
        return _Outer(self)

    def raw_block(self, index: int) -> Block:
        """Block ``index`` as stored, backed by the file."""
        prefix = self.family.block_prefix(index)
        changed = _overlay_file(self.overlay, f"block-{index:05d}.safetensors")
        block: Block = {}
        for name, size in self.family.block_tensors(self.shape, index).items():
            tensor = changed.get(name) if changed and name in changed.places else self._raw(prefix + name)
            if changed is None and tuple(tensor.shape) != size:
                raise CheckpointError(
                    f"{self.folder}: '{prefix + name}' is {list(tensor.shape)}, the config says {list(size)}"
                )
            block[name] = tensor
        if changed is not None:
            added = (name for name in changed.places if name not in block and not is_grid(name))
            block.update({name: changed.get(name) for name in added})
        return block

    def grids(self, index: int) -> dict[str, MatrixGrid]:
        """Grids of the quantised matrices of block ``index`` by matrix name; none where nothing was quantised."""
        changed = _overlay_file(self.overlay, f"block-{index:05d}.safetensors")
        if changed is None:
            return {}
        return {name: read_grid(name, changed.get) for name in matrices_with_grids(changed.places)}

    def block(self, index: int) -> Block:
        """A fresh copy of block ``index`` in the compute dtype."""
        return {
            name: tensor.to(device=self.device, dtype=self.dtype, copy=True)
            for name, tensor in self.raw_block(index).items()
        }

    def raw_outer(self, name: str) -> Tensor:
        """A parameter outside the blocks, as stored, backed by the file."""
        for changed in self._outer_overlay:
            if name in changed.places:
                return changed.get(name)
        return self._raw(name)

    def full_name(self, name: str) -> str:
        """The spelling of ``name`` in this checkpoint: itself or one of the family's aliases."""
        if name in self.files.places:
            return name
        return next((other for other in self.family.aliases(name) if other in self.files.places), name)

    def _raw(self, name: str) -> Tensor:
        return self.files.get(self.full_name(name))


class _Outer:
    def __init__(self, source: CheckpointSource) -> None:
        self.source = source

    def rows(self, name: str, index: Tensor) -> Tensor:
        table = self.source.raw_outer(name)
        flat = table.index_select(0, index.reshape(-1).to(table.device))
        found = flat.to(device=self.source.device, dtype=self.source.dtype)
        return found.view(*index.shape, *table.shape[1:])

    def tensor(self, name: str) -> Tensor:
        return self.source.raw_outer(name).to(device=self.source.device, dtype=self.source.dtype)


def _overlay_file(overlay: Path | None, name: str) -> TensorFiles | None:
    if overlay is None or not (overlay / name).exists():
        return None
    return OneFile(overlay / name)


def _outer_files(overlay: Path | None) -> tuple[TensorFiles, ...]:
    found = sorted(overlay.glob("outer-*.safetensors")) if overlay is not None else []
    return tuple(OneFile(path) for path in found)
