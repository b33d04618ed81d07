"""Which of ours is set against which published figure, and what is listed and never subtracted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_records import record

from bench.published.match import Match, Mismatch, Ours, compare
from bench.results.records import Metric, Record
from reports.comparison import compare as compared
from reports.load import Loaded
from reports.markdown import markdown_page
from reports.pages import render_overview
from reports.published import beside

SPARSEGPT = {
    "percdamp": 0.01,
    "blocksize": 128,
    "saliency": "obs",
    "reference": False,
    "schedule": "blockwise",
}
WANDA = Ours(
    model="llama-2-7b",
    method="wanda",
    target="2:4",
    measure="perplexity",
    on="wikitext2",
    value=11.10,
    calibration="c4:128x4096",
    parameters={"reference": True, "schedule": "blockwise"},
    window=4096,
    dtype="float16",
)
OPT = Ours(
    model="opt-125m",
    method="sparsegpt",
    target="50%",
    measure="perplexity",
    on="wikitext2",
    value=37.0,
    calibration="c4:128x2048",
    parameters=SPARSEGPT,
    window=2048,
    dtype="float32",
)


def sources(found: tuple[Match, ...] | tuple[Mismatch, ...]) -> set[tuple[str, str]]:
    return {(entry.figure.source, entry.figure.printed) for entry in found}


def test_the_same_protocol_has_its_difference() -> None:
    matches, _ = compare(WANDA)
    assert sources(matches) >= {("2306.11695", "11.02")}
    paper = next(entry for entry in matches if entry.figure.source == "2306.11695")
    assert paper.difference == pytest.approx(0.08)
    assert any("4096 tokens" in note for note in paper.notes)


def test_llama_2_at_2048_is_never_subtracted_from_wandas_4096() -> None:
    matches, near = compare(replace(WANDA, window=2048, calibration="c4:128x2048"))
    assert matches == ()
    assert sources(near) >= {("2306.11695", "11.02")}
    assert near[0].reasons == (
        "evaluated at 4096 tokens, ours 2048",
        "calibration samples of 4096 tokens, ours 2048",
    )
    dense = replace(WANDA, method="dense", target="0%", window=2048, calibration="", parameters={}, value=5.5)
    same, other = compare(dense)
    assert sources(same) == {("2401.15024", "5.47"), ("2306.00978", "5.47")}
    assert ("2306.11695", "5.12") in sources(other)


def test_papers_that_disagree_are_both_shown() -> None:
    matches, _ = compare(OPT)
    shown = {(entry.figure.source, entry.figure.printed): entry.difference for entry in matches}
    assert shown[("2301.00774", "36.85")] == pytest.approx(0.15)
    assert shown[("2306.11695", "37.07")] == pytest.approx(-0.07)
    assert all("removes exactly" in " ".join(entry.notes) for entry in matches)


def test_what_moves_rounding_only_is_a_note() -> None:
    matches, _ = compare(replace(OPT, parameters={**SPARSEGPT, "hessian_dtype": "float64"}))
    assert matches and all("Hessians in float64" in " ".join(entry.notes) for entry in matches)
    magnitude = replace(OPT, method="magnitude", calibration="", parameters={"schedule": "sequential"})
    assert compare(magnitude)[0]  # draws no text: no schedule either


def test_suspects_are_marked() -> None:
    dense = replace(
        OPT, model="llama-30b", method="dense", target="0%", calibration="", parameters={}, value=4.1
    )
    matches, _ = compare(dense)
    wanda = next(entry for entry in matches if entry.figure.source == "2306.11695")
    assert any(note.startswith("suspect: ") for note in wanda.notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"window": 512}, "evaluated at 2048 tokens, ours 512"),
        ({"window": 0}, "our window length is not recorded"),
        ({"calibration": "c4:64x2048"}, "128 calibration samples, ours 64"),
        ({"calibration": "c4:128x512"}, "calibration samples of 2048 tokens, ours 512"),
        ({"calibration": "c4:128xcontext"}, "calibration samples of 2048 tokens, ours context"),
        ({"calibration": "wikitext2:128x2048"}, "calibrated on c4, ours on wikitext2"),
        ({"calibration": "<script>"}, "calibrated on c4, ours on <script>"),
        ({"parameters": {**SPARSEGPT, "percdamp": 0.1}}, "percdamp 0.01, ours 0.1"),
        ({"parameters": {**SPARSEGPT, "saliency": "isc"}}, "saliency obs, ours isc"),
        (
            {"parameters": {**SPARSEGPT, "schedule": "sequential"}},
            "pruned in schedule blockwise, ours sequential",
        ),
        ({"parameters": {"percdamp": 0.01}}, "pruned in schedule blockwise, ours not recorded"),
        ({"parameters": {**SPARSEGPT, "unheard": 3}}, "unheard is not stated, ours 3"),
        ({"parameters": {**SPARSEGPT, "recovery": "lora"}}, "one shot, ours trained after pruning (lora)"),
        ({"parameters": {**SPARSEGPT, "layers": "blocks=0-3"}}, "all layers pruned, ours blocks=0-3 only"),
        ({"deviations": ("on the whole text, ours on 64 of 140 windows",)}, "ours on 64 of 140 windows"),
    ],
)
def test_whatever_differs_is_named_and_not_subtracted(changes: dict[str, Any], reason: str) -> None:
    matches, near = compare(replace(OPT, **changes))
    assert not [entry for entry in matches if entry.figure.primary]
    paper = next(entry for entry in near if entry.figure.source == "2301.00774")
    assert any(reason in said for said in paper.reasons)


def test_an_ablation_is_matched_where_ours_is_that_ablation() -> None:
    own = replace(OPT, model="opt-2.7b", parameters={**SPARSEGPT, "percdamp": 0.1}, value=13.5)
    matches, _ = compare(own)
    assert {entry.figure.table for entry in matches} == {"Figure 9 (digitised, percdamp=0.1)"}
    assert "not the source's primary figure" in " ".join(matches[0].notes)


def test_accuracies_of_another_harness_or_norm_are_listed_only() -> None:
    own = Ours(
        model="llama-2-7b",
        method="dense",
        target="0%",
        measure="zeroshot",
        on="hellaswag",
        value=0.5717,
        accuracy="acc",
        harness="lm-eval 0.4.13",
    )
    matches, near = compare(own)
    assert matches == ()
    reasons = {entry.figure.source: entry.reasons for entry in near}
    assert reasons["2306.11695"] == ("scored by lm-eval df3da98 (0.3 series), ours by lm-eval 0.4.13",)
    assert reasons["2401.15024"][0] == "acc_norm, ours acc"


def test_the_parameters_of_a_sliced_model() -> None:
    own = Ours(
        model="opt-125m",
        method="slicegpt",
        target="slice20%",
        measure="parameters",
        on="",
        value=147_250_880,
        calibration="wikitext2:128x2048",
        parameters={"round_interval": 8, "slice_head": False, "orientation": "pca", "slope": 0.0},
    )
    matches, _ = compare(own)
    assert [(entry.figure.printed, entry.difference) for entry in matches] == [("147250880", 0)]


def store(**facts: Any) -> list[Record]:
    text = {
        "dataset": "wikitext2",
        "split": "test",
        "length": 2048,
        "windows": 140,
        "text_windows": 140,
        "selection": "all",
        "notes": [],
    }
    shared: dict[str, Any] = {
        "cell": "c",
        "subject": "s",
        "model": "opt-125m",
        "method": "sparsegpt",
        "target": "50%",
        "dtype": "float32",
        "calibration": "c4:128x2048",
        "parameters": SPARSEGPT,
    }
    return [
        record(
            **shared,
            phase="perplexity",
            protocol="paper/wikitext2",
            metrics=(Metric(name="perplexity", unit="1", value=37.0),),
            provenance={"evaluation": text | facts},
        )
    ]


def test_reports_show_both_tables() -> None:
    comparison = compared(store())
    page = render_overview(Loaded(tuple(store()), 0, ()), comparison)
    assert "Ours against published, same protocol" in page
    assert "+0.15" in page
    assert "36.85" in page
    assert "Ours against published, same protocol" in markdown_page(Loaded(tuple(store()), 0, ()), comparison)
    other = compared(store(length=512, windows=64, selection="spread", notes=["<b>cut</b>"]))
    found = beside(other)
    assert found.matches == ()
    assert found.mismatches[0].reasons == (
        "evaluated at 2048 tokens, ours 512",
        "on the whole text, ours on 64 of 140 windows",
        "our evaluation text: <b>cut</b>",
    )
    page = render_overview(Loaded(tuple(store()), 0, ()), other)
    assert "same protocol" not in page
    assert "&lt;b&gt;cut&lt;/b&gt;" in page
    assert "<b>cut" not in page


def test_models_without_published_figures_have_no_section() -> None:
    found = [entry.model_copy(update={"model": "nano-opt"}) for entry in store()]
    assert "Ours against published" not in render_overview(Loaded(tuple(found), 0, ()), compared(found))


def test_alarms_have_a_table_and_hostile_ones_are_shown_as_text() -> None:
    alarms = [
        {"kind": "layer-error-jump", "block": 3, "matrix": "mlp.down_proj", "value": 12.5, "limit": 10.0},
        {"kind": "<script>", "block": "x" * 999, "matrix": None, "value": "9", "limit": True},
        "no alarm",
    ]
    found = [
        entry.model_copy(update={"model": "nano-opt", "provenance": {"guards": alarms}}) for entry in store()
    ]
    comparison = compared(found)
    page = render_overview(Loaded(tuple(found), 0, ()), comparison)
    assert "mlp.down_proj" in page
    assert "layer error jump" in page
    assert "12.50" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page.split('id="alarms"')[1].split("</section>")[0]
    assert "| layer error jump | 3 |" in markdown_page(Loaded(tuple(found), 0, ()), comparison)
