"""A run under a memory budget: what its records state, the same bits, and a measured excess that is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from saved_models import saved_with_tokenizer

from bench.executors.local import execute
from bench.measure.memory import PeakMemory
from bench.plan.cells import Cell, Plan, expand
from bench.plan.placement import Placement
from bench.plan.resources import fit
from bench.plan.settings import gather
from bench.results.records import Record
from bench.results.segments import Store
from bench.run.kept import kept_within
from methods.interface import Silent


class _Quiet(Silent):
    """A grid observer that shows nothing."""

    def plan(self, cells: Sequence[Cell]) -> None: ...

    def cell(self, index: int, cell: Cell) -> None: ...

    def cached(self, index: int, cell: Cell) -> None: ...

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None: ...

    def close(self) -> None: ...


def _records(
    tmp_path: Path, name: str, model: str, budget: str
) -> tuple[Plan, dict[tuple[str, str], Record]]:
    asked = {"models": model, "methods": "sparsegpt", "samples": "4", "length": "32", "windows": "4"}
    settings = gather(
        {**asked, "eval_length": "32", "device": "cpu", "protocol": "nano", "memory_budget": budget}
    )
    plan = fit(expand(settings))
    outcome = execute(plan, tmp_path / name, _Quiet())
    assert (outcome.failed, outcome.refused) == (0, 0)
    found = {(record.method, record.phase): record for record in Store(tmp_path / name).records()}
    return plan, found


def test_records_state_budget_prediction_and_peak(tmp_path: Path) -> None:
    model = f"path:{saved_with_tokenizer(tmp_path / 'model', 'opt')}"
    plan, roomy = _records(tmp_path, "roomy", model, "3GiB")
    _, free = _records(tmp_path, "free", model, "0")
    for key in (("sparsegpt", "prune"), ("sparsegpt", "perplexity"), ("dense", "perplexity")):
        facts = roomy[key].provenance["memory"]
        assert isinstance(facts, dict)
        assert facts["budget"] == 3 * 2**30 and 0 < facts["base"] <= facts["peak"]
        assert facts["predicted"] == dict(plan.cells[-1].placement.predicted)[key[1]] or key[0] == "dense"
        without = free[key].provenance["memory"]
        assert isinstance(without, dict) and without["budget"] is None
    least = roomy["sparsegpt", "prune"].provenance["memory"]["least"]  # type: ignore[index,call-overload]
    assert set(least) == {"block", "hessians", "states", "embedding"}
    for record in roomy.values():
        assert record.cell == free[record.method, record.phase].cell
        assert record.metric("nll") == free[record.method, record.phase].metric("nll")


def test_a_measured_excess_is_said(tmp_path: Path) -> None:
    cell = expand(gather({"models": "nano-opt", "device": "cpu"})).cells[-1]
    memory = PeakMemory()
    memory.base, memory.peak = 10**9, 2 * 10**9
    told = Placement(budget=15 * 10**8, predicted=(("prune", 14 * 10**8),))
    over = kept_within(replace(cell, placement=told), "prune", memory)
    assert over.warnings == (
        "prune took 2.0 GB of memory, more than the 1.5 GB of --memory-budget (1.4 GB were predicted)",
    )
    assert (over.facts["budget"], over.facts["peak"]) == (15 * 10**8, 2 * 10**9)
    assert kept_within(cell, "prune", memory).warnings == ()


def test_one_window_at_a_time_with_states_on_disk_differs_by_rounding(tmp_path: Path) -> None:
    model = f"path:{saved_with_tokenizer(tmp_path / 'model', 'llama')}"
    asked = {"models": model, "methods": "wanda", "samples": "4", "length": "32", "windows": "4"}
    plan = expand(gather({**asked, "eval_length": "32", "device": "cpu", "protocol": "nano"}))
    tight = replace(plan.cells[-1], hidden_budget=0, placement=Placement(batch_tokens=32))
    found = []
    for name, cell in (("as-it-comes", plan.cells[-1]), ("tight", tight)):
        assert execute(replace(plan, cells=(cell,)), tmp_path / name, _Quiet()).failed == 0
        found.append({record.phase: record for record in Store(tmp_path / name).records()})
    first, second = (records["perplexity"].metric("nll") for records in found)
    assert first is not None and first == pytest.approx(second, rel=1e-4)
