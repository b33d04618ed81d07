"""What is compared with what: groups, seeds, places, and the words of the overview."""

from __future__ import annotations

import math

import pytest
from sample_records import cell, grid, later, record, with_perplexity

from bench.results.records import Metric, Record
from reports.comparison import compare
from reports.load import current, figures_frame, matrices_frame
from reports.overview import overview
from reports.tables import cost_table, other_table, problem_table, quality_table, title_of
from reports.targets import target_order


def test_protocols_never_share_a_table() -> None:
    records = [
        *cell("nano-opt", "dense", "0%"),
        *cell("nano-opt", "sparsegpt", "50%"),
        *cell("nano-opt", "dense", "0%", protocol="lab/wikitext2"),
        *cell("nano-opt", "magnitude", "50%", protocol="lab/wikitext2"),
        *cell("nano-opt", "magnitude", "50%", protocol="lab/wikitext2[length=1024]"),
    ]
    groups = compare(records).groups
    assert [group.protocol for group in groups] == ["nano/kjv", "lab/wikitext2", "lab/wikitext2[length=1024]"]
    assert [[row.method for row in group.rows] for group in groups] == [
        ["dense", "sparsegpt"],
        ["dense", "magnitude"],
        ["magnitude"],
    ]
    # Without a dense model under the same protocol there is no change to give.
    assert groups[2].rows[0].change.mean is None
    assert "cannot" not in overview(compare(records))[0].dense
    assert "no change can be given" in overview(compare(records))[2].dense
    # Nor do revisions of one model.
    moved = [
        entry.model_copy(
            update={"provenance": {"model": {"revision": "abc"}}, "subject": entry.subject + "!"}
        )
        for entry in records
    ]
    assert len(compare([*records, *moved]).groups) == 6


def test_size_and_quality_meet_in_one_row() -> None:
    group = compare(cell("nano-opt", "sparsegpt", "50%")).groups[0]
    assert quality_table(group).columns == (
        *("Method", "Target", "Perplexity", "KL to dense, nat/token", "Top-1 flips", "Held-out error"),
        *("Calibration", "Seeds"),
    )
    assert cost_table(group).columns == (
        *("Method", "Target", "Sparsity achieved", "Weights removed", "Parameters", "Non-zero parameters"),
        *("Bytes", "Prune time", "Peak memory, prune"),
    )
    assert cost_table(group).rows[0][2:] == (
        *("50.00 %", "500,000", "1,500,000", "1,000,000"),
        *("6 MB", "3.25 s", "400 MB"),
    )
    other = other_table(group)
    assert ("sparsegpt", "50%", "perplexity", "Peak memory", "500 MB") in other.rows
    # How fast one run scored text is no property of the method: it stands apart, and says so.
    assert ("sparsegpt", "50%", "perplexity", "Tokens per second", "12,345.6 token/s") in other.rows
    assert any("no measure of what sparsity gains" in note for note in other.notes)


def on(records: list[Record], tokens: str) -> list[Record]:
    return [
        entry
        if entry.phase == "prune"
        else entry.model_copy(
            update={
                "provenance": {**entry.provenance, "evaluation": {"tokens_sha256": tokens}},
                "subject": entry.subject + tokens,
            }
        )
        for entry in records
    ]


def test_texts_never_share_a_table() -> None:
    records = [*cell("nano-opt", "dense", "0%"), *cell("nano-opt", "sparsegpt", "50%")]
    first, second = on(records, "a1" * 32), on(with_perplexity(records, 40.0), "b2" * 32)
    (alone,) = compare(first).groups
    assert title_of(alone) == "nano-opt · nano/kjv"
    groups = compare([*first, *(entry for entry in second if entry.phase != "prune")]).groups
    assert [title_of(group) for group in groups] == [
        f"nano-opt · nano/kjv · text {short} (2 different texts)" for short in ("a1a1a1a1", "b2b2b2b2")
    ]
    means = [row.perplexity.mean for group in groups for row in group.rows]
    assert means == pytest.approx([20.0, 23.0, 40.0, 40.0])
    # Another model's tokenizer makes other tokens of the same text: nothing to tell apart.
    others = on(cell("nano-llama", "dense", "0%"), "c3" * 32)
    assert [title_of(group) for group in compare([*first, *others]).groups] == [
        "nano-opt · nano/kjv",
        "nano-llama · nano/kjv",
    ]


