"""Small durable steps on files, and one wording for what the operating system refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from pathlib import Path

from methods.errors import MachineError, PruneBenchError, StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


def fault(verb: str, path: Path, error: OSError) -> PruneBenchError:
    """The one-line error for a fault of the system: `MachineError`, or `StoreError` for a wrong path."""
    detail = error.strerror or str(error)
    if error.errno in _FULL:
        return MachineError(
            f"cannot {verb} {path}: {detail}; what was stored before is intact, "
            "make room and run the same command again"
        )
    if error.errno in _DENIED:
        return MachineError(
            f"cannot {verb} {path}: {detail}; choose a folder you may write with --out, or change its rights"
        )
    if error.errno in _MISPLACED:
        return StoreError(f"cannot {verb} {path}: {detail}; --out must name a folder")
    return MachineError(f"cannot {verb} {path}: {detail}")


def sync_folder(folder: Path) -> None:
    """Make a new or renamed file's entry in `folder` durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write all of `data`, in one call where the system lets it. Raises OSError, maybe half-way."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` whole or not at all: temporary file, fsync, rename. Raises OSError."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def hold(handle: int, *, wait: bool = False) -> bool:
    """Take an exclusive advisory lock on an open file, kept until the descriptor closes or its process dies.

    False where another descriptor holds it; True where the system or the file system has no such locks.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
