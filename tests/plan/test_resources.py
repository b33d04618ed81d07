"""Estimates grow with what they depend on, agree with known sizes, and refuse what cannot fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_llmcompressor import interpreter_at
from sample_records import record

from bench.models.registry import entries
from bench.plan.capacity import Machine, existing, free_memory, machine, measured_rate
from bench.plan.cells import Cell, Plan, expand
from bench.plan.rates import Rates
from bench.plan.resources import Estimate, estimate, fit, needs
from bench.plan.settings import gather
from bench.plan.stored import stored
from bench.results.segments import Store

RATES = Rates(1e12, 1e12)
ROOMY = Machine(memory=10**15, disk=10**15, cache=10**15, one_disk=True)


def plan(**flags: Any) -> Plan:
    return expand(gather({"models": "opt-1.3b", "device": "cpu", "threads": "1", **flags}))


def last(**flags: Any) -> Cell:
    return plan(**flags).cells[-1]


def test_every_registered_model_has_an_estimate() -> None:
    for cell in plan(models=",".join(entry.id for entry in entries())).cells:
        need = estimate(cell, rates=RATES)
        assert need.memory_bytes > 0
        assert need.flops > 0
        assert need.seconds == pytest.approx(need.flops / 1e12)
        assert need.disk_bytes > 0


def test_what_a_method_declares_shows_in_its_estimate() -> None:
    needs = {
        name: estimate(last(methods=name), rates=RATES)
        for name in (
            "wanda",
            "wanda@owl",
            "sparsegpt",
            "sparsegpt@owl",
            "sparsegpt@levels",
            "alps",
            "wanda+dsnot",
        )
    }
    wanda, sparsegpt, alps = needs["wanda"], needs["sparsegpt"], needs["alps"]
    assert wanda.flops < sparsegpt.flops < alps.flops
    assert wanda.memory_bytes < sparsegpt.memory_bytes < alps.memory_bytes
    assert needs["wanda@owl"].flops > wanda.flops and needs["wanda@owl"].memory_bytes == wanda.memory_bytes
    assert needs["sparsegpt@levels"].flops > needs["sparsegpt@owl"].flops > sparsegpt.flops
    assert needs["sparsegpt@levels"].memory_bytes > sparsegpt.memory_bytes
    assert needs["wanda+dsnot"] == wanda


def test_another_program_holds_the_model_whole_and_copies_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_LLMCOMPRESSOR_PYTHON", interpreter_at(tmp_path / "python"))
    parameters = next(entry.parameters for entry in entries() if entry.id == "opt-1.3b")
    needs = {
        name: estimate(last(methods=name))
        for name in ("sparsegpt", *(f"llmcompressor-{rule}" for rule in ("sparsegpt", "wanda", "magnitude")))
    }
    ours, theirs = needs["sparsegpt"], needs["llmcompressor-sparsegpt"]
    assert theirs.memory_bytes > 4 * parameters > ours.memory_bytes
    assert theirs.disk_bytes == ours.disk_bytes + 8 * parameters
    assert theirs.memory_bytes > needs["llmcompressor-wanda"].memory_bytes
    assert needs["llmcompressor-wanda"].memory_bytes > needs["llmcompressor-magnitude"].memory_bytes


def test_a_pruned_model_takes_its_parameters_on_disk() -> None:
    parameters = next(entry.parameters for entry in entries() if entry.id == "opt-1.3b")
    assert estimate(last(dtype="float16")).disk_bytes == 2 * parameters
    assert estimate(last(dtype="float32")).disk_bytes == 4 * parameters


def test_memory_is_of_a_block_and_not_of_the_model() -> None:
    need = estimate(last(models="opt-13b", dtype="float16")).memory_bytes
    parameters = next(entry.parameters for entry in entries() if entry.id == "opt-13b")
    assert need < 2 * parameters / 2
    # one block of 315 M parameters, a Hessian of 20480 x 20480, its factor and half are the least there is to hold
    assert need > 315_000_000 * 2 + 2.5 * 4 * 20480**2


@pytest.mark.parametrize(
    ("less", "more", "what"),
    [
        ({"samples": "8"}, {"samples": "128"}, "flops"),
        ({"length": "128"}, {"length": "2048"}, "flops"),
        ({"windows": "4"}, {"windows": "64"}, "flops"),
        ({}, {"schedule": "blockwise"}, "flops"),
        ({}, {"schedule": "blockwise"}, "memory_bytes"),
        ({}, {"hessian_dtype": "float64"}, "memory_bytes"),
        ({"dtype": "float16"}, {"dtype": "float32"}, "memory_bytes"),
        ({"hidden_budget": "1MB"}, {"hidden_budget": "2GB"}, "memory_bytes"),
        ({"hidden_budget": "2GB"}, {"hidden_budget": "1MB"}, "disk_bytes"),
        ({"models": "opt-1.3b"}, {"models": "opt-2.7b"}, "flops"),
    ],
)
def test_needs_grow_with_their_causes(less: dict[str, str], more: dict[str, str], what: str) -> None:
    assert getattr(estimate(last(**less)), what) < getattr(estimate(last(**more)), what)


def test_calibration_costs_time_that_magnitude_does_not_take() -> None:
    cells = {cell.method: estimate(cell) for cell in plan().cells}
    assert cells["dense"].flops == cells["magnitude"].flops < cells["sparsegpt"].flops


@pytest.mark.parametrize(
    ("need", "free", "said"),
    [
        (Estimate(0, 0, 2 * 10**9, 0.0), {"memory": 10**9}, "needs about 2.0 GB of memory, 1.0 GB are free"),
        (Estimate(0, 3 * 10**9, 0, 0.0), {"disk": 10**9}, "needs about 3.0 GB of disk, 1.0 GB are free"),
        (Estimate(10**9, 0, 0, 0.0), {"cache": 10**6}, "needs 1.0 GB of disk for the model, 1.0 MB are free"),
        (Estimate(10**9, 10**9, 0, 0.0), {"disk": 15 * 10**8}, "needs about 2.0 GB of disk"),
        (Estimate(10**10, 0, 0, 0.0), {}, "downloads 10.0 GB; add --yes"),
    ],
)
def test_reasons_hold_the_figures(need: Estimate, free: dict[str, int], said: str) -> None:
    there = Machine(**{"memory": 10**15, "disk": 10**15, "cache": 10**15, "one_disk": True, **free})
    reason = needs(need, there, model="opt-13b")
    assert reason is not None
    assert said in reason


def test_what_fits_is_not_refused() -> None:
    assert needs(Estimate(10**9, 10**9, 10**9, 0.0), ROOMY) is None
    assert needs(Estimate(10**10, 0, 0, 0.0), ROOMY, yes=True) is None


def test_large_downloads_wait_for_yes() -> None:
    refused = fit(plan(), ROOMY)
    assert not refused.cells
    assert {refusal.reason for refusal in refused.refusals} == {
        "downloads 2.6 GB; add --yes, or run: bench pull opt-1.3b --yes"
    }
    assert len(fit(plan(yes=True), ROOMY).cells) == 3
    assert len(fit(plan(models="bloom-560m"), ROOMY).cells) == 3


def test_pickled_weights_wait_for_a_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    both = plan(models="opt-125m,opt-350m", yes=True, methods="dense")
    assert [refusal.reason for refusal in fit(both, ROOMY).refusals] == [
        f"{name} ships pickled weights only; run: bench pull {name}" for name in ("opt-125m", "opt-350m")
    ]
    monkeypatch.setattr("bench.models.load.cached", lambda model: model == "opt-125m")
    assert [cell.model for cell in fit(both, ROOMY).cells] == ["opt-125m"]


def test_downloads_and_saved_models_add_up() -> None:
    two = plan(models="opt-1.3b,opt-2.7b", yes=True, methods="dense")
    room = Machine(memory=10**15, disk=10**15, cache=6 * 10**9, one_disk=False)
    assert [cell.model for cell in fit(two, room).cells] == ["opt-1.3b"]
    room = Machine(memory=10**15, disk=6 * 10**9, cache=10**15, one_disk=False)
    assert len(fit(plan(yes=True), room).cells) == 3
    # pruned blocks in float32 beside a copy as published, half of that; earlier copies stay
    assert len(fit(plan(yes=True, save=True), room).cells) == 1
    room = Machine(memory=10**15, disk=9 * 10**9, cache=10**15, one_disk=False)
    assert len(fit(plan(yes=True, save=True), room).cells) == 2
    assert len(fit(plan(yes=True, save_as="bitmap"), room).cells) == 3
    assert len(fit(plan(yes=True, save_as="dense,bitmap"), room).cells) == 1


def test_withheld_weights_are_named_first() -> None:
    refused = fit(plan(models="opt-175b", yes=True), ROOMY)
    assert not refused.cells
    assert "on request" in refused.refusals[0].reason


def test_stored_cells_need_nothing() -> None:
    found = plan()
    tiny = Machine(memory=0, disk=0, cache=0, one_disk=True)
    assert fit(found, tiny, stored=found.cells).cells == found.cells
    assert not fit(found, tiny).cells


def test_this_machine_is_read(tmp_path: Path) -> None:
    there = machine(tmp_path / "not" / "yet")
    assert there.memory > 0
    assert there.disk > 0
    assert free_memory("cpu") > 0
    assert existing(tmp_path / "not" / "yet") == tmp_path


def test_the_rate_of_this_machine_is_plausible() -> None:
    import torch

    before = torch.get_num_threads()
    assert 1e7 < measured_rate("cpu", "float32", 1) < 1e14
    assert torch.get_num_threads() == before


def test_stored_cells_are_recognised_by_their_records(tmp_path: Path) -> None:
    found = expand(gather({"models": "nano-opt", "device": "cpu", "seeds": "0,1", "methods": "sparsegpt"}))
    dense, first, second = found.cells
    assert stored(found.cells, tmp_path) == frozenset()
    with Store(tmp_path, create=True) as store:
        for cell, phases in (
            (dense, ("prune", "perplexity")),
            (first, ("prune", "perplexity")),
            (second, ("prune",)),
        ):
            for phase in phases:
                store.append(_record(cell, phase))
        store.append(_record(second, "perplexity", status="failed"))
    assert stored(found.cells, tmp_path) == {dense, first}
    other = expand(
        gather({"models": "nano-opt", "device": "cpu", "methods": "sparsegpt", "schedule": "blockwise"})
    )
    assert stored(other.cells, tmp_path) == {dense}


def _record(cell: Cell, phase: str, status: str = "done") -> Any:
    parameters = {**dict(cell.parameters), "schedule": cell.schedule, "hessian_dtype": cell.hessian_dtype}
    return record(
        phase=phase,
        status=status,
        cell=cell.name,
        model=cell.model,
        method=cell.method,
        target=cell.target,
        seed=cell.seed,
        dtype=cell.dtype,
        calibration=cell.calibration.id if cell.calibration else "",
        protocol="" if phase == "prune" else cell.evaluation.id,
        parameters={} if cell.dense else parameters,
    )


def test_phases_that_hold_the_whole_model_need_its_memory() -> None:
    streamed, whole = (
        estimate(last(models="llama-2-7b", evaluations=evaluations)).memory_bytes
        for evaluations in ("perplexity", "perplexity,decode")
    )
    assert streamed < 4 * 6.7e9 < whole


def test_packed_models_lie_beside_the_dense_one_while_decoding() -> None:
    options = {"models": "llama-2-7b", "evaluations": "decode"}
    dense, pruned, grouped, sliced = (
        estimate(last(**options, **more)).memory_bytes
        for more in (
            {"methods": "dense"},
            {"methods": "magnitude", "sparsity": "0.5"},
            {"methods": "magnitude", "pattern": "2:4"},
            {"methods": "slicegpt", "slicing": "0.25"},
        )
    )
    assert sliced < 1.2 * dense and 1.9 * dense < pruned < 0.75 * grouped


def test_sensitivities_count_where_they_are_estimated(tmp_path: Path) -> None:
    base = estimate(last(models="smollm2-135m", methods="sparsegpt", protocol="lab"))
    fisher = estimate(last(models="smollm2-135m", methods="mixed", protocol="lab"))
    # 8 probes of 16 x 256 tokens, four passes of 106 M weights and two products with the head of 28 M
    extra = 8 * 16 * 256 * 2 * (4 * 106e6 + 2 * 28e6)
    assert fisher.flops - base.flops == pytest.approx(extra, rel=0.1)
    one = last(models="smollm2-135m", methods="mixed", protocol="lab", assignments=("mixed.probes=1",))
    assert estimate(one).flops - base.flops == pytest.approx(extra / 8, rel=0.1)
    exact = last(
        models="smollm2-135m", methods="mixed", protocol="lab", assignments=("mixed.estimator=hutchinson",)
    )
    assert 4 * 2**30 < estimate(exact).memory_bytes < 8 * 2**30
    sets = (f"mixed.file={tmp_path}",)
    given = last(models="smollm2-135m", methods="mixed", protocol="lab", assignments=sets)
    assert estimate(given).flops == base.flops


def test_fishers_states_keep_to_the_budget() -> None:
    """For a 13 B model one probe's states exceed 1 GiB: they go to disk, and memory stays that of blocks."""
    cell = last(models="opt-13b", methods="mixed", dtype="float16", protocol="paper", hidden_budget="1GiB")
    states = 41 * 16 * 256 * 5120 * 4
    assert estimate(cell).disk_bytes >= states
    assert estimate(cell).memory_bytes < 20 * 2**30


