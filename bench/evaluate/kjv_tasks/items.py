"""Items drawn from chapters of the King James Bible that the packaged models never trained on.

Which items there are, their order (so that a limit takes them from all over the book) and their wrong choices follow
from keyed hashes: the same everywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from bench.text import kjv

__all__ = ["continuation", "last_word"]

ITEMS = 500
"""Items of a split at most: accuracy to about two points, in seconds on a packaged model."""
BEFORE = 2
"""Verses of context."""
CHOICES = 4
NEAREST = 40
"""Wrong choices are drawn from this many verses of other chapters whose length is nearest to the right one's."""
_LAST = re.compile(r"^(?P<start>.*\S)\s+(?P<word>[A-Za-z]{3,})[^\w\s]*$", re.DOTALL)
_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class _Place:
    """A verse with the verses before it; ``key`` names it in hashes."""

    key: str
    home: tuple[int, int]
    context: str
    verse: str


def last_word(**_: Any) -> dict[str, Dataset]:
    """LAMBADA-style: verses without their last word, and that word, by split."""
    return _datasets(_last_words)


def continuation(**_: Any) -> dict[str, Dataset]:
    """Verses, the true next one among four, and its place among them, by split."""
    return _datasets(_continuations)


def _datasets(make: Callable[[str], Iterator[dict[str, Any]]]) -> dict[str, Dataset]:
    found: dict[str, Dataset] = {}
    for split in _SPLITS:
        rows = sorted(make(split), key=lambda row: _rank("order", row["id"]))
        found[split] = Dataset.from_list(rows[:ITEMS])
    return found


def _last_words(split: str) -> Iterator[dict[str, Any]]:
    for place in _places(split):
        match = _LAST.match(place.verse)
        if match:
            yield {"id": place.key, "context": f"{place.context} {match['start']}", "word": match["word"]}


def _continuations(split: str) -> Iterator[dict[str, Any]]:
    places = sorted(_places(split), key=lambda place: (len(place.verse), place.key))
    for number, place in enumerate(places):
        near = places[max(0, number - 2 * NEAREST) : number + 2 * NEAREST]
        others = [other for other in near if other.home != place.home and other.verse != place.verse]
        others.sort(key=lambda other: (abs(len(other.verse) - len(place.verse)), other.key))
        drawn = sorted(others[:NEAREST], key=lambda other: _rank(place.key, other.key))[: CHOICES - 1]
        label = _rank("place", place.key)[0] % CHOICES
        choices = [other.verse for other in drawn]
        choices.insert(label, place.verse)
        yield {"id": place.key, "context": place.context, "choices": choices, "label": label}


def _places(split: str) -> Iterator[_Place]:
    for chapter in kjv.split(split):
        for number in range(BEFORE, len(chapter.verses)):
            start, end = _span(chapter, number)
            first, _ = _span(chapter, number - BEFORE)
            context, verse = _line(chapter.text[first:start]), _line(chapter.text[start:end])
            if context and verse:
                yield _Place(
                    f"{chapter.book}:{chapter.number}:{number + 1}",
                    (chapter.book, chapter.number),
                    context,
                    verse,
                )


def _span(chapter: kjv.Chapter, number: int) -> tuple[int, int]:
    """Where a verse lies, with the bracket that may stand before its offset."""
    start, end = chapter.verses[number]
    return max(chapter.text.rfind(space, 0, start) for space in " \n") + 1, end


def _line(text: str) -> str:
    return " ".join(text.split())


def _rank(*words: str) -> bytes:
    return hashlib.sha256(" ".join(("kjv tasks", *words)).encode()).digest()
