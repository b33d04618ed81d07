"""Items of the tasks on the embedded text: held out, right by the book, the same everywhere."""

from __future__ import annotations

import hashlib
import json

import pytest
from datasets import Dataset

from bench.evaluate.kjv_tasks.items import continuation, last_word
from bench.text import kjv


@pytest.fixture(scope="module")
def made() -> dict[str, dict[str, Dataset]]:
    return {"last word": last_word(), "continuation": continuation()}


def _held_out(split: str) -> str:
    return " ".join(" ".join(text.split()) for text in kjv.documents(split))


def test_items_are_verses_of_their_split(made: dict[str, dict[str, Dataset]]) -> None:
    for split in ("validation", "test"):
        text = _held_out(split)
        for row in made["last word"][split]:
            assert f"{row['context']} {row['word']}" in text and row["word"].isalpha()
        for row in made["continuation"][split]:
            right = row["choices"].pop(row["label"])
            assert f"{row['context']} {right}" in text
            assert all(wrong in text and f"{row['context']} {wrong}" not in text for wrong in row["choices"])


def test_items_are_many_balanced_and_fixed(made: dict[str, dict[str, Dataset]]) -> None:
    assert {name: len(found["test"]) for name, found in made.items()} == {
        "last word": 500,
        "continuation": 500,
    }
    labels = made["continuation"]["test"]["label"]
    assert all(0.19 < labels.count(label) / len(labels) < 0.31 for label in range(4))
    first = [found["test"][row]["id"] for found in made.values() for row in range(8)]
    assert len({identity.split(":")[0] for identity in first}) > 4, "a limit draws from all over the book"
    rows = [row for found in made.values() for row in found["test"]]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert digest.startswith("b5e34836f7358d4d")