def test_memory_is_what_pruning_added() -> None:
    base = Metric(name="base_memory", unit="byte", value=150_000_000)
    prune, evaluation = cell("nano-opt", "sparsegpt", "50%")
    based = [prune.model_copy(update={"metrics": (*prune.metrics, base)}), evaluation]
    (group,) = compare(based).groups
    table = cost_table(group)
    assert table.columns[-2:] == ("Prune time", "Added memory, prune")
    assert table.rows[0][-1] == "250 MB"
    assert any("before pruning began" in note for note in table.notes)
    assert {row[3:] for row in other_table(group).rows if row[2] == "prune"} >= {
        ("Peak memory", "400 MB"),
        ("Base memory", "150 MB"),
    }
    # The whole process is never shown as what pruning added.
    (mixed,) = compare([*based, *cell("nano-opt", "magnitude", "50%")]).groups
    table = cost_table(mixed)
    assert table.columns[-2:] == ("Added memory, prune", "Peak memory, prune")
    assert {row[0]: row[-2:] for row in table.rows} == {
        "sparsegpt": ("250 MB", "400 MB"),
        "magnitude": ("–", "400 MB"),
    }


def test_notes_explain_what_a_table_holds() -> None:
    (group,) = compare(cell("nano-opt", "sparsegpt", "50%")).groups
    quality, cost = " ".join(quality_table(group).notes), " ".join(cost_table(group).notes)
    assert "never drawn for calibration" in quality and "windows x length" in quality
    assert "may have been busy" in cost and "zeros stored dense" in cost
    assert "environments" not in cost
    (dense,) = compare(cell("nano-opt", "dense", "0%")).groups
    assert quality_table(dense).notes == ()
    elsewhere = cell("nano-opt", "magnitude", "50%", environment="e1")
    (both,) = compare([*cell("nano-opt", "sparsegpt", "50%"), *elsewhere]).groups
    assert "These rows come from 2 environments." in cost_table(both).notes


def test_unknown_metrics_and_phases_are_shown() -> None:
    extra = record(
        phase="zeroshot",
        protocol="lm-eval/piqa",
        metrics=[Metric(name="piqa_acc", unit="1", value=0.71234)],
        subject="z",
    )
    groups = compare([extra]).groups
    assert [group.protocol for group in groups] == ["lm-eval/piqa"]
    assert other_table(groups[0]).rows == (("sparsegpt", "50%", "zeroshot", "Piqa acc", "0.712"),)


def test_a_prune_without_evaluation_is_shown_apart() -> None:
    records = [*cell("nano-opt", "dense", "0%"), cell("nano-opt", "magnitude", "50%")[0]]
    assert [(group.protocol, len(group.rows)) for group in compare(records).groups] == [
        ("nano/kjv", 1),
        ("", 1),
    ]


def test_seeds_are_averaged_with_an_interval() -> None:
    records = [*cell("nano-opt", "dense", "0%")]
    for seed in (0, 1, 2):
        records += cell("nano-opt", "sparsegpt", "50%", seed=seed)
    row = compare(records).groups[0].rows[1]
    # 23, 23.01, 23.02: t(0.975, 2) * 0.01 / sqrt(3).
    assert row.perplexity.mean == pytest.approx(23.01)
    assert row.perplexity.half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    assert row.change.mean == pytest.approx(23.01 / 20)
    table = quality_table(compare(records).groups[0])
    assert table.rows[1][2] == "23.01 ± 0.025"
    assert table.rows[1][-1] == "0, 1, 2"
    assert any("95 %" in note for note in overview(compare(records))[0].notes)


def test_one_seed_says_that_no_interval_exists() -> None:
    notes = overview(compare([*cell("nano-opt", "dense", "0%"), *cell("nano-opt", "sparsegpt", "50%")]))[
        0
    ].notes
    assert notes == (
        (
            "Measured with one calibration seed: no interval over calibration text exists, "
            "small differences may be chance."
        ),
    )


def test_runs_that_differ_in_something_unshown_are_not_averaged() -> None:
    first = cell("nano-opt", "sparsegpt", "50%")
    twin = [entry.model_copy(update={"subject": "another", "cell": "another"}) for entry in first]
    rows = compare([*first, *twin]).groups[0].rows
    assert len(rows) == 2
    assert {row.perplexity.count for row in rows} == {1}
    assert len({row.name for row in rows}) == 2


def test_parameters_tell_rows_of_one_method_apart() -> None:
    plain = cell("nano-opt", "sparsegpt", "50%", parameters={"percdamp": 0.01, "block": 128})
    damped = [
        entry.model_copy(update={"subject": "d", "cell": "d", "parameters": {"percdamp": 1.0, "block": 128}})
        for entry in plain
    ]
    names = {row.name for row in compare([*plain, *damped]).groups[0].rows}
    assert names == {"sparsegpt (percdamp=0.01)", "sparsegpt (percdamp=1.0)"}


def test_a_seed_that_lacks_a_figure_makes_it_missing() -> None:
    records = [
        *cell("m", "sparsegpt", "50%", seed=0),
        *with_perplexity(cell("m", "sparsegpt", "50%", seed=1), None),
    ]
    assert compare(records).groups[0].rows[0].perplexity.mean is None
    one = cell("m", "sparsegpt", "50%", seed=1)
    records[2:] = [one[0], one[1].model_copy(update={"metrics": one[1].metrics[1:]})]
    assert compare(records).groups[0].rows[0].perplexity.mean is None


