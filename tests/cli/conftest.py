"""Running the command in this process, and a stand-in for the runner where only the command is under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sample_records import record

from bench.cli.main import main
from bench.executors.local import Outcome
from bench.plan.cells import Plan
from bench.plan.observer import GridObserver
from bench.results.segments import Store


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error; fails where there is none or more."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


Bench = Callable[..., Result]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """`bench WORD …` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)

    def call(*words: str) -> Result:
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@dataclass
class Runner:
    """Stands in for the grid: walks the plan's cells, stores made-up records, ends as it is told."""

    fails: frozenset[str] = frozenset()
    raises: BaseException | None = None
    interrupted: bool = False
    calls: list[tuple[Plan, Path, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, plan: Plan, out: Path, observer: GridObserver, **options: Any) -> Outcome:
        self.calls.append((plan, out, options))
        if self.raises is not None:
            raise self.raises
        observer.plan([*plan.cells, *(refusal.cell for refusal in plan.refusals)])
        done = failed = 0
        with Store(out, create=True) as store:
            for index, cell in enumerate(plan.cells):
                observer.cell(index, cell)
                observer.phase("prune", 2)
                observer.step(1, "block 1")
                observer.warning("made up\nwarning")
                bad = cell.method in self.fails
                store.append(
                    record(
                        phase="prune" if bad else "perplexity",
                        status="failed" if bad else "done",
                        reason="told to fail" if bad else "",
                        cell=cell.name,
                        subject=cell.name,
                        model=cell.model,
                        method=cell.method,
                        target=cell.target,
                        seed=cell.seed,
                        protocol="" if bad else cell.evaluation.id,
                        metrics=() if bad else ({"name": "perplexity", "unit": "1", "value": 20.5},),
                    )
                )
                observer.done(
                    index, cell, "failed" if bad else "done", "told to fail" if bad else "perplexity 20.5"
                )
                failed, done = failed + bad, done + (not bad)
        return Outcome(done=done, failed=failed, refused=len(plan.refusals), interrupted=self.interrupted)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """The stand-in, in place of the grid."""
    stand_in = Runner()
    monkeypatch.setattr("bench.executors.local.execute", stand_in)
    return stand_in
