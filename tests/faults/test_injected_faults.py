"""Faults put into one cell of a grid: that cell fails in one line, the rest is done, and a rerun makes it good."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from saved_models import saved, saved_with_tokenizer

from bench.cli.main import main
from bench.results.current import current
from bench.results.segments import Store

_FLAGS = ("--protocol", "nano", "--windows", "2", "--samples", "4", "--device", "cpu", "--threads", "1")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return saved_with_tokenizer(tmp_path / "good", "opt")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    def grid(*models: Path, methods: str = "magnitude,sparsegpt") -> int:
        named = ",".join(f"path:{model}" for model in models)
        code = main(["run", "--models", named, "--methods", methods, *_FLAGS, "--out", str(tmp_path / "out")])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return code

    return grid


def _said(out: Path, model: Path) -> dict[str, str]:
    """Reason of each method of a model that did not end well; every line is one line."""
    bad = [r for r in current(Store(out).history()) if r.status != "done" and r.model == f"path:{model}"]
    assert all(r.reason and "\n" not in r.reason for r in bad)
    return {r.method: r.reason for r in bad}


def _done(out: Path, model: Path) -> set[str]:
    return {
        r.method
        for r in current(Store(out).history())
        if (r.status, r.phase, r.model) == ("done", "perplexity", f"path:{model}")
    }


def test_infinite_activations_fail_their_cells_only(
    tmp_path: Path, good: Path, run: Callable[..., int]
) -> None:
    bad = saved_with_tokenizer(tmp_path / "bad", "opt")
    tensors = load_file(bad / "model.safetensors")
    tensors["model.decoder.layers.1.fc1.weight"] *= 1e38
    save_file(tensors, bad / "model.safetensors", {"format": "pt"})
    assert run(bad, good) == 1
    reason = _said(tmp_path / "out", bad)["sparsegpt"]
    assert "block 1" in reason or "block 2" in reason
    assert _done(tmp_path / "out", good) == {"dense", "magnitude", "sparsegpt"}


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path, good: Path, run: Callable[..., int]) -> None:
    bad = saved(tmp_path / "bad", "opt", vocab_size=40)
    for path in good.glob("*token*"):
        (bad / path.name).write_bytes(path.read_bytes())
    assert run(bad, good) in (1, 2)
    reasons = _said(tmp_path / "out", bad)
    assert set(reasons) == {"dense", "magnitude", "sparsegpt"}
    assert all("tokenizer" in reason or "vocabulary" in reason for reason in reasons.values()), reasons
    assert _done(tmp_path / "out", good) == {"dense", "magnitude", "sparsegpt"}


def test_memory_that_runs_out_fails_one_cell_and_a_rerun_makes_it_good(
    tmp_path: Path, good: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.run import phases

    real = phases.prune

    def short(cell: Any, *words: Any) -> Any:
        if cell.method == "magnitude":
            raise MemoryError("Unable to allocate 2.00 GiB")
        return real(cell, *words)

    monkeypatch.setattr(phases, "prune", short)
    assert run(good) == 1
    assert "out of memory" in _said(tmp_path / "out", good)["magnitude"]
    assert _done(tmp_path / "out", good) == {"dense", "sparsegpt"}
    monkeypatch.setattr(phases, "prune", real)
    assert run(good) == 0
    assert not _said(tmp_path / "out", good)


def test_a_clock_that_went_back_hides_no_later_result(
    tmp_path: Path, good: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.run import cell, phases

    ticks = iter(datetime(2030, 1, 1, tzinfo=UTC) - timedelta(seconds=number) for number in range(10_000))
    monkeypatch.setattr(cell, "now", lambda: next(ticks).isoformat(timespec="microseconds"))
    real = phases.prune
    monkeypatch.setattr(phases, "prune", lambda *_: (_ for _ in ()).throw(MemoryError("none left")))
    assert run(good, methods="magnitude") == 1
    monkeypatch.setattr(phases, "prune", real)
    assert run(good, methods="magnitude") == 0
    assert not _said(tmp_path / "out", good), "the failure is older, whatever the clock said"
    before = len(Store(tmp_path / "out").history())
    assert run(good, methods="magnitude") == 0
    assert len(Store(tmp_path / "out").history()) == before, "what is done is not done again"


def test_a_read_only_file_system_is_one_line(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**_: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert main(["run", "--models", f"path:{good}", *_FLAGS, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert "read-only file system; choose another" in shown and shown.count("\n") == 1
