"""Digests of code: what a rerun takes for changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from bench.run import sources


def test_the_tasks_of_a_suite_are_part_of_the_accuracies_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: sources.evaluation_sources(name) for name in ("zeroshot", "perplexity")}
    changed = tmp_path / "suites.py"
    changed.write_text("other tasks")
    files = sources._files

    def edited(module: str) -> Iterable[Path]:
        return (changed,) if module == "bench.plan.suites" else files(module)

    monkeypatch.setattr(sources, "_files", edited)
    sources._digest.cache_clear()
    after = {name: sources.evaluation_sources(name) for name in before}
    sources._digest.cache_clear()
    assert after["zeroshot"] != before["zeroshot"] and after["perplexity"] == before["perplexity"]
