"""`bench published` and `bench reproduce`: what they print, what they refuse, what they hand to the grid."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.plan.settings import gather


def test_published_as_csv_json_and_table(bench: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(bench("published", "--all", "--format", "csv").out)))
    assert len(rows) == 2474
    found = json.loads(
        bench("published", "--paper", "sparsegpt", "--table", "table 1", "--format", "json").out
    )
    assert len(found) == 42
    assert found[0]["where_found"]
    shown = bench("published", "--paper", "wanda", "--model", "llama-30b", "--method", "dense").out
    assert "4.77" in shown
    assert "AWQ and several others have 4.10" in shown


def test_published_names_what_is_near(bench: Any) -> None:
    for words, said in (
        (("--paper", "sparsgpt"), "--paper 'sparsgpt' is in no published figure; did you mean 'sparsegpt'"),
        (("--paper=a,,b",), "--paper"),
        (("--source", "sparsgpt"), "--source 'sparsgpt'"),
        (("--metric", "ppl_wikitext"), "did you mean 'ppl_wikitext2'"),
        (("--sparsity", "half"), "'half' is no share"),
        (("--model", "a,,b"), "empty entry"),
        (("--table", "../../etc/passwd\x1b[0m"), "is in no published figure"),
    ):
        result = bench("published", *words)
        assert result.code == 2
        assert said in result.error
    assert "--all looks at ablations" in bench("published", "--method", "slicegpt", "--pattern", "2:4").out


def test_reproduce_lists_every_table(bench: Any) -> None:
    found = json.loads(bench("reproduce", "--json").out)
    assert len(found) == 74
    assert all(row["given"] + row["left_out"] == row["figures"] for row in found)
    assert all(row["reasons"] for row in found if row["left_out"])


def test_dry_run_shows_cells_needs_and_what_is_left_out(bench: Any) -> None:
    result = bench("reproduce", "sparsegpt/table1", "--dry-run", "--json", "--device", "cpu")
    recipe, plan = map(json.loads, result.out.splitlines())
    assert result.code == (0 if len(plan["refused"]) < len(plan["cells"]) else 1)
    assert (recipe["figures"], recipe["given"]) == (42, 39)
    assert recipe["omitted"] == [
        {"what": "adaprune, ppl_wikitext2", "figures": 3, "reason": "AdaPrune is not among bench's methods"}
    ]
    cells = {(cell["model"], cell["method"], cell["target"]) for cell in plan["cells"]}
    assert len(plan["cells"]) == len(cells) == 39
    assert ("opt-1.3b", "sparsegpt", "2:4") not in cells
    assert ("opt-66b", "sparsegpt", "2:4") in cells
    assert all(cell["memory_bytes"] > 0 for cell in plan["cells"] if cell["model"] != "opt-175b")


def test_dry_run_of_nothing_that_fits_is_a_failure(bench: Any) -> None:
    words = ("--models", "opt-175b", "--methods", "sparsegpt", "--dry-run", "--json", "--device", "cpu")
    result = bench("reproduce", "sparsegpt/table1", *words)
    assert result.code == 1
    assert {cell["model"] for cell in json.loads(result.out.splitlines()[1])["cells"]} == {"opt-175b"}


def test_models_outside_the_registry_are_named(bench: Any) -> None:
    result = bench(
        "reproduce", "mixgpt/table1", "--dry-run", "--json", "--device", "cpu", "--methods", "sparsegpt"
    )
    recipe, plan = map(json.loads, result.out.splitlines())
    assert [entry["what"] for entry in recipe["left_out"]] == ["model baichuan-7b"]
    assert {cell["model"] for cell in plan["cells"]} == {"llama-7b"}


def test_yaml_is_what_a_run_takes(bench: Any, tmp_path: Path) -> None:
    text = bench("reproduce", "wanda/table3", "--yaml").out
    runs = list(yaml.safe_load_all(text))
    assert len(runs) == 4
    for run in runs:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(run))
        settings = gather({}, file)
        if "llama-2-7b" in settings.models:
            assert settings.eval_length == 4096
            assert settings.length in (4096, None)
    assert bench("run", "--config", str(file), "--device", "cpu", "--dry-run").code in (0, 1)


def test_every_recipe_with_runs_is_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)
    from bench.plan.reproduce import Narrowing, plan_of, runs_of
    from bench.published.recipes import recipes

    for recipe in recipes().values():
        runs, left = runs_of(recipe, Narrowing())
        if runs:
            plan = plan_of(recipe, runs, {"device": "cpu", "threads": 1})
            assert plan.cells
            assert plan.refusals == ()  # one would be a recipe that asks for what a method cannot do
        else:
            assert recipe.omissions or left, recipe.name


def test_reproduce_hands_the_grid_a_narrowed_plan(bench: Any, runner: Any) -> None:
    result = bench(
        *(
            "reproduce",
            "sparsegpt/table1",
            "--models",
            "opt-125m",
            "--methods",
            "magnitude",
            "--device",
            "cpu",
        ),
        *("--out", "o", "--yes"),
    )
    plan, out, _ = runner.calls[0]
    assert out == Path("o")
    names = {(cell.model, cell.method, cell.target) for cell in plan.cells} | {
        (refusal.cell.model, refusal.cell.method, refusal.cell.target) for refusal in plan.refusals
    }
    assert names == {("opt-125m", "dense", "0%"), ("opt-125m", "magnitude", "50%")}
    assert "AdaPrune" in result.out


def test_reproduce_refuses_in_one_line(bench: Any) -> None:
    for words, said in (
        (("sparsegpt/tabel1",), "sparsegpt has abstract"),
        (("nonsense",), "no recipe 'nonsense'"),
        (("slicegpt/table2",), "holds nothing that bench can run"),
        (("sparsegpt/table1", "--models", "lama-7b"), "is not in sparsegpt/table1"),
        (("sparsegpt/table1", "--samples", "3"), "no such option"),
        (("sparsegpt/table1", "--seeds", "x"), "seed 'x'"),
    ):
        result = bench("reproduce", *words)
        assert result.code == 2
        assert said in result.error
