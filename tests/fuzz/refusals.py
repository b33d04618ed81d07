"""What a parser may do with bytes from outside: give a value, or refuse in one line. Anything else is a finding."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from methods.errors import PruneBenchError

__all__ = ["Finding", "refusals", "scratch", "split"]

_LONGEST = 4000
_MEMORY = Path("/dev/shm")  # noqa: S108 - only for speed


class Finding(AssertionError):
    """A parser did neither."""


@contextlib.contextmanager
def refusals(*more: type[Exception]) -> Iterator[None]:
    """Lets one-line refusals pass, and exceptions that the parser's docstring names (`more`)."""
    try:
        yield
    except PruneBenchError as error:
        text = str(error)
        if not text or len(text) > _LONGEST:
            raise Finding(f"a message of {len(text)} characters: {text[:200]!r}") from error
    except more:
        pass


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def split(data: bytes, kinds: int) -> tuple[int, bytes]:
    """The first byte as one of so many kinds of input (written as a digit by seeds), and the rest."""
    return (data[0] % 16) % kinds if data else 0, data[1:]
