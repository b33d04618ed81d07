"""Digests that name things: what a figure is about, what a rerun skips, where a prune may resume."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

DIGEST_LENGTH = 16


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces and ASCII only: equal values give equal text.

    Raises ValueError for NaN and infinities, TypeError for keys that are not text and what JSON cannot hold.
    """
    return json.dumps(_checked(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checked(value: Any) -> Any:
    # json.dumps would write the keys 1 and "1" alike, and tuples are lists to it: settle both before hashing.
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"keys must be text to be digested, found {key!r}")
        return {key: _checked(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be part of a key")
    return value


def digest(mapping: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON of `mapping`."""
    return hashlib.sha256(canonical(mapping).encode("ascii")).hexdigest()[:DIGEST_LENGTH]


def subject_key(
    *,
    model: str,
    revision: str,
    method: str,
    parameters: Mapping[str, Any],
    target: str,
    seed: int | None,
    dtype: str,
    calibration: str,
    evaluation: str,
    **more: Any,
) -> str:
    """What a figure is about, whoever measured it.

    `calibration` and `evaluation` are protocol ids ("" where none applies); `more` takes whatever else
    changes the figures by intent (schedule, ...), its None entries left out, so that a new option does not
    rename old subjects.
    """
    parts = {
        "model": model,
        "revision": revision,
        "method": method,
        "parameters": dict(parameters),
        "target": target,
        "seed": seed,
        "dtype": dtype,
        "calibration": calibration,
        "evaluation": evaluation,
    }
    clash = sorted(set(more) & set(parts))
    if clash:
        raise TypeError(f"{', '.join(clash)} given twice")
    return digest({**parts, **{name: value for name, value in more.items() if value is not None}})


def cell_key(subject: str, sources: str | Mapping[str, str]) -> str:
    """What a rerun skips: the subject under the code (and libraries) that can change its figures."""
    return digest({"subject": subject, "sources": sources})


def environment_key(environment: Mapping[str, Any]) -> str:
    """Where a prune may resume in the middle: instruction set, thread count, device, library versions."""
    return digest({"environment": environment})
