"""`bench run` around a stand-in for the grid: what it passes on, shows and returns."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = ("run", "--models", "nano-opt", "--device", "cpu")
ANSI = re.compile(r"\x1b")


def test_a_run_shows_the_table_and_the_path_of_the_report(bench: Any, runner: Any, tmp_path: Path) -> None:
    result = bench(*RUN, "--methods", "magnitude")
    assert result.code == 0
    assert "20.5" in result.out
    page = tmp_path / "bench-out" / "report" / "index.html"
    assert result.out.splitlines()[-1] == "report: bench-out/report/index.html"
    assert page.is_file()
    plan, out, options = runner.calls[0]
    assert out == Path("bench-out")
    assert options == {"force": False, "save": ()}
    assert plan.settings.command == (*RUN, "--methods", "magnitude")


def test_the_first_command_as_typed(bench: Any, runner: Any) -> None:
    result = bench(
        "run",
        "--methods",
        "sparsegpt,magnitude",
        "--models",
        "nano-*",
        "--device",
        "cpu",
        "--force",
        "--save",
    )
    assert result.code == 0
    plan, _, options = runner.calls[0]
    assert [cell.model for cell in plan.cells if cell.dense] == ["nano-opt", "nano-bloom", "nano-llama"]
    assert options == {"force": True, "save": ("dense",)}


def test_piped_progress_is_plain_lines_on_standard_error(bench: Any, runner: Any) -> None:
    result = bench(*RUN)
    lines = result.err.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    assert any(line.endswith("[1/3] nano-opt dense") for line in lines)
    assert any("warning: made up warning" in line for line in lines)
    assert not ANSI.search(result.err + result.out)
    assert not any("block 1" in line for line in lines)  # steps are held back


def test_quiet_leaves_errors_and_the_path(bench: Any, runner: Any) -> None:
    runner.fails = frozenset({"sparsegpt"})
    result = bench(*RUN, "--quiet")
    assert result.code == 1
    assert result.out == "bench-out/report/index.html\n"
    assert result.error == "nano-opt sparsegpt 50% seed 0: told to fail"


def test_json_is_one_object_a_line(bench: Any, runner: Any) -> None:
    result = bench(*RUN, "--json", "--pattern", "2:4,3:7")
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [event["event"] for event in events[:5]] == [
        "plan",
        "cell-started",
        "phase",
        "warning",
        "cell-finished",
    ]
    assert events[0]["cells"] == 5
    assert events[4]["status"] == "done"
    assert events[-1]["event"] == "summary"
    assert events[-1]["done"] == 3
    assert events[-1]["refused"] == 2
    assert Path(events[-1]["report"]).is_file()
    assert not result.err


@pytest.mark.parametrize(
    ("words", "fails", "code"),
    [
        ((), (), 0),
        ((), ("magnitude",), 1),
        (("--pattern", "2:4,3:7"), (), 0),
    ],
)
def test_exit_codes(
    bench: Any, runner: Any, words: tuple[str, ...], fails: tuple[str, ...], code: int
) -> None:
    runner.fails = frozenset(fails)
    assert bench(*RUN, *words, "--quiet").code == code


def test_every_cell_refused_is_a_failure(bench: Any, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.plan.capacity.free_memory", lambda device: 1000)
    result = bench(*RUN, "--quiet")
    assert result.code == 1
    plan, _, _ = runner.calls[0]
    assert not plan.cells
    assert all("of memory, 1.0 kB are free" in refusal.reason for refusal in plan.refusals)


def test_a_broken_folder_is_bad_input_alone_and_a_refusal_beside_others(
    bench: Any, runner: Any, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    result = bench("run", "--models", "path:broken", "--device", "cpu", "--quiet")
    assert result.code == 2
    assert "has no config.json" in result.error
    both = ("run", "--models", "nano-opt,path:broken", "--device", "cpu", "--quiet")
    assert bench(*both).code == 0
    plan, _, _ = runner.calls[0]
    assert {cell.model for cell in plan.cells} == {"nano-opt"}
    assert len(plan.refusals) == 3
    assert bench(*both, "--protocol", "paper").code == 1, "every cell is refused"


def test_dry_run_counts_one_cell_as_one(bench: Any) -> None:
    shown = bench(*RUN, "--methods", "dense", "--dry-run").out
    assert "1 cell (all" in shown
    assert "1 cell refused" in bench(*RUN, "--methods", "dense", "--protocol", "paper", "--dry-run").out


def test_a_config_file_is_read_and_flags_win(bench: Any, runner: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "models: nano-llama\nmethods: magnitude\nsparsity: 0.7\ndevice: cpu\nout: here\n"
    )
    assert bench("run", "--config", "run.yaml", "--sparsity", "0.6", "--quiet").code == 0
    plan, out, _ = runner.calls[0]
    assert [cell.name for cell in plan.cells] == ["nano-llama dense", "nano-llama magnitude 60%"]
    assert out == Path("here")


def test_dry_run_writes_nothing_and_calls_nobody(bench: Any, runner: Any, tmp_path: Path) -> None:
    result = bench(
        "run", "--models", "nano-opt,opt-1.3b", "--device", "cpu", "--dry-run", "--pattern", "2:4,3:7"
    )
    assert result.code == 0
    assert not result.err
    assert "sparsegpt" in result.out
    assert "downloads 2.6 GB; add --yes" in result.out
    assert "in all:" in result.out
    assert not runner.calls
    assert not list(tmp_path.iterdir())
    assert not ANSI.search(result.out)


def test_dry_run_as_json(bench: Any, runner: Any) -> None:
    bench(*RUN, "--methods", "magnitude")
    found = json.loads(bench(*RUN, "--dry-run", "--json", "--pattern", "2:4,3:7").out)
    assert {"cells", "refused", "total", "out"} == set(found)
    for cell in found["cells"]:
        assert cell["model_cached"]
        assert cell["download_bytes"] == 0
        assert cell["memory_bytes"] > 0
        assert cell["seconds"] > 0
    assert [cell["target"] for cell in found["refused"]] == ["3:7", "3:7"]
    assert found["total"]["memory_bytes"] == max(cell["memory_bytes"] for cell in found["cells"])
    assert found["total"]["seconds"] == pytest.approx(sum(cell["seconds"] for cell in found["cells"]))


def test_dry_run_asks_no_network(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("bench.models.path.open_directory", refuse)
    assert (
        bench("run", "--models", "opt-125m,smollm2-135m,nano-opt", "--device", "cpu", "--dry-run").code == 0
    )


def test_large_downloads_are_made_before_the_grid(
    bench: Any, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.errors import ModelUnavailable

    asked = []

    def pull(model: str, *, yes: bool, progress: Any) -> None:
        asked.append((model, yes))
        raise ModelUnavailable("no hub here")

    monkeypatch.setattr("bench.models.load.pull", pull)
    bench(
        "run", "--models", "bloom-560m,opt-1.3b", "--device", "cpu", "--methods", "dense", "--yes", "--quiet"
    )
    assert asked == [("opt-1.3b", True)]
    assert [cell.model for cell in runner.calls[0][0].cells] == ["opt-1.3b", "bloom-560m"]


def _python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "-h"], ["list", "targets"], ["completion", "bash"], ["--version"]]
)
def test_help_and_its_like_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom bench.cli.main import main\n"
        f"code = main({words!r})\n"
        "heavy = {'torch', 'transformers', 'pandas', 'altair', 'numpy', 'datasets', 'pydantic', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\nsys.exit(code)\n"
    )
    done = _python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(bench: Any, shell: str) -> None:
    result = bench("completion", shell)
    assert result.code == 0
    assert f"_BENCH_COMPLETE={shell}_complete" in result.out
    assert "bench" in result.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bench ru", ["run"]),
        ("bench run --models nano-", ["nano-opt", "nano-bloom", "nano-llama"]),
        ("bench run --models nano-opt,nano-l", ["nano-opt,nano-llama"]),
        ("bench run --methods sparse", ["sparsegpt"]),
        ("bench run --methods sparsegpt,magnitude@gl", ["sparsegpt,magnitude@global"]),
        ("bench run --set sparsegpt.pe", ["sparsegpt.percdamp="]),
        ("bench run --protocol l", ["lab"]),
        ("bench run --text wiki", ["wikitext2"]),
        ("bench pull smol", ["smollm2-135m"]),
        ("bench list mod", ["models"]),
    ],
)
def test_words_complete(words: str, expected: list[str]) -> None:
    count = str(len(words.split()) - 1)
    done = _python("-m", "bench", _BENCH_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == expected
    assert not done.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    root = Path(__file__).resolve().parents[2]
    words = f"{sys.executable} -m bench list models --json | head -c 10"
    done = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, cwd=root, check=False, timeout=60
    )
    assert not done.stderr
    assert len(done.stdout) == 10


def test_both_spellings_of_help(bench: Any) -> None:
    assert bench("run", "-h").out == bench("run", "--help").out
    assert "--methods" in bench("run", "-h").out
    assert bench().out.startswith("Usage: bench")
