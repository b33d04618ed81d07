"""Raw per-window and per-item values, in safetensors files named by the SHA-256 of what they hold."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.results.files import fault, replace_file
from methods.errors import MachineError, StoreError

if TYPE_CHECKING:
    import numpy as np

FOLDER = "values"
LARGEST = 1 << 30
"""Bytes of the largest side file that is read."""

_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
# A file swapped for a link or a pipe between look and open is neither followed nor waited for.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def save_values(out: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Write `arrays` (any shapes, numeric or bool) to OUT/values/ and return the name; equal arrays share it.

    Raises `MachineError` where the file cannot be written, `StoreError` for what safetensors cannot hold.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save

    try:
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"these values cannot be stored as safetensors: {error}") from error
    name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
    path = out / FOLDER / name
    try:
        if not path.is_file() or path.stat().st_size != len(data):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
    except OSError as error:
        raise fault("write", path, error) from error
    return name


def load_values(out: Path, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Read a side file back, verified against the hash in its name.

    Raises `StoreError` for a name that is none, a missing or altered file.
    """
    return arrays_of(read_values(out, name), name)


def read_values(out: Path, name: str, *, links: bool = True) -> bytes:
    """The bytes of a side file, verified against the hash in its name; without `links`, of a regular file only.

    Raises `StoreError` for a name that is none, a missing or altered file, `MachineError` where it cannot be read.
    """
    # A record is untrusted: its side file may only ever lie in OUT/values.
    if not _NAME.fullmatch(name):
        raise StoreError(f"{name[:80]!r} names no values file: expected <64 hex digits>.safetensors")
    path = out / FOLDER / name
    try:
        if not links and not stat.S_ISREG(path.lstat().st_mode):
            raise StoreError(f"{path} is no regular file: put the file itself there")
        handle = os.open(path, os.O_RDONLY | (0 if links else _NO_LINK))
        with os.fdopen(handle, "rb") as stream:
            if os.fstat(handle).st_size > LARGEST:
                raise StoreError(
                    f"{path} is larger than {LARGEST >> 20} MiB: no values file of this program is"
                )
            data = stream.read()
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: run the cell it belongs to again, with --force") from None
    except OSError as error:
        raise fault("read", path, error) from error
    if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
        raise StoreError(f"{path} was altered or cut short: run the cell it belongs to again, with --force")
    return data


def arrays_of(data: bytes, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays in the bytes of the side file `name`. Raises `StoreError` for what is no safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{name} holds no readable safetensors: {error}") from error


def readable_values(out: Path, name: str) -> dict[str, np.ndarray[Any, Any]] | None:
    """A side file as `load_values` gives it, None where it is missing, altered or cannot be read."""
    try:
        return load_values(out, name)
    except (StoreError, MachineError):
        return None