def test_rows_run_from_dense_by_target_and_quality() -> None:
    group = compare(grid()).groups[0]
    assert [(row.method, row.target) for row in group.rows] == [
        ("dense", "0%"),
        *(("sparsegpt", "50%"), ("magnitude", "50%")),
        *(("sparsegpt", "2:4"), ("magnitude", "2:4")),
    ]
    asked = ["bytes-30%", "2:4", "70%", "odd", "slice25%", "params-5%", "4:8", "slice5%", "50%", "5:8"]
    assert sorted([*asked, "50%+4bit", "0%+3bit"], key=target_order) == [
        "0%+3bit", "50%", "50%+4bit", "70%", "5:8", "2:4", "4:8",
        "slice5%", "slice25%", "params-5%", "bytes-30%", "odd",
    ]  # fmt: skip


def test_only_the_latest_of_a_subject_is_current() -> None:
    old = record(cell="old", sources="old")
    new = record(cell="new", sources="new", finished=later(50))
    assert current([new, old]) == [new]
    assert compare([record(status="failed", reason="x"), new]).problems[0].reason == "x"


def test_a_failure_is_dropped_once_the_cell_succeeded() -> None:
    # A cell whose model was missing is recorded without its revision, so under another subject.
    failed = record(status="failed", reason="offline", cell="unpulled", subject="unpulled", finished=later(5))
    success = record(cell="pulled", subject="pulled", phase="perplexity", protocol="p", finished=later(9))
    assert current([failed, success]) == [success]
    assert current([failed.model_copy(update={"finished": later(10)}), success])[-1].status == "failed"
    other = success.model_copy(update={"seed": 1})
    assert current([failed, other]) == [failed, other]


def test_problems_keep_their_reasons() -> None:
    table = problem_table(compare(grid()))
    assert [row[-1] for row in table.rows] == [
        "2:4 needs widths divisible by 4, found 162",
        "opt-125m is not in the cache and the hub cannot be reached",
    ]
    assert problem_table(compare([record(status="failed")])).rows[0][-1] == "no reason recorded"


def test_frames() -> None:
    frame = figures_frame(grid())
    assert (
        ",".join(frame.columns) == "cell,status,model,method,target,seed,protocol,metric,unit,value,recovery"
    )
    assert set(frame["status"]) == {"done", "refused", "failed"}
    matrices = matrices_frame(grid())
    assert len(matrices) == 3 * 2 * 2 * 16
    assert matrices["heldout_error"].between(0, 1).all()
    assert list(matrices_frame([]).columns) == list(matrices.columns)


def test_saved_files_stand_beside_their_bounds_in_the_row_of_their_cell() -> None:
    saved = {"dense": 6_000_400, "bitmap": 4_125_900}
    records = [*cell("nano-opt", "dense", "0%"), *cell("nano-opt", "sparsegpt", "50%")]
    prune = records[2].model_copy(
        update={"metrics": (*records[2].metrics, Metric(name="bytes_bitmap", unit="byte", value=4_100_000))}
    )
    saves = [
        prune.model_copy(
            update={
                "phase": "save",
                "protocol": f"save/{form}",
                "subject": f"{prune.subject}/{form}",
                "metrics": (Metric(name=f"saved_bytes_{form}", unit="byte", value=size),),
                "matrices": (),
            }
        )
        for form, size in saved.items()
    ]
    (group,) = compare([*records[:2], prune, *saves, records[3]]).groups
    table = cost_table(group)
    shown = dict(zip(table.columns, table.rows[-1], strict=True))
    assert (shown["On disk, dense"], shown["On disk, bitmaps"]) == ("6 MB", "4.13 MB")
    assert shown["Bound, bitmaps"] == "4.1 MB"
    assert "On disk, sliced" not in table.columns and any("headers and all" in note for note in table.notes)
    assert not any("saved" in row[3].lower() for row in other_table(group).rows)
    # nothing evaluated: the row is there all the same
    (alone,) = compare([prune, *saves]).groups
    table = cost_table(alone)
    assert dict(zip(table.columns, table.rows[0], strict=True))["Bound, bitmaps"] == "4.1 MB"
    # without saved bitmaps their bound stays where it was
    (plain,) = compare([*records[:2], prune, records[3]]).groups
    assert "Bound, bitmaps" not in cost_table(plain).columns


def test_a_warning_is_shown_once_with_its_cells() -> None:
    records = [
        record(
            cell=f"c{seed}{method}",
            subject=f"s{seed}{method}",
            method=method,
            seed=seed,
            warnings=("odd text",),
        )
        for method in ("sparsegpt", "wanda")
        for seed in ((0, 1) if method == "wanda" else (0,))
    ]
    assert compare(records).warned() == [("odd text", "nano-opt sparsegpt 50%, nano-opt wanda 50% (2 times)")]
