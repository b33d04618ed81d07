"""Takes finished blocks: one safetensors file each, whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from methods.errors import MachineError
from methods.interface import Block

__all__ = ["BlockFolder", "write_json", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all: a temporary file, fsync, rename. Raises MachineError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
            temporary,
            metadata,
        )
        _sync(temporary)
        temporary.replace(path)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _machine_error(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all. Raises MachineError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value), encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _machine_error(path, error) from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _machine_error(path: Path, error: Exception) -> MachineError:
    # safetensors wraps the system's error in one of its own, so only the text is left
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return MachineError(
        f"{path}: cannot be written ({reason}); free some space or choose another --out, then run again"
    )


class BlockFolder:
    """A folder of finished blocks, ``block-00003.safetensors``, in the dtype the checkpoint stores.

    The folder is what ``CheckpointSource(overlay=…)`` lays over the dense checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, index: int) -> Path:
        """Where block ``index`` lies once finished."""
        return self.folder / f"block-{index:05d}.safetensors"

    def put(self, index: int, block: Block) -> None:
        """Store a finished block; whole and on disk when this returns."""
        write_tensors(self.path(index), block)

    def put_outer(self, tensors: Mapping[str, Tensor]) -> None:
        """Store changed parameters outside the blocks (a sliced embedding, an untied head).

        Each call writes a file of its own, named by its tensors, so that one large table is in memory at a time.
        """
        name = hashlib.sha256("\0".join(sorted(tensors)).encode()).hexdigest()[:16]
        write_tensors(self.folder / f"outer-{name}.safetensors", tensors)

    def put_config(self, changes: Mapping[str, Any]) -> None:
        """Store changed config entries (sliced widths); the overlay lays them over the model's own."""
        write_json(self.folder / "config.json", dict(changes))

    def __contains__(self, index: int) -> bool:
        return self.path(index).exists()

    def total_bytes(self) -> int:
        """Bytes of all finished blocks on disk."""
        return sum(path.stat().st_size for path in self.folder.glob("block-*.safetensors"))
