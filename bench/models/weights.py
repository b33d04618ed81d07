"""Safetensors files of a model directory: which they are, and whether they hold what the config promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.errors import CheckpointError

if TYPE_CHECKING:
    from methods.interface import Family, ModelShape

__all__ = ["Header", "check_tensors", "headers", "read_json", "shard_names", "weight_files"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
JSON_LIMIT = 32 << 20
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|decoder\.version|scale_mask_softmax\.causal_mask)$")
"""What older releases of transformers saved beside the parameters and newer ones compute."""
HEAD = "lm_head.weight"
BITMAPS = "bitmap.safetensors"
BITMAPS_INDEX = "bitmap.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of one tensor; ``dtype`` as safetensors spells it."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path, *, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """A JSON object from an untrusted file. Raises CheckpointError naming the file and what is wrong."""
    try:
        if path.stat().st_size > limit:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; at most {limit} are read")
        found = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a JSON {type(found).__name__}, not an object")
    return found


def shard_names(index: Path, suffix: str = ".safetensors") -> dict[str, str]:
    """``weight_map`` of an index: tensor name to file name, every one a plain name beside the index.

    Raises CheckpointError for anything else, such as a path that leaves the directory.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index} has no weight_map")
    for tensor, name in found.items():
        if not isinstance(name, str) or not name.endswith(suffix) or not SHARD_NAME.fullmatch(name):
            raise CheckpointError(
                f"{index} places {str(tensor)[:80]!r} in {str(name)[:120]!r}; only names of {suffix} files "
                "in the same directory are read"
            )
    return found


def weight_files(directory: Path) -> tuple[str, ...]:
    """Names of the safetensors files that make up the model, as transformers would choose them.

    A folder without any may hold its matrices as bitmaps (see ``methods.stream.bitmap_files``). Raises
    CheckpointError where there are none; where only pickled weights are, it says how to convert them.
    """
    found = _model_files(directory, SINGLE, INDEX)
    if not found:
        found = tuple(sorted(path.name for path in directory.glob("model*.safetensors") if path.is_file()))
    found = found or _model_files(directory, BITMAPS, BITMAPS_INDEX)
    if found:
        return found
    pickled = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise CheckpointError(
            f"{directory} holds only pickled weights ({_some(pickled)}), which could run code when read; "
            "`bench pull ID` converts those of a known model, or save the directory once with "
            "transformers' save_pretrained, which writes safetensors"
        )
    raise CheckpointError(f"{directory} holds no model*.safetensors; nothing else is read as weights")


def _model_files(directory: Path, single: str, index: str) -> tuple[str, ...]:
    if (directory / single).is_file():
        return (single,)
    if not (directory / index).is_file():
        return ()
    names = tuple(sorted(set(shard_names(directory / index).values())))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{directory / index} names {_some(missing)}, which is not there")
    return names


def headers(directory: Path, names: Iterable[str]) -> dict[str, Header]:
    """Headers of every tensor in the files. Raises CheckpointError naming a corrupt or truncated file.

    Of a matrix kept as a bitmap, those it has once unpacked.
    """
    from safetensors import SafetensorError, safe_open

    from methods.stream.bitmap_files import BitmapFiles, has_bitmaps

    if has_bitmaps(directory):
        places = BitmapFiles(directory).headers
        return {name: Header(place.file, place.dtype, place.shape) for name, place in places.items()}
    found: dict[str, Header] = {}
    for name in names:
        path = directory / name
        try:
            with safe_open(path, framework="np") as file:
                for tensor in file.keys():  # noqa: SIM118 -- no mapping, and not iterable
                    if tensor in found:
                        raise CheckpointError(
                            f"{tensor} lies in both {found[tensor].file} and {name} of {directory}"
                        )
                    view = file.get_slice(tensor)
                    found[tensor] = Header(name, view.get_dtype(), tuple(view.get_shape()))
        except (SafetensorError, OSError, ValueError) as error:
            size = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            raise CheckpointError(
                f"{path} ({size}) is corrupt or truncated: {' '.join(str(error).split())[:160]}; get it anew"
            ) from error
    return found


def check_tensors(
    found: Mapping[str, Header], family: Family, shape: ModelShape, where: str
) -> dict[str, str]:
    """Compare headers with what the config promises; returns canonical name -> name in the files.

    Raises CheckpointError for missing, unknown or wrongly shaped tensors and for dtypes that are not floats.
    """
    outer = family.outer_tensors(shape)
    # A config may claim any number of blocks: count before names are spelled out.
    if shape.blocks > len(found):
        raise CheckpointError(
            f"{where}: the config says {shape.blocks} blocks, but there are {len(found)} tensors"
        )
    expected = dict(outer)
    for index in range(shape.blocks):
        prefix = family.block_prefix(index)
        expected.update({prefix + name: size for name, size in family.block_tensors(shape, index).items()})
    names: dict[str, str] = {}
    missing: list[str] = []
    for canonical, size in expected.items():
        name = next((spelt for spelt in (canonical, *family.aliases(canonical)) if spelt in found), None)
        if name is None:
            missing.append(canonical)
            continue
        header = found[name]
        if header.shape != tuple(size):
            raise CheckpointError(
                f"{where}: {name} in {header.file} has shape {list(header.shape)}, "
                f"its config says {list(size)}"
            )
        if header.dtype not in FLOATS:
            raise CheckpointError(
                f"{where}: {name} in {header.file} has dtype {header.dtype}; read are {', '.join(FLOATS)}"
            )
        names[canonical] = name
    if missing:
        raise CheckpointError(f"{where}: {len(missing)} tensors are missing, such as {_some(missing)}")
    unknown = sorted(set(found) - set(names.values()))
    unknown = [name for name in unknown if not BUFFERS.search(name) and not (shape.tied and name == HEAD)]
    if unknown:
        raise CheckpointError(
            f"{where}: {len(unknown)} tensors that the config does not account for, such as {_some(unknown)}"
        )
    return names


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
