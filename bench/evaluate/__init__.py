"""What is measured on a pruned model."""

from __future__ import annotations

__all__ = ["available"]


def available() -> tuple[str, ...]:
    """Evaluations that ``--eval`` takes; free of torch."""
    return ("perplexity", "zeroshot", "decode")
