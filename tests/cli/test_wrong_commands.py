"""Commands that are wrong: one clear line, the right exit code, nothing written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from bench.cli.main import main
from methods.errors import MachineError, StoreError, UserError

RUN = ("run", "--models", "nano-opt", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rnu",), "did you mean 'run'"),
        (("frobnicate",), "known: run, list"),
        (("--nonsense",), "no such option"),
        (("run",), "bench run --models nano-*"),
        (("run", "--modles", "nano-opt"), "--models"),
        (("run", "--models"), "requires an argument"),
        (("run", "--models", ""), "--models"),
        (("run", "--models", "nano-opt,"), "empty entry"),
        (("run", "--models", "nano-otp"), "nano-opt"),
        (("run", "--models", "gpt2"), "gpt2"),
        (("run", "--models", "zzz-*"), "no model matches"),
        (("run", "--models", "opt-*", "bloom-*"), "separate lists by commas"),
        (("run", "--models", "path:/nowhere"), "/nowhere"),
        ((*RUN, "--methods", "sparsgpt"), "did you mean 'sparsegpt'"),
        ((*RUN, "--methods", "sparsegpt@"), "rule[@allocation][+refinement]"),
        ((*RUN, "--methods", "magnitude@globall"), "global"),
        ((*RUN, "--sparsity", "50"), "write 0.5"),
        ((*RUN, "--sparsity", "-0.5"), "0 <= sparsity < 1"),
        ((*RUN, "--sparsity", "1"), "0 <= sparsity < 1"),
        ((*RUN, "--sparsity", "lots"), "is no number"),
        ((*RUN, "--pattern", "4:4"), "below M"),
        ((*RUN, "--pattern", "4:2"), "below M"),
        ((*RUN, "--pattern", "0:4"), "at least 1"),
        ((*RUN, "--pattern", "diagonal"), "unstructured or N:M"),
        ((*RUN, "--pattern", "2:4", "--sparsity", "0.5"), "--pattern unstructured,2:4"),
        ((*RUN, "--seeds", "a"), "seed 'a'"),
        ((*RUN, "--seeds", "-1"), "seed '-1'"),
        ((*RUN, "--samples", "0"), "--samples is 0"),
        ((*RUN, "--length", "1"), "--length"),
        ((*RUN, "--windows", "x"), "--windows is 'x'"),
        ((*RUN, "--protocol", "papr"), "paper"),
        ((*RUN, "--text", "wikitext"), "wikitext2"),
        ((*RUN, "--calibration", "pile"), "c4"),
        ((*RUN, "--eval", "perplexty"), "did you mean 'perplexity'"),
        ((*RUN, "--eval", "vibes"), "available: perplexity"),
        (("run", "--models", "nano-opt", "--device", "gpu"), "--device 'gpu'"),
        (("run", "--models", "nano-opt", "--device", "cuda:77"), "--device cuda:77"),
        ((*RUN, "--dtype", "int8"), "float32, bfloat16, float16"),
        ((*RUN, "--hessian-dtype", "float16"), "float32, float64"),
        ((*RUN, "--schedule", "blockwize"), "did you mean 'blockwise'"),
        ((*RUN, "--threads", "0"), "use 1 to"),
        ((*RUN, "--hidden-budget", "big"), "is no size"),
        ((*RUN, "--set", "percdamp=1"), "method.parameter=value"),
        ((*RUN, "--set", "sparsegpt.percdmp=1"), "did you mean 'percdamp'"),
        ((*RUN, "--set", "sparsegpt.percdamp=high"), "a finite number"),
        ((*RUN, "--set", "wanda.x=1"), "a method not run"),
        ((*RUN, "--config", "missing.yaml"), "no such file"),
        ((*RUN, "--data-dir", "missing"), "--data-dir 'missing'"),
        (("list", "modles"), "models"),
        (("pull",), "missing argument"),
        (("pull", "smolm2-135m"), "smollm2-135m"),
        (("pull", "path:/dir"), "bench pull"),
        (("status", "--out", "missing"), "'missing' is not there"),
        (("report", "--format", "pdf"), "pdf"),
        (("report", "--out", "missing"), "'missing' is not there"),
        (("report", "--out", "missing", "--format", "html"), "'missing' is not there"),
        (("completion", "tcsh"), "tcsh"),
    ],
)
def test_each_is_one_clear_line(bench: Any, words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = bench(*words)
    assert result.code == 2
    assert said in result.error
    assert not result.out
    assert not list(tmp_path.iterdir())


def test_globs_that_the_shell_expanded_are_explained(bench: Any, tmp_path: Path) -> None:
    for name in ("opt-a.log", "opt-b.log"):
        (tmp_path / name).touch()
    result = bench("run", "--models", "opt-a.log", "opt-b.log")
    assert result.code == 2
    assert "quote it, as in --models 'opt-*'" in result.error
    result = bench("run", "--models", "opt-a.log")
    assert result.code == 2
    assert "file" in result.error


def test_yaml_that_tries_to_execute(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("models: !!python/object/apply:os.system ['touch owned']\n")
    result = bench("run", "--config", "run.yaml")
    assert result.code == 2
    assert "is not plain data" in result.error
    assert not (tmp_path / "owned").exists()


def test_out_that_is_a_file(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    result = bench(*RUN, "--out", "taken")
    assert result.code == 2
    assert "is a file" in result.error


def test_out_that_cannot_be_written(bench: Any, tmp_path: Path, runner: Any) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0:
        locked = Path("/proc")  # where not even root makes folders
    result = bench(*RUN, "--out", str(locked / "run"))
    assert result.code == 1
    assert "cannot be written" in result.error
    assert not runner.calls


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_the_folder_is_tried_before_any_work(
    bench: Any, monkeypatch: pytest.MonkeyPatch, runner: Any, number: int
) -> None:
    def refuse(**_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("bench.cli.run.tempfile.TemporaryFile", refuse)
    result = bench(*RUN)
    assert result.code == 1
    assert os.strerror(number).lower() in result.error
    assert not runner.calls


def test_stores_that_cannot_be_read(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "bench-out").mkdir()
    result = bench("report")
    assert result.code == 2
    assert "holds no results" in result.error
    (tmp_path / "bench-out" / "store.json").write_text("{")
    for words in (("report",), ("status",), (*RUN,)):
        result = bench(*words)
        assert result.code == 1
        assert "damaged" in result.error
    (tmp_path / "bench-out" / "store.json").write_text('{"store": "prune-bench", "format": 99}')
    assert "upgrade" in bench("report").error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("two runs\non one folder"), 2, "two runs on one folder"),
        (StoreError("the store is broken"), 1, "the store is broken"),
        (MachineError("disk full"), 1, "disk full"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), 1, "read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "permission denied"),
        (MemoryError(), 1, "not enough memory"),
    ],
)
def test_failures_of_a_run(bench: Any, runner: Any, error: BaseException, code: int, said: str) -> None:
    runner.raises = error
    result = bench(*RUN, "--quiet")
    assert result.code == code
    assert said in result.error


def test_the_unexpected_leaves_a_traceback_in_a_file(bench: Any, runner: Any, tmp_path: Path) -> None:
    runner.raises = ZeroDivisionError("by\nnothing")
    result = bench(*RUN, "--quiet")
    assert result.code == 1
    assert "unexpected ZeroDivisionError: by nothing; the traceback is in" in result.error
    kept = Path(result.error.rpartition(" ")[2])
    assert kept.parent.resolve() == (tmp_path / "bench-out").resolve()
    assert "bench run --models nano-opt" in kept.read_text()
    assert "Traceback" in kept.read_text()


def test_interruption_says_how_to_resume(bench: Any, runner: Any) -> None:
    runner.raises = KeyboardInterrupt()
    result = bench("run", "--models", "nano-*", "--device", "cpu", "--quiet")
    assert result.code == 130
    assert "resume with: bench run --models 'nano-*' --device cpu --quiet" in result.error
    runner.raises, runner.interrupted = None, True
    result = bench("run", "--models", "nano-*", "--device", "cpu", "--quiet")
    assert result.code == 130
    assert "resume with: bench run --models 'nano-*' --device cpu --quiet" in result.error


def test_interruption_elsewhere_promises_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def stop() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.models.load.describe", stop)
    assert main(["list", "models"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
