"""Groups that were measured on tasks or timed, and have no perplexity."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from sample_records import record

from bench.results.records import Metric, Record
from reports.comparison import compare
from reports.results_table import results_table
from reports.tables import other_table, quality_table, title_of
from reports.terminal import terminal_table

_PROTOCOL = "zeroshot/hellaswag,piqa@limit=200"


def _records(method: str, accuracy: float) -> list[Record]:
    target = "0%" if method == "dense" else "50%"
    shared: dict[str, Any] = {
        "cell": f"cell:{method}",
        "model": "nano-opt",
        "method": method,
        "target": target,
        "seed": None,
    }
    scores = (
        Metric(name="acc/piqa", unit="1", value=accuracy),
        Metric(name="acc_stderr/piqa", unit="1", value=0.03),
        Metric(name="acc_norm/hellaswag", unit="1", value=accuracy / 2),
    )
    speeds = (
        Metric(name="decode_tokens_per_second", unit="token/s", value=123.4),
        Metric(name="time_to_first_token", unit="s", value=0.02),
    )
    return [
        record(
            **shared,
            subject=f"p:{method}",
            phase="prune",
            metrics=(Metric(name="bytes", unit="byte", value=9),),
        ),
        record(**shared, subject=f"z:{method}", phase="zeroshot", protocol=_PROTOCOL, metrics=scores),
        record(**shared, subject=f"d:{method}", phase="decode", protocol="decode/128+64", metrics=speeds),
    ]


def test_accuracies_and_speeds_are_columns_of_their_own_groups() -> None:
    comparison = compare([*_records("dense", 0.75), *_records("magnitude", 0.5)])
    by_protocol = {group.protocol: group for group in comparison.groups}
    assert set(by_protocol) == {_PROTOCOL, "decode/128+64"}
    table = quality_table(by_protocol[_PROTOCOL])
    assert table.columns == ("Method", "Target", "piqa", "hellaswag, acc_norm", "Calibration", "Seeds")
    assert [row[2:4] for row in table.rows] == [("75.00 %", "37.50 %"), ("50.00 %", "25.00 %")]
    assert {row[3] for row in other_table(by_protocol[_PROTOCOL]).rows} == {"Acc stderr/piqa"}
    table = quality_table(by_protocol["decode/128+64"])
    assert table.columns[2:4] == ("Decode, token/s", "First token")
    assert table.rows[0][2:4] == ("123.40", "20 ms")


def test_means_of_suites_are_shares_under_their_names() -> None:
    means = (
        Metric(name="acc_avg/slicegpt", unit="1", value=0.5),
        Metric(name="acc_avg_stderr/slicegpt", unit="1", value=0.01),
        Metric(name="acc_avg_partial/sparsegpt", unit="1", value=0.25),
    )
    records = [
        entry.model_copy(update={"metrics": (*entry.metrics, *means)}) if entry.phase == "zeroshot" else entry
        for entry in _records("magnitude", 0.75)
    ]
    groups = compare(records).groups
    scored = next(group for group in groups if group.protocol == _PROTOCOL)
    table = quality_table(scored)
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    assert (
        shown["Mean of suite:slicegpt"] == "50.00 %" and shown["Partial mean of suite:sparsegpt"] == "25.00 %"
    )
    assert ("Acc avg stderr/slicegpt", "1.00 %") in {row[3:] for row in other_table(scored).rows}
    everything = results_table(groups)
    assert everything.columns[-2:] == ("Mean of suite:slicegpt", "Partial mean of suite:sparsegpt")
    assert everything.rows[0][-2:] == ("50.00 %", "25.00 %") or everything.rows[1][-2:] == (
        "50.00 %",
        "25.00 %",
    )
    # Tasks that no suite names have no mean.
    assert not any(
        "ccuracy" in column for column in results_table(compare(_records("magnitude", 0.75)).groups).columns
    )


def test_speeds_of_different_environments_never_share_a_table() -> None:
    here = _records("dense", 0.75)
    there = [
        entry.model_copy(update={"environment": "e1e1e1e1e1", "subject": f"{entry.subject}!"})
        for entry in _records("magnitude", 0.5)
    ]
    groups = compare([*here, *there]).groups
    # Accuracies do not depend on the machine; speeds do.
    assert [[row.method for row in group.rows] for group in groups] == [
        ["dense", "magnitude"],
        ["dense"],
        ["magnitude"],
    ]
    assert [title_of(group) for group in groups[1:]] == [
        "nano-opt · decode/128+64 · environment e0 (2 different environments)",
        "nano-opt · decode/128+64 · environment e1e1e1e1 (2 different environments)",
    ]
    assert any("may have been busy" in note for note in quality_table(groups[1]).notes)


def test_tasks_on_other_data_never_share_a_table() -> None:
    scored = [
        entry.model_copy(update={"provenance": {"tasks": {"piqa": {"sha256": digest}}}})
        for method, digest in (("dense", "aa"), ("magnitude", "bb"))
        for entry in _records(method, 0.5)
        if entry.phase == "zeroshot"
    ]
    groups = compare(scored).groups
    assert [[row.method for row in group.rows] for group in groups] == [["dense"], ["magnitude"]]
    assert len({title_of(group) for group in groups}) == 2


def test_the_terminal_shows_them_without_empty_columns() -> None:
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(terminal_table([*_records("dense", 0.75), *_records("magnitude", 0.5)]))
    text = captured.get()
    assert "Perplexity" not in text
    assert _PROTOCOL in text and "decode/128+64" in text
    assert "75.0 %" in text and "123.4" in text
