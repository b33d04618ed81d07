"""From settings to cells: how many, in which order, and which are refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench.plan.cells import Cell, Plan, Refusal, expand
from bench.plan.machine import available_threads
from bench.plan.settings import gather
from methods.errors import UserError


@pytest.fixture(autouse=True)
def _no_texts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


def plan(**flags: Any) -> Plan:
    return expand(gather({"models": "nano-opt", "device": "cpu", "threads": "1", **flags}))


def spelled(found: Plan) -> list[str]:
    return [cell.name for cell in found.cells]


def test_dense_comes_first_for_each_model() -> None:
    assert spelled(plan(models="nano-opt,nano-llama")) == [
        "nano-opt dense",
        "nano-opt magnitude 50%",
        "nano-opt sparsegpt 50% seed 0",
        "nano-llama dense",
        "nano-llama magnitude 50%",
        "nano-llama sparsegpt 50% seed 0",
    ]


def test_methods_targets_and_seeds_multiply_but_magnitude_draws_nothing() -> None:
    found = plan(methods="sparsegpt,magnitude", sparsity="0.5,0.6", pattern="unstructured,2:4", seeds="0,1,2")
    assert Counter(cell.method for cell in found.cells) == {"dense": 1, "sparsegpt": 9, "magnitude": 3}
    assert [cell.target for cell in found.cells if cell.method == "magnitude"] == ["50%", "60%", "2:4"]
    assert {cell.seed for cell in found.cells if cell.method != "sparsegpt"} == {None}
    assert [cell.seed for cell in found.cells if cell.method == "sparsegpt"] == [0, 1, 2] * 3


def test_dense_alone_and_zero_sparsity() -> None:
    assert spelled(plan(methods="dense")) == ["nano-opt dense"]
    assert spelled(plan(methods="magnitude", sparsity="0,0.5")) == [
        "nano-opt dense",
        "nano-opt magnitude 50%",
    ]


def test_cells_are_unique_hashable_strings_and_numbers() -> None:
    found = plan(
        models="nano-*",
        seeds="0,1",
        pattern="unstructured,2:4",
        methods="magnitude,magnitude@global,sparsegpt",
    )
    assert len(set(found.cells)) == len(found.cells) == 3 * (1 + 2 + 2 + 4) - len(found.refusals)
    for cell in found.cells:
        for field in fields(cell):
            value = getattr(cell, field.name)
            if field.name not in ("calibration", "evaluation", "heldout"):
                json.dumps(asdict(value) if is_dataclass(value) else value)


def test_what_a_method_does_not_use_does_not_tell_its_cells_apart() -> None:
    base = plan(methods="magnitude", seeds="0")
    other = plan(methods="magnitude", seeds="5", schedule="blockwise", hessian_dtype="float64")
    assert base.cells == other.cells


@pytest.mark.parametrize(
    "flags",
    [
        {"dtype": "bfloat16"},
        {"hessian_dtype": "float64"},
        {"schedule": "blockwise"},
        {"seeds": "1"},
        {"samples": "4"},
        {"length": "64"},
        {"calibration": "c4"},
        {"evaluations": "decode"},
        {"text": "ptb"},
        {"windows": "3"},
        {"threads": "2"},
        {"sparsity": "0.6"},
        {"assignments": ("sparsegpt.percdamp=0.1",)},
        {"bits": "4"},
        {"layers": "only=fc1"},
    ],
)
def test_whatever_can_change_a_figure_changes_the_cell(flags: dict[str, Any]) -> None:
    assert plan(methods="sparsegpt").cells[-1] != plan(methods="sparsegpt", **flags).cells[-1]


def test_parameters_are_complete_typed_and_sorted() -> None:
    cell = plan(methods="sparsegpt", assignments=("sparsegpt.percdamp=1",)).cells[-1]
    assert cell.parameters == (
        ("blocksize", 128),
        ("percdamp", 1.0),
        ("reference", False),
        ("saliency", "obs"),
    )
    assert (
        plan(methods="sparsegpt", assignments=("sparsegpt.percdamp=0.01",)).cells
        == plan(methods="sparsegpt").cells
    )


def test_parameters_of_grids_belong_to_targets_with_bits() -> None:
    sets = ("sparsegpt.grid=mse", "sparsegpt.groupsize=32")
    plain, joint = plan(methods="sparsegpt", bits="none,4", assignments=sets).cells[1:]
    assert plain == plan(methods="sparsegpt").cells[-1]
    assert joint.target == "50%+4bit"
    assert dict(joint.parameters) == {**dict(plain.parameters), "grid": "mse", "groupsize": 32}
    with pytest.raises(UserError, match=r"sparsegpt\.grid is 'best'; it must be one of minmax, mse"):
        plan(methods="sparsegpt", bits="4", assignments=("sparsegpt.grid=best",))


def test_bits_are_refused_by_methods_that_do_not_quantise() -> None:
    found = plan(methods="magnitude,sparsegpt,wanda", bits="none,4", sparsity="0,0.5")
    assert [cell.name for cell in found.cells[1:]] == [
        "nano-opt magnitude 50%",
        *(f"nano-opt sparsegpt {target} seed 0" for target in ("0%+4bit", "50%", "50%+4bit")),
        "nano-opt wanda 50% seed 0",
    ]
    assert {refusal.reason for refusal in found.refusals} == {
        f"{rule} does not quantise; ask for {share} without +4bit"
        for rule in ("magnitude", "wanda")
        for share in ("0%", "50%")
    }


def test_layers_are_in_the_cell_and_refused_where_a_model_has_none_of_them() -> None:
    found = plan(models="nano-*", methods="magnitude,sparsegpt", layers="only=fc1,blocks=0-1")
    assert [cell.name for cell in found.cells if not cell.dense] == [
        "nano-opt magnitude 50% blocks=0-1,only=fc1",
        "nano-opt sparsegpt 50% blocks=0-1,only=fc1 seed 0",
    ]
    assert {cell.layers for cell in found.cells if cell.dense} == {""}
    assert {refusal.cell.model for refusal in found.refusals} == {"nano-bloom", "nano-llama"}
    assert all("only=fc1 matches no matrix of this model: it has" in r.reason for r in found.refusals)
    with pytest.raises(UserError, match="which is no clause"):
        plan(methods="magnitude", layers="fc1")


def test_a_method_that_is_not_layerwise_takes_no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods import catalogue, registry
    from methods.entries import Method

    whole = Method("whole", "", "", "methods.layerwise.pruner:layerwise", layerwise=False)
    monkeypatch.setattr(catalogue, "METHODS", (*catalogue.METHODS, whole))
    monkeypatch.setattr("methods.registry._make", lambda entry, parameters: _Whole())
    registry._table.cache_clear()
    try:
        found = plan(methods="whole", layers="only=fc1")
        with pytest.raises(UserError, match="'whole' is not layer-wise and works on whole blocks; leave out"):
            registry.get("whole", {}, "only=fc1")
    finally:
        registry._table.cache_clear()
    assert [refusal.reason for refusal in found.refusals] == [
        "whole is not layer-wise and works on whole blocks; leave out --layers only=fc1"
    ]


class _Whole:
    needs_calibration = False

    def refuse(self, shape: Any, target: Any) -> None:
        return None


@pytest.mark.usefixtures("fake_methods")
def test_parameters_of_allocations_and_refinements_carry_their_name() -> None:
    sets = ("skewed.lean=0.25", "rotate.by=4", "rotate.lambda=1", "sparsegpt.blocksize=16")
    cell = plan(methods="sparsegpt@skewed+rotate", assignments=sets).cells[-1]
    assert cell.method == "sparsegpt@skewed+rotate"
    assert cell.parameters == (
        ("blocksize", 16),
        ("percdamp", 0.01),
        ("reference", False),
        ("rotate.by", 4),
        ("rotate.lambda", 1.0),
        ("saliency", "obs"),
        ("skewed.lean", 0.25),
    )
    both = plan(methods="magnitude@skewed,sparsegpt@skewed", assignments=("skewed.lean=0.25",)).cells[1:]
    assert [dict(cell.parameters)["skewed.lean"] for cell in both] == [0.25, 0.25]


@pytest.mark.usefixtures("fake_methods")
def test_shorthands_are_cells_of_what_they_stand_for() -> None:
    short = plan(methods="skewed").cells[-1]
    assert short.method == "sparsegpt@skewed"
    assert dict(short.parameters)["blocksize"] == 32 and dict(short.parameters)["skewed.lean"] == 0.5
    long = plan(methods="sparsegpt@skewed", assignments=("sparsegpt.blocksize=32", "skewed.lean=0.5")).cells[
        -1
    ]
    assert long == short
    assert (
        dict(plan(methods="skewed", assignments=("skewed.lean=2",)).cells[-1].parameters)["skewed.lean"] == 2
    )
    assert len(plan(methods="skewed,sparsegpt@skewed").cells) == 3, "other parameters are other cells"
    assert len(plan(methods="magnitude,magnitude@uniform").cells) == 2, "one method spelled twice is one"
    assert plan(methods="turned").cells[-1].seed == 0, "a refinement that reads inputs makes a seed count"
    with pytest.raises(UserError, match=r"turned is short for magnitude\+rotate; write --set rotate\.by"):
        plan(methods="turned", assignments=("turned.by=1",))
    with pytest.raises(
        UserError, match=r"--set skewed\.lean is for a method not run; --methods has magnitude"
    ):
        plan(methods="magnitude", assignments=("skewed.lean=1",))
    with pytest.raises(
        UserError, match=r"rotate has no parameter 'bye'; it has: by, lambda; did you mean 'by'"
    ):
        plan(methods="turned", assignments=("rotate.bye=1",))


def test_protocols_by_default() -> None:
    found = expand(gather({"models": "nano-opt,opt-125m", "device": "cpu"}))
    ids = {cell.model: cell.evaluation.id for cell in found.cells}
    assert ids == {"nano-opt": "nano/kjv", "opt-125m": "lab/wikitext2"}
    calibrations = {cell.model: cell.calibration.id for cell in found.cells if cell.calibration}
    assert calibrations == {"nano-opt": "kjv:128xcontext", "opt-125m": "c4:64x512"}


def test_changes_to_the_protocol_reach_both_halves() -> None:
    cell = plan(
        models="opt-1.3b",
        protocol="paper",
        text="ptb",
        windows="8",
        calibration="wikitext2",
        samples="4",
        length="0",
    ).cells[-1]
    assert cell.calibration is not None
    assert cell.calibration.id == "wikitext2:4xcontext"
    assert cell.evaluation.id == "paper/ptb[windows=8]"


def test_patterns_that_do_not_divide_become_refusals_with_a_reason() -> None:
    found = plan(pattern="2:4,3:7")
    assert [cell.target for cell in found.cells] == ["0%", "2:4", "2:4"]
    assert [refusal.cell.target for refusal in found.refusals] == ["3:7", "3:7"]
    assert all("7" in refusal.reason for refusal in found.refusals)


def test_another_program_that_is_not_there_is_a_refusal_and_a_wrong_path_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BENCH_LLMCOMPRESSOR_PYTHON", raising=False)
    found = plan(methods="magnitude,llmcompressor-wanda")
    assert spelled(found) == ["nano-opt dense", "nano-opt magnitude 50%"]
    (refusal,) = found.refusals
    assert refusal.reason.startswith(
        "llm-compressor needs a Python environment of its own and none is named; make one"
    )
    with pytest.raises(
        UserError, match="python is '/no/python', which is no program; make one: python3 -m venv"
    ):
        plan(methods="llmcompressor-wanda", assignments=["llmcompressor-wanda.python=/no/python"])


def test_a_plan_refuses_more_cells_in_place() -> None:
    found = plan()
    last = found.cells[-1]
    less = found.refuse({last: "too large"})
    assert last not in less.cells
    assert less.refusals == (*found.refusals, Refusal(last, "too large"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"models": ()}, "no models given"),
        ({"models": "nano-opr"}, "nano-opt"),
        ({"models": "gpt-*"}, "no model matches"),
        ({"methods": "sparsgpt"}, "did you mean 'sparsegpt'"),
        ({"methods": "magnitude@globl"}, "global"),
        ({"methods": "magnitude+dsnt"}, "did you mean 'dsnot'"),
        ({"assignments": ("sparsegpt.percdam=1",)}, "did you mean 'percdamp'"),
        ({"assignments": ("sparsegpt.percdamp=x",)}, "a finite number"),
        ({"assignments": ("sparsegpt.percdamp=-1",)}, "at least 0"),
        ({"methods": "magnitude", "assignments": ("sparsegpt.percdamp=1",)}, "a method not run"),
        ({"protocol": "labb"}, "did you mean lab"),
        ({"text": "wikitext"}, "wikitext2"),
        ({"calibration": "pile"}, "--calibration"),
        ({"length": "1"}, "--length"),
        ({"data_dir": Path("/nowhere/at/all")}, "--data-dir"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"sparsity": "0.5", "pattern": "2:4"}, "--sparsity"),
        ({"models": "path:/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_wrong_plans_are_refused_in_one_line(flags: dict[str, Any], said: str) -> None:
    given = {key: value for key, value in flags.items() if value != ()}
    if flags.get("models") == ():
        with pytest.raises(UserError, match=said):
            expand(gather(given))
        return
    with pytest.raises(UserError) as caught:
        plan(**given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_windows_longer_than_the_context_are_refused_beforehand() -> None:
    found = plan(protocol="paper", models="nano-opt,opt-1.3b", methods="magnitude,sparsegpt")
    assert [cell.model for cell in found.cells] == ["opt-1.3b"] * 3
    assert {(refusal.cell.model, refusal.reason) for refusal in found.refusals} == {
        (
            "nano-opt",
            (
                "evaluation paper/wikitext2: windows of 2048 tokens are longer than the model's context of 256; "
                "use --protocol nano"
            ),
        )
    }
    assert len(found.refusals) == 3
    assert len(plan(protocol="paper", length="0", evaluations="decode").cells) == 3


def test_a_calibration_longer_than_the_context_leaves_the_dense_model() -> None:
    found = plan(length="300", methods="magnitude,sparsegpt")
    assert spelled(found) == ["nano-opt dense"]
    assert len(found.refusals) == 2
    assert {refusal.reason for refusal in found.refusals} == {
        (
            "calibration kjv:128x300: windows of 300 tokens are longer than the model's context of 256; "
            "use --length 256 or less"
        )
    }
    assert len(plan(length="256").cells) == 3


def test_missing_text_files_are_refused_beforehand(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"models": "opt-1.3b", "text": "ptb", "data_dir": tmp_path}
    (tmp_path / "c4").mkdir()
    (tmp_path / "ptb").mkdir()
    assert not plan(**flags).cells
    reasons = {refusal.reason for refusal in plan(**flags).refusals}
    assert len(reasons) == 1
    assert "no ptb/test.txt in --data-dir" in reasons.pop()
    (tmp_path / "ptb" / "test.txt").write_text("a sentence\n")
    found = plan(**flags)
    assert [cell.method for cell in found.cells] == ["dense"]
    assert all("no c4/train.jsonl" in refusal.reason for refusal in found.refusals)
    # Held-out documents are all that magnitude reads of C4, and they may lie in a file of their own.
    (tmp_path / "c4" / "train_extra.jsonl").write_text("{}\n")
    assert [cell.method for cell in plan(**flags).cells] == ["dense", "magnitude"]
    (tmp_path / "c4" / "train.jsonl").write_text("{}\n")
    assert len(plan(**flags).cells) == 3
    assert "no wikitext2/train.txt" in plan(**flags, calibration="wikitext2").refusals[-1].reason
    assert len(plan(data_dir=tmp_path).cells) == 3, "the embedded text needs no file"
    assert len(plan(models="opt-1.3b", text="ptb").cells) == 3, "the hub is asked when the cell runs"


@pytest.mark.parametrize("text", [None, "{"])
def test_a_broken_folder_is_refused_and_the_other_models_go_on(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    found = plan(models=f"nano-opt,path:{tmp_path}", pattern="2:4")
    assert {cell.model for cell in found.cells} == {"nano-opt"}
    assert [refusal.cell.name for refusal in found.refusals] == [
        f"path:{tmp_path} {rest}" for rest in ("dense", "magnitude 2:4", "sparsegpt 2:4 seed 0")
    ]
    assert len({refusal.reason for refusal in found.refusals}) == 1
    assert "config.json" in found.refusals[0].reason
    with pytest.raises(UserError, match=r"config\.json"):
        plan(models=f"path:{tmp_path}")


def test_a_local_folder_needs_only_its_config_for_a_plan(tmp_path: Path) -> None:
    from bench.models.registry import get

    (tmp_path / "config.json").write_text(json.dumps(dict(get("opt-125m").config)))
    found = plan(models=f"path:{tmp_path}")
    assert [cell.model for cell in found.cells] == [f"path:{tmp_path}"] * 3
    assert found.cells[0].evaluation.id == "lab/wikitext2"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "gpt2"}', '{"model_type": "opt"}', "\0"])
def test_a_folder_with_another_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as caught:
        plan(models=f"path:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_threads_are_counted_once_and_fixed() -> None:
    assert available_threads() >= 1
    cell = expand(gather({"models": "nano-opt", "device": "cpu"})).cells[0]
    assert cell.threads == available_threads()
    assert replace(cell, threads=99) != cell


def test_auto_means_float32_on_a_cpu() -> None:
    assert isinstance(plan().cells[0], Cell)
    assert plan().cells[0].dtype == "float32"
    assert plan(dtype="float16").cells[0].dtype == "float16"


def test_every_phase_has_a_protocol_of_its_own() -> None:
    dense = plan(
        models="nano-opt", evaluations="perplexity,zeroshot,decode", tasks="rte,piqa", limit="7"
    ).cells[0]
    phases = ("prune", *dense.evaluations)
    found = [dense.protocol(phase) for phase in phases]
    assert found == ["", "nano/kjv", "zeroshot/piqa,rte@limit=7", "decode/128+64"]
    whole = plan(models="nano-opt", evaluations="zeroshot", tasks="piqa").cells[0]
    assert whole.protocol("zeroshot") == "zeroshot/piqa"
    unused = plan(models="nano-opt", tasks="piqa", limit="7").cells[0]
    assert unused == plan(models="nano-opt").cells[0], "tasks of no evaluation tell no cells apart"


def test_slicing_and_sparsity_in_one_grid_go_to_the_methods_that_reach_them() -> None:
    found = plan(
        methods="slicegpt,sparsegpt", sparsity="0.5", slicing="0.1,0.2", fewer_params="0.2", fewer_bytes="0.3"
    )
    assert not found.refusals
    assert spelled(found) == [
        "nano-opt dense",
        *(
            f"nano-opt slicegpt {target} seed 0"
            for target in ("slice10%", "slice20%", "params-20%", "bytes-30%")
        ),
        *(f"nano-opt sparsegpt {target} seed 0" for target in ("50%", "params-20%", "bytes-30%")),
    ]
    assert spelled(plan(methods="slicegpt"))[1:] == ["nano-opt slicegpt slice25% seed 0"]


def test_a_grid_of_bits_goes_with_every_target() -> None:
    found = plan(methods="sparsegpt", sparsity="0.5", fewer_params="0.2", bits="none,4")
    assert [cell.target for cell in found.cells[1:]] == ["50%", "50%+4bit", "params-20%", "params-20%+4bit"]
    (refusal,) = plan(methods="slicegpt", slicing="0.2", bits="4").refusals
    assert "slicegpt does not quantise" in refusal.reason


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"methods": "sparsegpt,slicegpt", "sparsity": "0.5"},
            "--sparsity gives slicegpt no target; add --slicing 0.25, or leave slicegpt out of --methods",
        ),
        (
            {"methods": "slicegpt,magnitude", "slicing": "0.5"},
            "--slicing gives magnitude no target; add --sparsity 0.5 or --pattern 2:4, or leave magnitude out",
        ),
        (
            {"methods": "sparsegpt,magnitude", "sparsity": "0.5", "slicing": "0.2"},
            "--slicing slice20% is for none of the methods run: sparsegpt, magnitude; leave it out",
        ),
        (
            {"methods": "slicegpt", "fewer_params": "0.1", "pattern": "2:4"},
            "--pattern 2:4 is for none of the methods run: slicegpt; leave it out",
        ),
    ],
)
def test_targets_that_go_nowhere_are_an_error(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plan(**flags)


def test_schedule_and_hessian_dtype_do_not_tell_slices_apart() -> None:
    base = plan(methods="slicegpt")
    assert base.cells == plan(methods="slicegpt", schedule="blockwise", hessian_dtype="float64").cells
    assert base.cells[-1] != plan(methods="slicegpt", seeds="1").cells[-1]
    for name, value in (
        ("slice_head", "true"),
        ("slope", "0.1"),
        ("orientation", "random"),
        ("round_interval", "4"),
    ):
        other = plan(methods="slicegpt", assignments=(f"slicegpt.{name}={value}",))
        assert other.cells[-1] != base.cells[-1]


def test_what_cannot_be_sliced_or_made_so_small_is_refused_with_the_reason() -> None:
    found = plan(models="opt-350m,nano-opt", methods="slicegpt,magnitude", fewer_params="0.2,0.9")
    reasons = {refusal.cell.name: refusal.reason for refusal in found.refusals}
    assert set(reasons) == {
        "opt-350m slicegpt params-20% seed 0",
        "opt-350m slicegpt params-90% seed 0",
        "nano-opt slicegpt params-90% seed 0",
        "nano-opt magnitude params-90%",
    }
    assert "norms stand behind the residual sums" in reasons["opt-350m slicegpt params-20% seed 0"]
    assert "embeddings, head, norms and biases are not pruned" in reasons["nano-opt magnitude params-90%"]
    assert reasons["nano-opt slicegpt params-90% seed 0"].endswith(
        "(393,216 in its full head, untied from the token table); set slicegpt.slice_head=true"
    )
    assert spelled(plan(models="nano-llama", methods="slicegpt", assignments=("slicegpt.slice_head=true",)))
