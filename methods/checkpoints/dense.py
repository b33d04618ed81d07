"""Dense-with-zeros: a plain Hugging Face folder that ``from_pretrained`` loads anywhere; sliced models bring their code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from methods.checkpoints.sliced import sliced_extras
from methods.errors import MachineError, PruneBenchError
from methods.stream.sink import write_json, write_tensors
from methods.stream.source import CheckpointSource

__all__ = ["COPIED", "save_dense", "stored_tensors", "write_folder"]

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "LICENSE",
)
"""Small files that go with the weights; anything else in the model's folder stays behind."""


def save_dense(source: CheckpointSource, folder: Path, *, shard_bytes: int = 1 << 30) -> list[Path]:
    """Write the model of ``source`` (overlay included) to ``folder`` in shards of about ``shard_bytes``.

    Every tensor keeps the dtype it is stored in. A sliced model's folder holds its modelling code too. The folder
    appears whole or not at all. Raises MachineError.
    """
    return write_folder(source, folder, stored_tensors(source), {}, shard_bytes=shard_bytes)


def stored_tensors(source: CheckpointSource) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by full name, as stored: those outside the blocks, then block by block."""
    for name in source.family.outer_tensors(source.shape):
        yield name, source.raw_outer(name)
    for index in range(source.shape.blocks):
        prefix = source.family.block_prefix(index)
        for name, tensor in source.raw_block(index).items():
            yield prefix + name, tensor


def _plain(_names: Iterable[str]) -> dict[str, str]:
    return {"format": "pt"}


def write_folder(
    source: CheckpointSource,
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    *,
    stem: str = "model",
    metadata: Callable[[Iterable[str]], dict[str, str]] = _plain,
    texts: Mapping[str, str] | None = None,
    shard_bytes: int = 1 << 30,
) -> list[Path]:
    """Write ``tensors`` by full name, the model's config changed by ``config``, and the small files beside them.

    ``stem``: what the weights' files are called; ``metadata`` of a file that holds the tensors named; ``texts``:
    more files, by name.
    The folder appears whole or not at all. Returns the weights' files. Raises MachineError, and what drawing
    the tensors raises.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in COPIED:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, partial / name)
        if config or (source.overlay is not None and (source.overlay / "config.json").exists()):
            changed = {**source.config, **config}
            (partial / "config.json").write_text(json.dumps(changed, indent=2), encoding="utf-8")
        extras = sliced_extras(source) if source.shape.slices else {}
        for name, text in {**extras, **(texts or {})}.items():
            (partial / name).write_text(text, encoding="utf-8")
        places, total = _write_shards(tensors, partial, shard_bytes, metadata)
        names = sorted(set(places.values()))
        final = {
            name: f"{stem}-{number + 1:05d}-of-{len(names):05d}.safetensors"
            if len(names) > 1
            else f"{stem}.safetensors"
            for number, name in enumerate(names)
        }
        for name in names:
            (partial / name).replace(partial / final[name])
        if len(names) > 1:
            write_json(
                partial / f"{stem}.safetensors.index.json",
                {
                    "metadata": {"total_size": total},
                    "weight_map": {key: final[place] for key, place in places.items()},
                },
            )
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except PruneBenchError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise MachineError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space or choose another --out"
        ) from error
    return sorted(folder.glob("*.safetensors"))


def _write_shards(
    tensors: Iterable[tuple[str, Tensor]],
    folder: Path,
    shard_bytes: int,
    metadata: Callable[[Iterable[str]], dict[str, str]],
) -> tuple[dict[str, str], int]:
    places: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    held = total = number = 0
    for name, tensor in tensors:
        if shard and held + tensor.nbytes > shard_bytes:
            number, held = _flush(folder, shard, number, places, metadata), 0
        shard[name] = tensor
        held += tensor.nbytes
        total += tensor.nbytes
    _flush(folder, shard, number, places, metadata)
    return places, total


def _flush(
    folder: Path,
    shard: dict[str, Tensor],
    number: int,
    places: dict[str, str],
    metadata: Callable[[Iterable[str]], dict[str, str]],
) -> int:
    name = f"shard-{number:05d}.safetensors"
    write_tensors(folder / name, shard, metadata(shard))
    places.update(dict.fromkeys(shard, name))
    shard.clear()
    return number + 1
