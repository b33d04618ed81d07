"""Pickled weights to safetensors, in a process of its own: tensors only, nothing in the pickle is executed.

Run as ``python -m bench.models.convert DIRECTORY FILE…`` by `bench pull`; prints one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.models import weights
from bench.models.cache import write_json
from bench.models.path import read_config
from bench.results.redact import secret_name
from methods.errors import CheckpointError, MachineError, PruneBenchError

if TYPE_CHECKING:
    from torch import Tensor

    from methods.interface import ModelShape

__all__ = ["convert", "run"]

GROUP_BYTES = 1 << 30
"""Tensors are written in files of about this size, so that memory stays below a large shard's."""
FORBIDDEN = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported (?:class|operand|global)) ([\w.]+)")
BASE_SECONDS = 300.0
BYTES_PER_SECOND = 10e6


def run(directory: Path, names: Sequence[str], model: str) -> None:
    """Convert in a subprocess that holds no tokens. Raises CheckpointError with its one line."""
    root = str(Path(__file__).parents[2])
    env = {name: value for name, value in os.environ.items() if not secret_name(name)}
    env |= {"PYTHONPATH": os.pathsep.join((root, env.get("PYTHONPATH", ""))), "OMP_NUM_THREADS": "1"}
    seconds = BASE_SECONDS + sum((directory / name).stat().st_size for name in names) / BYTES_PER_SECOND
    command = [sys.executable, "-m", "bench.models.convert", str(directory), *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{model}: converting {names[0]} took more than {seconds:.0f} s") from error
    try:
        said = json.loads(done.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2])
        reason, machine = str(said["error"]), bool(said["machine"])
    except (ValueError, KeyError, TypeError, RecursionError):
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        reason, machine = f"the converting process ended with code {done.returncode} ({last[:160]})", False
    if reason:
        raise (MachineError if machine else CheckpointError)(f"{model}: {reason}")


def convert(directory: Path, names: Sequence[str], *, group_bytes: int = GROUP_BYTES) -> list[str]:
    """Write the tensors of pickled files as safetensors under canonical names; returns the files' names.

    All names and shapes are compared with config.json before anything is written. A head that repeats a tied
    token table is dropped. Raises CheckpointError.
    """
    from methods.families import family_of

    config, shape = read_config(directory)
    found: dict[str, weights.Header] = {}
    sizes: dict[str, int] = {}
    for shard in names:
        for name, tensor in _read(directory / shard).items():
            if name in found:
                raise CheckpointError(f"{name} lies in both {found[name].file} and {shard}")
            found[name] = weights.Header(shard, _spelt(tensor), tuple(tensor.shape))
            sizes[name] = tensor.numel() * tensor.element_size()
    spelt = weights.check_tensors(found, family_of(config), shape, "the pickled weights")
    _check_tied(directory, found, shape, spelt)
    canonical = {name: wanted for wanted, name in spelt.items()}
    groups = list(_groups(names, found, {name: sizes[name] for name in canonical}, group_bytes))
    return _write(directory, groups, canonical, sum(sizes[name] for name in canonical))


def _write(
    directory: Path, groups: Sequence[tuple[str, list[str]]], canonical: dict[str, str], total: int
) -> list[str]:
    from safetensors.torch import save_file

    written: list[str] = []
    weight_map: dict[str, str] = {}
    for number, (shard, members) in enumerate(groups, start=1):
        target = (
            weights.SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        )
        tensors = _read(directory / shard)
        # Cloned: two names may share one storage, and a view may hold on to a larger one.
        chosen = {canonical[name]: tensors[name].contiguous().clone() for name in members}
        save_file(chosen, directory / target, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(chosen, target))
        written.append(target)
    if len(groups) > 1:
        write_json(directory / weights.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return written


def _groups(
    names: Sequence[str], found: dict[str, weights.Header], sizes: dict[str, int], limit: int
) -> Iterator[tuple[str, list[str]]]:
    """(pickled file, tensor names) of every file to write, in the order of the pickled files."""
    for shard in names:
        group: list[str] = []
        held = 0
        for name in (name for name in sizes if found[name].file == shard):
            if group and held + sizes[name] > limit:
                yield shard, group
                group, held = [], 0
            group.append(name)
            held += sizes[name]
        if group:
            yield shard, group


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a pickled file, mapped from disk where its format allows. Raises CheckpointError."""
    import torch

    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            if "mmap" not in str(error):
                raise
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a bad file makes it raise
        raise CheckpointError(_why(path, error)) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.name} holds a {type(found).__name__}, not tensors by name")
    for name, tensor in found.items():
        plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        if not isinstance(name, str) or not plain:
            raise CheckpointError(f"{path.name} holds {str(name)[:80]!r}, which is no plain tensor")
    return dict(found)


def _why(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    asked = FORBIDDEN.search(text)
    if asked:
        return (
            f"{path.name} asks for {asked.group(1)}, which no tensor needs: nothing of it was executed, "
            "and the file is not used"
        )
    if "Weights only load failed" in text:
        return f"{path.name} holds more than tensors: nothing of it was executed, and the file is not used"
    return f"{path.name} cannot be read as pickled weights: {text[:160]}"


def _spelt(tensor: Tensor) -> str:
    import torch

    known = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return known.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _check_tied(
    directory: Path, found: dict[str, weights.Header], shape: ModelShape, spelt: dict[str, str]
) -> None:
    """A head beside a tied token table must equal it."""
    import torch

    if not shape.tied or weights.HEAD not in found:
        return
    head = _read(directory / found[weights.HEAD].file)[weights.HEAD]
    for canonical, name in spelt.items():
        if canonical.endswith(("embed_tokens.weight", "word_embeddings.weight")):
            if not torch.equal(head, _read(directory / found[name].file)[name]):
                raise CheckpointError(
                    f"{weights.HEAD} differs from {name}, though config.json says that they are tied"
                )
            return


def main() -> None:
    """Entry of the subprocess: convert, then print ``{"error": "", "machine": false}`` or what went wrong."""
    reason, machine = "", False
    try:
        convert(Path(sys.argv[1]), sys.argv[2:])
    except PruneBenchError as error:
        reason = str(error)
    except OSError as error:
        reason, machine = f"cannot write the converted weights: {error.strerror}", True
    except MemoryError:
        reason, machine = "not enough memory to convert the weights", True
    sys.stdout.write(json.dumps({"error": reason, "machine": machine}) + "\n")


if __name__ == "__main__":
    main()
