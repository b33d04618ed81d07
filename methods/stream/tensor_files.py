"""Tensors by name over the safetensors files of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from methods.errors import CheckpointError

__all__ = ["OneFile", "TensorFiles"]


class TensorFiles:
    """Tensors by full name over the safetensors files of a folder, memory-mapped and opened once.

    The files are those that transformers would choose: ``model.safetensors``, or what its index names, or
    ``model*.safetensors``; whatever else lies beside them is not read.
    """

    stem: ClassVar[str] = "model"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        self.places: dict[str, Path] = {}
        for path in self._files():
            for name in self._handle(path).keys():  # noqa: SIM118 - a safetensors handle is no mapping
                self.places[name] = path

    def _files(self) -> list[Path]:
        single = self.folder / f"{self.stem}.safetensors"
        if single.exists():
            return [single]
        index = self.folder / f"{self.stem}.safetensors.index.json"
        if not index.exists():
            files = sorted(self.folder.glob(f"{self.stem}*.safetensors"))
            if not files:
                raise CheckpointError(
                    f"{self.folder}: holds no {self.stem}*.safetensors file; convert it with `bench pull`"
                )
            return files
        try:
            named = {
                str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            }
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
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
        return self._read(self.places[name], name)

    def _read(self, path: Path, name: str) -> Tensor:
        try:
            tensor: Tensor = self._handle(path).get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: '{name}' cannot be read ({str(error).splitlines()[0]})") from None
        return tensor


class OneFile(TensorFiles):
    """The tensors of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path.parent)

    def _files(self) -> list[Path]:
        return [self._path]
