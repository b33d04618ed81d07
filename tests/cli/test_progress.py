"""What watchers see of a grid."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.cli.console import JsonObserver, LineObserver, LiveDisplay, QuietObserver, observer_for
from bench.cli.output import bytes_text, duration_text
from bench.plan.cells import Cell, expand
from bench.plan.observer import GridObserver
from bench.plan.settings import gather


@pytest.fixture(scope="module")
def cells() -> tuple[Cell, ...]:
    return expand(gather({"models": "nano-opt", "device": "cpu"})).cells


def walk(observer: GridObserver, cells: tuple[Cell, ...]) -> None:
    observer.plan(cells)
    observer.cached(0, cells[0])
    observer.cell(1, cells[1])
    observer.phase("prune", 3)
    observer.step(1, "block 1\n\x1b[2J")
    observer.warning("careful\nnow")
    observer.done(1, cells[1], "failed", "it\nbroke")
    observer.cell(2, cells[2])
    observer.phase("perplexity", 2)
    observer.step(2)
    observer.done(2, cells[2], "done", "perplexity 20")
    observer.close()
    observer.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_progress_on_a_terminal(cells: tuple[Cell, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    walk(LiveDisplay(), cells)
    shown = screen.getvalue()
    assert "\x1b[" in shown
    assert "stored already" in shown
    assert "warning: careful now" in shown
    assert "failed; it broke" in shown
    assert "done; perplexity 20" in shown
    assert "\x1b[2J" not in shown


def test_lines_are_held_back(cells: tuple[Cell, ...], capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0

    def clock() -> float:
        return now

    observer = LineObserver(clock)
    observer.plan(cells)
    observer.cell(1, cells[1])
    observer.phase("prune", 1000)
    for step in range(1000):
        now += 0.125
        observer.step(step + 1, "block")
    observer.done(1, cells[1], "done", "perplexity 20")
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert len([line for line in lines if line.startswith("  prune ")]) == 12
    assert lines[0] == "3 cells"
    assert lines[-1] == f"[2/3] {cells[1].name}: done (2 min); perplexity 20"


def test_lines_are_single_and_clean(cells: tuple[Cell, ...], capsys: pytest.CaptureFixture[str]) -> None:
    walk(LineObserver(), cells)
    captured = capsys.readouterr()
    assert not captured.out
    assert "\x1b" not in captured.err
    assert f"[2/3] {cells[1].name}: failed; it broke" in captured.err


def test_json_lines(cells: tuple[Cell, ...], capsys: pytest.CaptureFixture[str]) -> None:
    walk(JsonObserver(), cells)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == [
        *("plan", "cell-cached", "cell-started", "phase", "warning", "cell-finished"),
        *("cell-started", "phase", "cell-finished"),
    ]
    assert events[5]["status"] == "failed"
    assert events[5]["summary"] == "it\nbroke"
    assert events[1]["model"] == "nano-opt"


def test_quiet_says_only_what_failed(cells: tuple[Cell, ...], capsys: pytest.CaptureFixture[str]) -> None:
    walk(QuietObserver(), cells)
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err == f"error: {cells[1].name}: it broke\n"


@pytest.mark.parametrize(
    ("flags", "terminal", "kind"),
    [
        ({}, True, LiveDisplay),
        ({}, False, LineObserver),
        ({"as_json": True}, True, JsonObserver),
        ({"quiet": True}, True, QuietObserver),
        ({"quiet": True, "as_json": True}, True, QuietObserver),
    ],
)
def test_who_watches(
    flags: dict[str, Any], terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    assert type(observer_for(gather(flags))) is kind


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "-"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (92_871_040, "92.9 MB"),
        (26e9, "26.0 GB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_sizes_in_words(size: float | None, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.1 s"),
        (4.26, "4.3 s"),
        (42.4, "42 s"),
        (150, "2 min"),
        (9000, "2.5 h"),
        (864_000, "10.0 d"),
    ],
)
def test_times_in_words(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_terminal_is_served_for_real(tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    root = Path(__file__).resolve().parents[2]
    words = [
        "-m",
        "bench",
        "run",
        "--models",
        "nano-opt",
        "--dry-run",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    child = pexpect.spawn(
        sys.executable, words, cwd=str(root), encoding="utf-8", timeout=60, dimensions=(40, 100)
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "\x1b[" in child.before
