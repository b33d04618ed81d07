"""Any local Hugging Face directory as a checkpoint: all of it untrusted, and checked before work begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.models import weights
from bench.models.cache import digests
from bench.models.registry import PATH_PREFIX
from methods.errors import CheckpointError, ModelUnavailable, PruneBenchError, UnsupportedModel

if TYPE_CHECKING:
    from methods.interface import ModelShape

__all__ = ["TOKENIZER_FILES", "Checkpoint", "load", "open_directory", "read_config"]

CONFIG = "config.json"
CONFIG_LIMIT = 4 << 20
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on this disk, checked: config, names and shapes of all tensors agree.

    ``path``: directory with config.json, safetensors and tokenizer files; ``revision``: hub commit, or
    ``sha256:`` with 16 hex digits over all of ``files``; ``files``: sha256 by name of all that is read;
    ``label``: what must be said wherever figures of the model are shown.
    """

    id: str
    source: str
    path: Path
    revision: str
    label: str
    config: dict[str, Any]
    shape: ModelShape
    files: dict[str, str]

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the safetensors files."""
        return tuple(name for name in sorted(self.files) if name.endswith(".safetensors"))


def load(model: str) -> Checkpoint:
    """The checkpoint of ``path:/dir``. Raises ModelUnavailable, UnsupportedModel or CheckpointError."""
    directory = Path(model.removeprefix(PATH_PREFIX)).expanduser().resolve()
    if not directory.is_dir():
        raise ModelUnavailable(
            f"{PATH_PREFIX}{directory} is no directory; give a folder with config.json and model.safetensors"
        )
    return open_directory(directory, id=f"{PATH_PREFIX}{directory}", source="path")


def open_directory(
    directory: Path,
    *,
    id: str,  # noqa: A002 -- the record's word
    source: str,
    revision: str = "",
    label: str = "",
) -> Checkpoint:
    """Check a directory and hash what is read of it. An empty ``revision`` becomes one over the hashes."""
    config, shape = read_config(directory)
    names = weights.weight_files(directory)
    found = weights.headers(directory, names)
    if not (directory / weights.SINGLE).is_file() and (directory / weights.INDEX).is_file():
        _check_index(directory, found)
    from methods.families import family_of

    weights.check_tensors(found, family_of(config), shape, str(directory))
    indices = (weights.INDEX, weights.BITMAPS_INDEX)
    beside = [name for name in (*TOKENIZER_FILES, *indices) if (directory / name).is_file()]
    files = digests(directory, {CONFIG, *names, *beside})
    return Checkpoint(id, source, directory, revision or _over(files), label, config, shape, files)


def read_config(directory: Path) -> tuple[dict[str, Any], ModelShape]:
    """config.json and the sizes in it. Raises CheckpointError or UnsupportedModel; executes nothing."""
    from methods.families import shape_of
    from methods.families.sliced import PREFIX

    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{directory} has no config.json; a Hugging Face model directory is wanted")
    config = weights.read_json(path, limit=CONFIG_LIMIT)
    # the code bundled with a sliced model is for others: ours is installed, and what lies in the folder is not read
    if config.get("auto_map") and not str(config.get("model_type")).startswith(PREFIX):
        raise UnsupportedModel(
            f"{path} asks for code of its own (auto_map); nothing from a model is executed"
        )
    try:
        return config, shape_of(config)
    except PruneBenchError as error:
        raise type(error)(f"{path}: {error}") from error


def _check_index(directory: Path, found: Mapping[str, weights.Header]) -> None:
    for tensor, name in weights.shard_names(directory / weights.INDEX).items():
        if tensor not in found or found[tensor].file != name:
            raise CheckpointError(
                f"{directory / weights.INDEX} says {tensor[:80]} lies in {name}; it does not"
            )


def _over(files: Mapping[str, str]) -> str:
    text = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]
