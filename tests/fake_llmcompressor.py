"""An interpreter whose llm-compressor is the stub beside this file, and the same without starting one."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.external.llmcompressor import interpreter, pruner, worker

__all__ = ["STUB", "in_process", "interpreter_at"]

STUB = Path(__file__).with_name("llmcompressor_stub")
_STUBBED = ("llmcompressor", "loguru", "transformers")


def interpreter_at(path: Path, *more: str, stub: Path = STUB) -> str:
    """A program that runs this Python with ``stub`` in front of all packages; ``more`` shell lines go before."""
    lines = ["#!/bin/sh", *more, f'PYTHONPATH="{stub}" exec "{sys.executable}" "$@"']
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


@contextmanager
def _stubs() -> Iterator[None]:
    """The stub's modules instead of the real ones, and none of them afterwards."""

    def drop() -> dict[str, Any]:
        names = [name for name in sys.modules if name.partition(".")[0] in _STUBBED]
        return {name: sys.modules.pop(name) for name in names}

    kept = drop()
    sys.path.insert(0, str(STUB))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(STUB))
        drop()
        sys.modules.update(kept)


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker's work be done here, by the stub: many times as quick as a process for each."""

    def work(python: str, job: Path, **_: Any) -> None:
        described = json.loads(job.read_text())
        with _stubs(), torch.random.fork_rng():
            result = worker.run(described, worker.Reporter(io.StringIO()))
        (Path(described["out"]) / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(pruner, "run_worker", work)
    monkeypatch.setattr(pruner, "find", lambda python: python or "here")
    monkeypatch.setattr(pruner, "versions", lambda python: {"llmcompressor": "0.14.9"})
    monkeypatch.setenv(interpreter.VARIABLE, sys.executable)
