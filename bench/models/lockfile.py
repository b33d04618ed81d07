"""models.lock.json: the commit that every hub model was first pulled at, and is read at ever after."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.models.cache import cache_root, locked, make_folder, write_json
from bench.models.weights import read_json
from methods.errors import CheckpointError, MachineError, UserError

__all__ = ["folder", "lock_path", "pin", "revision"]

FORMAT = 1
COMMIT = re.compile(r"[0-9a-f]{40}")


def lock_path() -> Path:
    """``BENCH_LOCK``, or models.lock.json in the cache."""
    named = os.environ.get("BENCH_LOCK", "")
    return Path(named).expanduser() if named else cache_root() / "models.lock.json"


def revision(repo: str) -> str:
    """The commit that a repository is locked to, or "". Raises UserError for an unusable lock file."""
    entry = _models().get(repo)
    if entry is None:
        return ""
    commit = entry.get("revision") if isinstance(entry, dict) else None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise UserError(
            f"{lock_path()}: the revision of {repo} is {str(commit)[:60]!r}, not a commit of 40 hex digits; "
            "correct it, or remove the entry to lock the present main"
        )
    return commit


def folder(repo: str) -> Path | None:
    """Where a repository's locked commit lies once it is pulled; None while it is not locked."""
    commit = revision(repo) if repo else ""
    return cache_root() / "hub" / repo.replace("/", "--") / commit if commit else None


def pin(repo: str, commit: str, files: Mapping[str, str], origin: Mapping[str, str]) -> None:
    """Lock ``repo`` to ``commit``, with sha256 by name of its files and of what they were converted from."""
    with locked("models.lock"):
        path = lock_path()
        make_folder(path.parent)
        entry: dict[str, Any] = {"revision": commit, "files": dict(files)}
        if origin:
            entry["converted_from"] = dict(origin)
        try:
            write_json(path, {"format": FORMAT, "models": _models() | {repo: entry}})
        except OSError as error:
            raise MachineError(
                f"cannot write the lock file {path}: {error.strerror}; point BENCH_LOCK at a writable one"
            ) from error


def _models() -> dict[str, Any]:
    path = lock_path()
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except CheckpointError as error:
        raise UserError(f"the lock file cannot be used: {error}") from error
    models = found.get("models")
    if found.get("format") != FORMAT or not isinstance(models, dict):
        raise UserError(f"{path} is not a lock file of format {FORMAT}; move it away to start a new one")
    return models
