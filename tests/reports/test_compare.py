"""`bench compare`: what joins, what a change needs to count, and what is shown of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_records import cell, record

from bench.cli.compare import read_tolerances
from bench.cli.main import main
from bench.results.records import Metric, Record
from bench.results.segments import Store
from bench.results.values import save_values
from reports.compare.show import as_json, headline, markdown_summary
from reports.compare.verdicts import Change, Changes, compare_stores

MODELS = ("nano-opt", "nano-bloom", "nano-llama")
REFERENCE = "F.linear float32 256x512x1024"


def save(folder: Path, records: list[Record]) -> Path:
    with Store(folder, create=True) as store:
        for entry in records:
            store.append(entry)
    return folder


def compared(base: Path, new: Path, **options: Any) -> Changes:
    return compare_stores(base, new, read_tolerances(None), **options)


def only(changes: Changes, metric: str, **fields: Any) -> Change:
    found = [
        change
        for change in changes.figures
        if change.metric == metric and all(getattr(change, name) == value for name, value in fields.items())
    ]
    assert len(found) == 1, found
    return found[0]


def evaluated(folder: Path, nll: np.ndarray[Any, Any], **changes: Any) -> Record:
    """A perplexity record of a model that is not nano, with the loss of every window."""
    fields: dict[str, Any] = {
        "phase": "perplexity",
        "protocol": "lab/wikitext2",
        "model": "opt-125m",
        "metrics": (Metric(name="perplexity", unit="1", value=float(np.exp(nll.mean()))),),
        "provenance": {"evaluation": {"tokens_sha256": "t0"}, "model": {"revision": "r0"}},
        "values": save_values(folder, {"nll": nll}),
    }
    return record(**{**fields, **changes})


def test_quality_counts_beyond_the_tolerance_and_only_where_windows_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nll = rng.normal(3.0, 0.4, 64)
    base = save(tmp_path / "base", [evaluated(tmp_path / "base", nll)])
    worse, noisy = nll + 0.05, nll.copy()
    noisy[:2] += 1.0  # two windows alone move the mean by 2.4 %: other text might not have them
    noisy[2:18] -= 0.03
    for name, values, verdict in (
        ("same", nll, "unchanged"),
        ("worse", worse, "regressed"),
        ("better", nll - 0.05, "improved"),
        ("within", nll + 0.005, "unchanged"),
        ("noisy", noisy, "unchanged"),
    ):
        new = save(tmp_path / name, [evaluated(tmp_path / name, values)])
        change = only(compared(base, new), "perplexity")
        assert change.verdict == verdict, name
        assert compared(base, new).regressed == (verdict == "regressed")
    assert change.reason == "beyond the tolerance, but not significant"
    assert change.difference is not None and change.difference.adjusted > 0.05
    lost = evaluated(tmp_path / "lost", worse, values="")
    untested = only(compared(base, save(tmp_path / "lost", [lost])), "perplexity")
    assert (untested.verdict, untested.reason[:21]) == ("regressed", "no windows to test on")
    broken = evaluated(tmp_path / "nan", worse, metrics=(Metric(name="perplexity", unit="1", value=np.nan),))
    assert only(compared(base, save(tmp_path / "nan", [broken])), "perplexity").reason == "no longer finite"


def test_nano_models_are_held_to_a_tight_tolerance_without_a_test(tmp_path: Path) -> None:
    base = save(tmp_path / "base", cell("nano-opt", "sparsegpt", "50%"))
    prune, evaluation = cell("nano-opt", "sparsegpt", "50%")
    figures = {metric.name: metric for metric in evaluation.metrics}
    for share, verdict in ((1.001, "unchanged"), (1.003, "regressed"), (0.99, "improved")):
        moved = Metric(name="perplexity", unit="1", value=(figures["perplexity"].value or 0) * share)
        new = save(
            tmp_path / str(share),
            [
                prune,
                evaluation.model_copy(update={"metrics": tuple({**figures, "perplexity": moved}.values())}),
            ],
        )
        assert only(compared(base, new), "perplexity").verdict == verdict


def test_what_base_had_done_and_new_lacks_is_a_regression(tmp_path: Path) -> None:
    base = save(
        tmp_path / "base", [*cell("nano-opt", "sparsegpt", "50%"), *cell("nano-opt", "magnitude", "50%")]
    )
    failed = record(status="failed", subject="unpulled", cell="other", reason="no memory <b>", metrics=())
    new = save(tmp_path / "new", [failed, *cell("nano-opt", "dense", "0%")])
    changes = compared(base, new)
    assert {(lost.base.method, lost.base.phase, lost.reason) for lost in changes.missing} == {
        ("sparsegpt", "prune", "failed in NEW: no memory <b>"),
        ("sparsegpt", "perplexity", "failed in NEW: no memory <b>"),
        ("magnitude", "prune", "not in NEW"),
        ("magnitude", "perplexity", "not in NEW"),
    }
    assert changes.regressed and len(changes.new) == 2
    assert headline(changes) == "Regression: 4 missing in NEW, 2 new."
    assert not compared(base, new, missing_allowed=True).regressed
    other = [
        entry.model_copy(update={"subject": f"x{i}", "parameters": {"percdamp": 1.0}})
        for i, entry in enumerate(cell("nano-opt", "sparsegpt", "50%"))
    ]
    told = compared(base, save(tmp_path / "other", other)).missing[0].reason
    assert told == "NEW has it with other parameters: percdamp none and 1.0"


def test_quality_on_other_files_or_other_text_is_lost_unless_waived(tmp_path: Path) -> None:
    nll = np.linspace(2.0, 4.0, 32)
    base = save(tmp_path / "base", [evaluated(tmp_path / "base", nll)])
    text = {"evaluation": {"tokens_sha256": "t1"}, "model": {"revision": "r0"}}
    files = {"evaluation": {"tokens_sha256": "t0"}, "model": {"revision": "r1"}}
    waiver = tmp_path / "waiver.yaml"
    waiver.write_text("overrides:\n  - {models: opt-*, metrics: {perplexity: {apart: ignored}}}\n")
    for name, changes, reason in (
        ("text", {"provenance": text}, "evaluated on different text under one protocol's name"),
        ("files", {"provenance": files, "subject": "s1"}, "the model's files differ: r0 and r1"),
    ):
        new = save(tmp_path / name, [evaluated(tmp_path / name, nll + 4.6, **changes)])
        found = compared(base, new)
        lost = only(found, "all figures")
        assert (lost.verdict, lost.kind, lost.reason) == ("regressed", "quality", reason)
        assert found.regressed and not found.missing
        waived = compare_stores(base, new, read_tolerances(waiver))
        assert only(waived, "all figures").verdict == "not comparable" and not waived.regressed
        sizes = [record(model="opt-125m", subject=f"p{side}", provenance=files) for side in "ab"]
        first, second = (save(tmp_path / f"{name}{entry.subject}", [entry]) for entry in sizes)
        assert not compared(first, second).regressed  # nothing but sizes and times


def _break(store: Path, lines: int) -> None:
    segment = next((store / "records").glob("*.jsonl"))
    kept = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(b"x" + line if i < lines else line for i, line in enumerate(kept)))


def test_damage_in_base_is_an_error_and_in_new_a_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [entry for method in ("sparsegpt", "wanda") for entry in cell("nano-opt", method, "50%")]
    whole, torn = (save(tmp_path / name, records) for name in ("whole", "torn"))
    _break(torn, 3)
    assert main(("compare", str(torn), str(whole))) == 2
    error = capsys.readouterr().err
    assert "BASE " in error and "is damaged" in error and "and 2 more" in error and error.count("\n") == 1
    assert main(("compare", str(whole), str(torn), "--allow-missing")) == 1
    assert "3 damaged in NEW" in capsys.readouterr().out


def test_times_that_are_none_have_no_ratio(tmp_path: Path) -> None:
    base = save(tmp_path / "base", pruned())
    for name, value in (("negative", -1.0), ("zero", 0.0)):
        wrong = [
            entry.model_copy(update={"metrics": (Metric(name="prune_time", unit="s", value=value),)})
            for entry in pruned()
        ]
        for pair in ((base, save(tmp_path / name, wrong)), (tmp_path / name, base)):
            times = [change for change in compared(*pair).figures if change.metric == "prune_time"]
            assert len(times) == 6 and all("which is no time" in change.reason for change in times)


def test_a_missing_phase_is_laid_to_its_own_failure_or_its_prunings(tmp_path: Path) -> None:
    evaluated = [record(phase=phase, subject=phase, protocol="p") for phase in ("perplexity", "zeroshot")]
    base = save(tmp_path / "base", [record(), *evaluated])
    failed = record(phase="zeroshot", subject="z", protocol="q", status="failed", reason="tasks", metrics=())
    found = compared(base, save(tmp_path / "new", [record(), failed])).missing
    assert {lost.base.phase: lost.reason for lost in found} == {
        "perplexity": "not in NEW",
        "zeroshot": "failed in NEW: tasks",
    }


def pruned(slower: float = 1.0, reference: float = 1.0, jitter: int = 0, **changes: Any) -> list[Record]:
    """Prune records of six cells, their times `slower` and the reference operator's by `reference`."""
    rng = np.random.default_rng(jitter)
    found = []
    for model in MODELS:
        for target in ("50%", "2:4"):
            seconds = 3.0 * slower * float(np.exp(rng.normal(0, 0.05)))
            fields = {
                "model": model,
                "target": target,
                "cell": f"c {model} {target}",
                "subject": f"s {model} {target}",
                "metrics": (
                    Metric(name="prune_time", unit="s", value=seconds),
                    Metric(name="peak_memory", unit="byte", value=9e8),
                    Metric(name="base_memory", unit="byte", value=5e8),
                ),
                "provenance": {
                    "environment": {"processor": "A", "threads": 1},
                    "reference": {"operator": REFERENCE, "seconds": 0.003 * reference},
                },
            }
            found.append(record(**{**fields, **changes}))
    return found


