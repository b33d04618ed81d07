"""Reads a model from safetensors, one block at a time; parameters outside the blocks one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from methods.errors import CheckpointError
from methods.families import family_of
from methods.interface import Block, Family, ModelShape, OuterTensors
from methods.quantise.grid import MatrixGrid
from methods.quantise.stored import is_grid, matrices_with_grids, read_grid

__all__ = ["CheckpointSource", "TensorFiles", "config_of"]

_INDEX = "model.safetensors.index.json"


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


class TensorFiles:
    """Tensors by full name over the safetensors files of a folder, memory-mapped and opened once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        self.places: dict[str, Path] = {}
        for path in self._files():
            for name in self._handle(path).keys():  # noqa: SIM118 - a safetensors handle is no mapping
                self.places[name] = path

    def _files(self) -> list[Path]:
        index = self.folder / _INDEX
        if not index.exists():
            files = sorted(self.folder.glob("*.safetensors"))
            if not files:
                raise CheckpointError(
                    f"{self.folder}: holds no .safetensors file; convert it with `bench pull`"
                )
            return files
        try:
            named = {
                str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            }
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise CheckpointError(f"{index}: not a safetensors index; fetch the model again") from None
        for name in named:
            if Path(name).name != name:
                raise CheckpointError(f"{index}: names '{name[:80]}', which is outside the folder; refused")
        return [self.folder / name for name in sorted(named)]

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(str(path), framework="pt", device="cpu").__enter__()
            except (SafetensorError, OSError, ValueError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CheckpointError(
                    f"{path}: not a whole safetensors file ({reason}); fetch it again"
                ) from None
        return self._open[path]

    def get(self, name: str) -> Tensor:
        """The tensor as stored, backed by the file. Raises CheckpointError."""
        if name not in self.places:
            raise CheckpointError(
                f"{self.folder}: has no tensor '{name}'; the weights do not match the config"
            )
        try:
            tensor: Tensor = self._handle(self.places[name]).get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.places[name]}: '{name}' cannot be read ({str(error).splitlines()[0]})"
            ) from None
        return tensor


class CheckpointSource:
    """A local Hugging Face folder as a BlockSource.

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
        self.files = TensorFiles(folder)
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


class _OneFile(TensorFiles):
    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path.parent)

    def _files(self) -> list[Path]:
        return [self._path]


def _overlay_file(overlay: Path | None, name: str) -> TensorFiles | None:
    if overlay is None or not (overlay / name).exists():
        return None
    return _OneFile(overlay / name)


def _outer_files(overlay: Path | None) -> tuple[TensorFiles, ...]:
    found = sorted(overlay.glob("outer-*.safetensors")) if overlay is not None else []
    return tuple(_OneFile(path) for path in found)
