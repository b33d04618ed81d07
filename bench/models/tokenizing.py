"""What a tokenizer's libraries raise, as one line of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from methods.errors import CheckpointError, reason_of

__all__ = ["tokenizing"]


@contextmanager
def tokenizing(failed: str) -> Iterator[None]:
    """Raises CheckpointError, ``failed`` and the reason, for whatever a bad tokenizer file makes the body raise."""
    try:
        yield
    except BaseException as error:
        # A panic of the Rust tokenizers is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{failed}: {reason_of(error)}") from error
