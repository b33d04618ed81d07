"""What passes between the two interpreters: a model, tokens and a job out; matrices and figures back.

All in one folder::

    model/        config.json and float32 safetensors, a file a block, as ``from_pretrained`` reads them
    tokens.safetensors   ``tokens`` int64 [windows, length]
    job.json      what to do, where things lie, and the job's key
    out/          block-00000.safetensors …, then result.json, whose presence says that all is there
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from methods.errors import MachineError, OutsideError
from methods.interface import BlockSource
from methods.stream.sink import write_json, write_tensors

__all__ = ["Exchange", "Result"]

_LEFT_OUT = ("auto_map", "quantization_config", "torch_dtype")


@dataclass(frozen=True, slots=True)
class Result:
    """What the worker said of a finished job. ``seconds``: import, load, prune, write; memory in bytes."""

    seconds: dict[str, float]
    matrix_seconds: dict[str, float]
    warnings: tuple[str, ...]
    base_memory: int
    peak_memory: int
    versions: dict[str, str]


class Exchange:
    """The folder of one job. ``settings``: all that decides the result, beside the weights; ``identity`` names those."""

    def __init__(
        self, folder: Path, source: BlockSource, tokens: Tensor, settings: Mapping[str, Any], identity: str
    ) -> None:
        self.folder = folder
        self.out = folder / "out"
        self._source = source
        self._tokens = tokens.to(torch.int64).contiguous()
        self._settings = dict(settings)
        digest = hashlib.sha256(json.dumps([self._settings, identity], sort_keys=True).encode())
        digest.update(str(tuple(tokens.shape)).encode())
        digest.update(self._tokens.numpy().tobytes())
        self.key = digest.hexdigest()

    @property
    def job(self) -> Path:
        """The job's file."""
        return self.folder / "job.json"

    def write(self) -> None:
        """Lay out model, tokens and job, over whatever was there. Raises CheckpointError, MachineError."""
        shutil.rmtree(self.folder, ignore_errors=True)
        source, prefix = self._source, self._source.family.block_prefix
        try:
            self.out.mkdir(parents=True)
        except OSError as error:
            raise MachineError(
                f"{self.folder}: cannot be written ({error.strerror}); choose another --out"
            ) from None
        self._write_model(self.folder / "model")
        write_tensors(self.folder / "tokens.safetensors", {"tokens": self._tokens})
        matrices = source.family.matrices(source.shape)
        blocks = [
            {matrix.name: prefix(index) + matrix.name for matrix in matrices}
            for index in range(source.shape.blocks)
        ]
        job = {
            **self._settings,
            "key": self.key,
            "blocks": blocks,
            "model": str((self.folder / "model").absolute()),
            "tokens": str((self.folder / "tokens.safetensors").absolute()),
            "out": str(self.out.absolute()),
        }
        write_json(self.job, job)

    def drop_model(self) -> None:
        """Remove the copy of the dense model."""
        shutil.rmtree(self.folder / "model", ignore_errors=True)

    def result(self) -> Result | None:
        """The finished job's figures, or None where it is another job's or not whole, file for file."""
        try:
            said = json.loads((self.out / "result.json").read_text(encoding="utf-8"))
            if said["key"] != self.key or len(said["files"]) != self._source.shape.blocks:
                return None
            for name, digest in said["files"].items():
                if hashlib.sha256((self.out / Path(name).name).read_bytes()).hexdigest() != digest:
                    return None
            return Result(
                {str(name): float(value) for name, value in said["seconds"].items()},
                {str(name): float(value) for name, value in said["matrix_seconds"].items()},
                tuple(str(text) for text in said["warnings"]),
                int(said["base_memory"]),
                int(said["peak_memory"]),
                {str(name): str(value) for name, value in said["versions"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def weight(self, index: int, name: str, size: tuple[int, int]) -> Tensor:
        """A pruned matrix [rows, columns] float32. Raises OutsideError where it is missing or of another form."""
        path = self.out / f"block-{index:05d}.safetensors"
        try:
            with safe_open(str(path), framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise OutsideError(f"llm-compressor's result lacks block {index} {name} ({error})") from None
        if tuple(tensor.shape) != size:
            raise OutsideError(
                f"llm-compressor gave block {index} {name} as {list(tensor.shape)}, not {list(size)}"
            )
        return tensor.float()

    def _write_model(self, folder: Path) -> None:
        source = self._source
        places: dict[str, str] = {}
        total = 0

        def write(file: str, tensors: dict[str, Tensor]) -> None:
            nonlocal total
            write_tensors(folder / file, tensors, {"format": "pt"})
            places.update(dict.fromkeys(tensors, file))
            total += sum(tensor.nbytes for tensor in tensors.values())

        for number, name in enumerate(source.family.outer_tensors(source.shape)):
            write(f"outer-{number:05d}.safetensors", {name: source.outer.tensor(name).float()})
        for index in range(source.shape.blocks):
            prefix = source.family.block_prefix(index)
            block = {prefix + name: tensor.float() for name, tensor in source.block(index).items()}
            write(f"block-{index:05d}.safetensors", block)
        index_file = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index_file)
        config = {name: value for name, value in source.config.items() if name not in _LEFT_OUT}
        write_json(folder / "config.json", {**config, "dtype": "float32"})
