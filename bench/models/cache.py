"""The folder of pulled models and its habits: locks, atomic arrival, remembered hashes, disk checks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from methods.errors import CheckpointError, MachineError

__all__ = [
    "cache_root",
    "digests",
    "discard",
    "install",
    "locked",
    "make_folder",
    "readable_size",
    "require_disk",
    "write_json",
]

REMEMBERED_FROM = 1 << 20
"""Files from this many bytes on have their hashes remembered; smaller ones are hashed every time."""
DISK_MARGIN = 64 << 20


def cache_root() -> Path:
    """``BENCH_CACHE``, or ``~/.cache/prune-bench``; not created here."""
    named = os.environ.get("BENCH_CACHE", "")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "prune-bench"


def make_folder(path: Path) -> Path:
    """Create ``path`` with its parents. Raises MachineError where that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"cannot create the folder {path}: {error.strerror}; point BENCH_CACHE at one that can be written"
        ) from error
    return path


def readable_size(size: int) -> str:
    """``92.9 MB`` for 92871040: decimal units, as registries show them."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def require_disk(folder: Path, needed: int, what: str) -> None:
    """Raise MachineError with the figures where ``folder``'s disk has not ``needed`` bytes and a margin."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + DISK_MARGIN:
        raise MachineError(
            f"{what} needs {readable_size(needed)} in {folder}, where {readable_size(free)} are free; "
            "free some space or set BENCH_CACHE to a folder on another disk"
        )


@contextlib.contextmanager
def locked(name: str, *, wait: float = 600.0) -> Iterator[None]:
    """Hold the lock ``name`` of the cache; a killed holder's lock is free again at once.

    Raises MachineError after ``wait`` seconds, or where the cache cannot be written.
    """
    import filelock

    folder = make_folder(cache_root() / "locks")
    lock = filelock.FileLock(folder / f"{name}.lock", timeout=wait)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise MachineError(
            f"another process has held {lock.lock_file} for {wait:.0f} s; wait for it, then try again"
        ) from error
    except OSError as error:
        raise MachineError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def discard(folder: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def install(staged: Path, final: Path, files: Mapping[str, str]) -> None:
    """Move a finished folder to its place in one step; one that is already there is replaced.

    ``files``: sha256 by name, just computed, remembered so that nothing large is hashed twice.
    """
    for path in sorted(staged.iterdir()):
        if path.is_file():
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if final.exists():
        old = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
        final.rename(old / "old")
        staged.rename(final)
        discard(old)
    else:
        staged.rename(final)
    stamps = {name: _stamp(final / name) for name in files}
    large = [name for name in files if stamps[name][0] >= REMEMBERED_FROM]
    _remember({str((final / name).resolve()): [*stamps[name], files[name]] for name in large})


def digests(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of files of ``directory`` by name; those of large files are remembered by size and times.

    Raises CheckpointError where a file cannot be read.
    """
    known = _remembered()
    found: dict[str, str] = {}
    learnt: dict[str, list[Any]] = {}
    for name in sorted(names):
        path = directory / name
        try:
            key, stamp = str(path.resolve()), _stamp(path)
            entry = known.get(key)
            if isinstance(entry, list) and len(entry) == 4 and entry[:3] == stamp:
                found[name] = str(entry[3])
                continue
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        if stamp[0] >= REMEMBERED_FROM:
            learnt[key] = [*stamp, found[name]]
    _remember(learnt)
    return found


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _remembered() -> Mapping[str, Any]:
    try:
        found = json.loads((cache_root() / "hashes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(learnt: Mapping[str, list[Any]]) -> None:
    if not learnt:
        return
    # Only saves time, so a cache that cannot be written is no reason to fail.
    with contextlib.suppress(OSError, MachineError), locked("hashes", wait=5.0):
        kept = {key: value for key, value in _remembered().items() if Path(key).exists()}
        write_json(cache_root() / "hashes.json", kept | dict(learnt))