def test_prune_times_compare_as_ratios_over_all_cells_of_a_method(tmp_path: Path) -> None:
    base = save(tmp_path / "base", pruned())
    for name, new, verdict in (
        ("noise", pruned(jitter=1), "unchanged"),
        ("slower", pruned(1.4, jitter=2), "regressed"),
        ("busy machine", pruned(1.4, 1.4, jitter=3), "unchanged"),
        ("faster", pruned(0.5, jitter=4), "improved"),
    ):
        changes = compared(base, save(tmp_path / name, new))
        time = only(changes, "prune_time")
        assert (time.verdict, time.cells, time.target) == (verdict, 6, "6 cells"), name
        assert (time.model, time.reference) == ("3 models", REFERENCE)
        assert len([change for change in changes.figures if change.metric == "added_memory"]) == 6


def test_times_of_one_method_are_held_each_to_its_own_limit(tmp_path: Path) -> None:
    loose = tmp_path / "loose.yaml"
    loose.write_text("overrides:\n  - {targets: '2:4', metrics: {prune_time: {relative: 5.0}}}\n")
    stores = (save(tmp_path / "base", pruned()), save(tmp_path / "new", pruned(1.6, jitter=2)))
    times = [
        change
        for change in compare_stores(*stores, read_tolerances(loose)).figures
        if change.metric == "prune_time"
    ]
    assert [(change.cells, change.verdict) for change in times] == [(3, "regressed"), (3, "unchanged")]


