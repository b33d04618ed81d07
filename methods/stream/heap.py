"""Freed memory, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache
from typing import Any

__all__ = ["give_back"]


@cache
def _c_library() -> Any:
    return ctypes.CDLL(None)


def give_back() -> None:
    """Return the allocator's free pages to the system (glibc; elsewhere nothing happens).

    glibc raises the size from which it maps memory apart up to 32 MiB, so matrices come to lie on the heap, where
    tensors of a few sizes leave gaps: without this a walk's resident memory grows by a matrix or so a block.
    """
    with contextlib.suppress(OSError, AttributeError):
        _c_library().malloc_trim(0)