def test_a_sliced_model_takes_the_disk_and_time_of_its_own_size() -> None:
    from methods.families import shape_of, sizes
    from methods.slicing.pruner import SliceGPT
    from methods.target import Target

    config = next(entry.config for entry in entries() if entry.id == "llama-2-7b")
    small = SliceGPT().pruned_shape(shape_of(config), Target.parse("slice30%"))
    flags = {"models": "llama-2-7b", "dtype": "float16", "methods": "slicegpt"}
    cells = {share: last(slicing=share, **flags) for share in ("0.1", "0.3")}
    assert estimate(cells["0.3"]).disk_bytes == 2 * sizes.parameters(small)
    assert estimate(cells["0.3"]).flops < estimate(cells["0.1"]).flops
    # float64 bases and Gram matrices are less than the Hessians of its widest linear, but there
    need, dense = estimate(cells["0.3"]).memory_bytes, estimate(last(**flags, slicing="0")).memory_bytes
    assert need == dense > 2 * 8 * 4096**2
    whole = estimate(last(**flags, slicing="0.3", evaluations="zeroshot")).memory_bytes
    assert whole < estimate(last(**flags, slicing="0.1", evaluations="zeroshot")).memory_bytes


def _recovered(recover: str, **flags: Any) -> Estimate:
    return estimate(last(methods="sparsegpt", recover=recover, **flags), rates=RATES)