def suite(folder: Path, right: dict[str, np.ndarray[Any, Any]], name: str = "acc_avg") -> Path:
    """A store of one zero-shot record: accuracy on two tasks of unequal size, and the mean of their suite."""
    means = {task: float(items.mean()) for task, items in right.items()}
    metrics = [Metric(name=f"acc/{task}", unit="1", value=mean) for task, mean in means.items()]
    metrics.append(Metric(name=f"{name}/slicegpt", unit="1", value=sum(means.values()) / len(means)))
    facts = {"metric": "acc_norm", "tasks": list(right), "partial": name != "acc_avg"}
    entry = record(
        phase="zeroshot",
        protocol="zeroshot/suite:slicegpt",
        model="opt-125m",
        metrics=tuple(metrics),
        provenance={"suites": {"slicegpt": facts}, "tasks": {task: {"version": 1} for task in right}},
        values=save_values(
            folder, {f"acc/{task}": items.astype(np.float32) for task, items in right.items()}
        ),
    )
    return save(folder, [entry])


@pytest.mark.parametrize("name", ["acc_avg", "acc_avg_partial"])
def test_means_of_suites_are_judged_over_the_items_of_their_tasks(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    right = {"piqa": rng.random(2000) < 0.7, "copa": rng.random(100) < 0.8}
    base = suite(tmp_path / "base", right, name)
    worse = {task: items & (rng.random(len(items)) < 0.93) for task, items in right.items()}
    lucky = {"piqa": right["piqa"], "copa": right["copa"] & (rng.random(100) < 0.97)}
    lost = only(compared(base, suite(tmp_path / "worse", worse, name)), f"{name}/slicegpt")
    assert lost.verdict == "regressed" and lost.difference is not None and lost.reason == ""
    assert lost.difference.mean == pytest.approx((lost.after or 0) - (lost.before or 0))
    assert lost.difference.units == 2100
    chance = only(compared(base, suite(tmp_path / "lucky", lucky, name)), f"{name}/slicegpt")
    assert (chance.verdict, chance.reason) == ("unchanged", "beyond the tolerance, but not significant")


def test_times_and_memory_need_equal_environments(tmp_path: Path) -> None:
    base = save(tmp_path / "base", pruned())
    there = pruned(9.0, environment="e1")
    moved = [
        entry.model_copy(
            update={
                "provenance": {**entry.provenance, "environment": {"processor": "B", "threads": 1}},
                "metrics": (
                    *entry.metrics[:1],
                    Metric(name="peak_memory", unit="byte", value=9e9),
                    entry.metrics[2],
                ),
            }
        )
        for entry in there
    ]
    changes = compared(base, save(tmp_path / "new", moved))
    assert changes.compared == 0
    assert {change.reason for change in changes.figures} == {"environments differ: processor A and B"}


def row(
    folder: Path, slower: float | tuple[float, ...], seed: int, batches: tuple[int, ...] = (1, 4)
) -> list[Record]:
    rng = np.random.default_rng(seed)
    found = []
    each = slower if isinstance(slower, tuple) else (slower,) * len(batches)
    for batch, slower in zip(batches, each, strict=True):
        reference = np.exp(rng.normal(0, 0.1, 15)) * batch
        times = reference * 0.6 * slower * np.exp(rng.normal(0, 0.05, 15))
        found.append(
            record(
                phase="kernels",
                model="64x64",
                method="bitmap",
                protocol=f"kernels/batch={batch}",
                subject=f"k{batch}",
                cell=f"k{batch}",
                metrics=(Metric(name="median_s", unit="s", value=float(np.median(times))),),
                values=save_values(folder, {"times": times, "reference_times": reference}),
            )
        )
    return found


def test_kernel_rows_compare_by_their_own_repeats(tmp_path: Path) -> None:
    base = save(tmp_path / "base", row(tmp_path / "base", 1.0, 0))
    slow = compared(base, save(tmp_path / "slow", row(tmp_path / "slow", 1.4, 1)))
    assert [change.verdict for change in slow.figures] == ["regressed", "regressed"]
    assert slow.figures[1].target == "50%, batch=4"
    assert 0.3 < (slow.figures[0].relative or 0) < 0.5  # two rows: too few to judge a format by
    for seed in range(2, 12):
        again = compared(base, save(tmp_path / f"again{seed}", row(tmp_path / f"again{seed}", 1.0, seed)))
        assert not again.regressed


def test_a_format_is_judged_over_its_rows_and_a_row_alone_only_far_off(tmp_path: Path) -> None:
    base = save(tmp_path / "base", row(tmp_path / "base", 1.0, 0, (1, 4, 16, 64)))
    for name, slower, regressed in (
        ("one busy", (1.5, 1.0, 1.0, 1.0), set()),
        ("one broken", (2.5, 1.0, 1.0, 1.0), {"50%, batch=1"}),
        ("all slow", (1.4, 1.4, 1.3, 1.5), {"4 cells"}),
    ):
        new = save(tmp_path / name, row(tmp_path / name, slower, 1, (1, 4, 16, 64)))
        found = compared(base, new)
        assert {change.target for change in found.of("regressed")} == regressed, name


def test_tolerances_of_a_file_lie_over_the_packaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "level: 0.01\nmetrics:\n  acc/*: {kind: quality, better: higher, absolute: 0.05}\n"
        "overrides:\n  - {models: nano-opt, targets: '2:4', metrics: {perplexity: {relative: 0.5}}}\n"
    )
    found = read_tolerances(file)
    assert found.level == 0.01
    loose, tight = (found.limit("perplexity", "nano-opt", "sparsegpt", target) for target in ("2:4", "50%"))
    assert loose is not None and loose.relative == 0.5 and tight is not None and tight.relative == 0.002
    accuracy = found.limit("acc/piqa", "opt-125m", "wanda", "50%")
    assert accuracy is not None and accuracy.allowed(0.7) == 0.05 and not accuracy.significant
    assert found.limit("tokens", "nano-opt", "wanda", "50%") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metrics: {perplexity: {kind: quality}}", "metrics.perplexity.better: Field required"),
        ("metrics: {perplexity: {kind: taste, better: lower}}", "metrics.perplexity.kind: Input should be"),
        ("metrics: {x: {kind: size, better: lower, relative: -1}}", "greater than or equal to 0"),
        ("limits: {}", "limits: Extra inputs are not permitted"),
        ("- a", "is not a mapping"),
    ],
)
def test_a_wrong_tolerance_file_is_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = save(tmp_path / "s", cell("nano-opt", "dense", "0%"))
    (tmp_path / "t.yaml").write_text(text)
    assert main(("compare", str(store), str(store), "--tolerances", str(tmp_path / "t.yaml"))) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


