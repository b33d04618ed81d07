"""What the command line says of recoveries: lists, plans, refusals, status, completion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from bench.cli import complete
from bench.cli.main import cli


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")


def test_lists(bench: Any) -> None:
    rows = json.loads(bench("list", "recoveries", "--json").out)
    assert [row["recovery"] for row in rows] == ["lora", "full"]
    assert rows[0]["parameters"]["rank"] == 8 and "2106.09685" in rows[0]["paper"]
    parameters = [row["parameter"] for row in json.loads(bench("list", "parameters", "--json").out)]
    assert {"lora.rank", "lora.alpha", "lora.lr", "full.steps", "full.batch", "full.warmup"} <= set(
        parameters
    )
    assert "lora" in bench("list", "recoveries").out


def test_a_plan_tells_its_cells_apart(bench: Any, tmp_path: Path) -> None:
    words = (
        *(
            "run",
            "--models",
            "nano-opt",
            "--methods",
            "sparsegpt",
            "--recover",
            "none,full",
            "--gradual",
            "1,4",
        ),
        *("--sparsity", "0.8", "--bits", "none,4", "--dry-run", "--out", str(tmp_path), "--device", "cpu"),
    )
    shown = bench(*words).out
    assert "sparsegpt with 4xfull" in shown and "sparsegpt with full 80%+4bit" in shown
    found = json.loads(bench(*words, "--json").out)
    assert [cell.get("recovery") for cell in found["cells"]] == [None, None, None, "full", "4xfull"]
    assert found["cells"][-1]["seconds"] > found["cells"][1]["seconds"]
    assert {cell["recovery"] for cell in found["refused"]} == {"full", "4xfull"}


def test_status_names_the_recovery(bench: Any, tmp_path: Path) -> None:
    words = ("run", "--models", "nano-opt", "--methods", "sparsegpt", "--sparsity", "0.8", "--bits", "4")
    result = bench(*words, "--recover", "full", "--windows", "1", "--threads", "1", "--out", str(tmp_path))
    assert "with full" in result.out + result.err
    state = json.loads((tmp_path / "run.json").read_text())
    assert [cell.get("recovery") for cell in state["cells"]] == [None, "full"]
    assert "sparsegpt 80%+4bit with full" in bench("status", "--out", str(tmp_path)).out


def test_completion() -> None:
    context, parameter = click.Context(cli), click.Option(["--x"])
    assert [item.value for item in complete.recoveries(context, parameter, "none,l")] == ["none,lora"]
    words = [item.value for item in complete.parameters(context, parameter, "lora.")]
    assert "lora.rank=" in words
