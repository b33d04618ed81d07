"""What is written down beside a pulled model: where it came from and the hash of every file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.models.cache import write_json
from bench.models.path import Checkpoint, open_directory
from bench.models.registry import Entry
from bench.models.weights import read_json
from methods.errors import CheckpointError

__all__ = ["MANIFEST", "open_pulled", "write"]

MANIFEST = "prune-bench.json"
FORMAT = 1


def write(directory: Path, entry: Entry, *, revision: str, origin: Mapping[str, str]) -> Checkpoint:
    """Check a staged model and write its manifest; ``origin``: sha256 by name of what it was made from.

    Raises CheckpointError where config and weights do not agree.
    """
    checkpoint = open_directory(
        directory, id=entry.id, source=entry.source, revision=revision, label=entry.label
    )
    record = {
        "format": FORMAT,
        "id": entry.id,
        "source": entry.source,
        "repo": entry.repo,
        "revision": checkpoint.revision,
        "label": entry.label,
        "files": checkpoint.files,
        "made_from": dict(origin),
    }
    write_json(directory / MANIFEST, record)
    return checkpoint


def open_pulled(directory: Path, entry: Entry) -> Checkpoint:
    """A pulled model, compared with its manifest. Raises CheckpointError naming a file that changed."""
    record = read_json(directory / MANIFEST)
    files, revision = record.get("files"), record.get("revision")
    if record.get("format") != FORMAT or not isinstance(files, dict) or not isinstance(revision, str):
        raise CheckpointError(
            f"{directory / MANIFEST} is not of format {FORMAT}; "
            f"fetch the model again: `bench pull {entry.id}`"
        )
    found = open_directory(
        directory, id=entry.id, source=entry.source, revision=revision, label=str(record.get("label", ""))
    )
    changed = sorted(name for name in {*files, *found.files} if files.get(name) != found.files.get(name))
    if changed:
        raise CheckpointError(
            f"{directory / changed[0]} has changed since it was pulled; "
            f"run `bench pull {entry.id}` to fetch the model again"
        )
    return found