def test_recovery_counts_the_model_its_gradients_and_its_text() -> None:
    shot = estimate(last(methods="sparsegpt"), rates=RATES)
    lora, full = _recovered("lora"), _recovered("full")
    weights, prunable = 1_315_758_080, 1_207_959_552
    # gradient, two moments and the best step in float32 for full, two masked sums for LoRA, beside the weights
    assert full.memory_bytes - 1.3 * 4 * 1.99 * prunable == pytest.approx(lora.memory_bytes, rel=0.01)
    assert lora.memory_bytes > 4 * (weights + 2 * prunable)
    assert shot.memory_bytes < 4 * weights
    assert full.disk_bytes > lora.disk_bytes > shot.disk_bytes
    # 300 steps of 8 windows of 512 tokens, three forward passes' work each
    trained = 3 * 300 * 8 * 512 * 2 * prunable
    assert trained < full.flops - shot.flops < 1.3 * trained
    more = _recovered("full", assignments=("full.steps=600",))
    assert more.flops - full.flops == pytest.approx(full.flops - shot.flops, rel=0.02)
    higher = _recovered("lora", assignments=("lora.rank=64",))
    assert higher.memory_bytes > lora.memory_bytes


def test_a_gradual_schedule_prunes_once_a_stage() -> None:
    shot, full = estimate(last(methods="sparsegpt"), rates=RATES), _recovered("full")
    staged = _recovered("full", gradual="4")
    pruning = estimate(last(methods="sparsegpt", evaluations="decode"), rates=RATES).flops
    assert staged.flops - full.flops == pytest.approx(3 * pruning, rel=0.1)
    assert staged.disk_bytes > full.disk_bytes > shot.disk_bytes
    assert staged.memory_bytes == full.memory_bytes


def test_training_behind_magnitude_gathers_no_hessians() -> None:
    magnitude = last(methods="magnitude", recover="lora", models="nano-opt")
    sparse = last(methods="sparsegpt", recover="lora", models="nano-opt")
    assert magnitude.seed == 0 and magnitude.calibration == sparse.calibration
    assert estimate(magnitude).flops < estimate(sparse).flops


def test_what_training_would_not_fit_in_is_refused() -> None:
    found = plan(methods="sparsegpt", recover="none,full")
    there = Machine(memory=20 * 10**9, disk=10**15, cache=10**15, one_disk=True)
    fitted = fit(replace(found, settings=found.settings.model_copy(update={"yes": True})), there)
    assert [cell.recovery for cell in fitted.cells] == ["", ""]
    assert fitted.refusals[0].cell.recovery == "full"
    assert re.search(r"needs about [\d.]+ GB of memory, 20.0 GB are free", fitted.refusals[0].reason)