HOSTILE = "<script>alert(1)</script>|**x** [y](http://z) @team"


def test_the_command_its_formats_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save(tmp_path / "base", cell("nano-opt", HOSTILE, "50%") + cell("nano-opt", "wanda", "50%"))
    words = ("compare", str(base))
    assert main((*words, str(base))) == 0
    assert "No regression: " in capsys.readouterr().out
    worse = cell("nano-opt", HOSTILE, "50%")
    worse[1] = worse[1].model_copy(update={"metrics": (Metric(name="perplexity", unit="1", value=99.0),)})
    failed = record(method="wanda", status="failed", reason=HOSTILE, metrics=(), seed=0)
    new = save(tmp_path / "new", [*worse, failed])
    assert main((*words, str(new))) == 1
    assert "Regression: " in capsys.readouterr().out
    assert main((*words, str(new), "--format", "markdown", "--all")) == 1
    shown = capsys.readouterr().out
    assert "<script" not in shown and "&lt;script&gt;" in shown and "http://z" not in shown
    table = [line for line in shown.splitlines() if line.startswith("|") and "script" in line]
    assert table and all("**x**" not in line and "\\|" in line for line in table)
    assert main((*words, str(new), "--format", "json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["regressed"] and {entry["verdict"] for entry in told["figures"]} >= {"regressed", "unchanged"}
    assert told == json.loads(json.dumps(as_json(compared(base, new))))
    assert "@team" not in markdown_summary(compared(base, new))
    assert main((*words, str(tmp_path / "none"))) == 2
    assert main((*words, str(tmp_path))) == 2
    refused = record(status="refused", reason="no", metrics=())
    empty = save(tmp_path / "empty", [refused])
    assert main(("compare", str(empty), str(new))) == 2
    assert "compares with" in capsys.readouterr().err
