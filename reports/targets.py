"""What a target's name asks for, and the order in which targets are shown."""

from __future__ import annotations

import re


def target_order(target: str) -> tuple[int, float, str]:
    """Sort key of targets: shares, N:M, slices, parameters, bytes, each by the share asked for; the rest by name."""
    share = asked_sparsity(target)
    if share is not None:
        return (1 if ":" in target else 0, share, target)
    if match := re.fullmatch(r"(slice|params-|bytes-)([0-9]{1,3}(?:\.[0-9]{1,9})?)%", target):
        return (2 + ("slice", "params-", "bytes-").index(match[1]), float(match[2]) / 100, target)
    return (5, 0.0, target)


def asked_sparsity(target: str) -> float | None:
    """The share of weights that `50%` or `2:4` (N of every M kept) asks to remove; None for other targets.

    A grid that goes with it (`50%+4bit`) removes nothing.
    """
    target = re.sub(r"\+[0-9]{1,2}bit$", "", target)
    if match := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%", target):
        return float(match[1]) / 100
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", target)
    if match and int(match[2]) > 0:
        return 1 - int(match[1]) / int(match[2])
    return None
