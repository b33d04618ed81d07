"""Reads values out of a model's config.json, which nobody vouches for."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from methods.errors import UnsupportedModel

__all__ = ["Fields", "brief"]

LARGEST = 2**31 - 1
MOST_BLOCKS = 10_000


def brief(value: object) -> str:
    """A value from outside, on one short line."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Fields:
    """Typed, bounded access to a config; every failure is an UnsupportedModel that names key and value.

    A key that is absent or null takes its default; without a default it is required.
    """

    def __init__(self, family: str, config: Mapping[str, Any]) -> None:
        self.family = family
        self.config = config

    def integer(self, *keys: str, default: int | None = None, low: int = 1, high: int = LARGEST) -> int:
        """A whole number under one of several spellings of its key, which must not contradict one another."""
        found = {key: self.config[key] for key in keys if self.config.get(key) is not None}
        if not found:
            if default is None:
                raise self.missing(" or ".join(keys))
            return default
        for key, value in found.items():
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise self.wrong(key, value, f"a whole number from {low} to {high}")
        if len(set(found.values())) > 1:
            stated = ", ".join(f"{key} {value}" for key, value in found.items())
            raise UnsupportedModel(
                f"{self.family} config contradicts itself: {stated}; keep one of these keys"
            )
        return int(next(iter(found.values())))

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def positive(self, key: str, *, default: float) -> float:
        """A finite number above zero."""
        value = self.config.get(key)
        if value is None:
            return default
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not 0 < value <= sys.float_info.max
        ):
            raise self.wrong(key, value, "a finite number above 0")
        return float(value)

    def choice(self, key: str, allowed: Collection[str], *, default: str) -> str:
        """One of a few words."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(key, value, f"one of {', '.join(sorted(allowed))}")
        return value

    def divisible(self, name: str, value: int, part: str, parts: int) -> int:
        """``value / parts``, which must be whole."""
        if value % parts:
            raise UnsupportedModel(
                f"{self.family} config: {name} {value} is not divisible by {part} {parts}; correct it"
            )
        return value // parts

    def missing(self, key: str) -> UnsupportedModel:
        """The failure for a required key that is absent."""
        return UnsupportedModel(f"{self.family} config has no {key}; add it to config.json")

    def wrong(self, key: str, value: object, allowed: str) -> UnsupportedModel:
        """The failure for a value that cannot be."""
        return UnsupportedModel(
            f"{self.family} config: {key} is {brief(value)}; allowed is {allowed}; correct config.json"
        )
