"""The written report: hostile text stays text, nothing is loaded, policy and scripts agree."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import html
import io
import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sample_records import cell, grid, record

from bench.results.records import Metric, Record
from bench.results.segments import Store
from methods.errors import MachineError, StoreError
from reports.pages import write_report
from reports.terminal import terminal_table
from reports.tidy_csv import csv_lines
from reports.wording import clean, escape_markdown, figure, percent_change

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "line\nbreak\r\n| cell | # heading",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\u202egnp.exe\u2066",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png) <http://evil.example>",
    "http://evil.example/ www.evil.example **bold** `code`",
    "\x1b[31mred\x1b]0;title\x07",
    "{{ 7*7 }} {% raw %} ${x}",
    "x" * 10_000,
]


class Reader(HTMLParser):
    """Collects tags with their attributes, the text people see, and the contents of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.lasttag == "script" and self.scripts:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.lasttag != "style":
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.lasttag = ""


def written(out: Path, records: list[Record]) -> dict[str, str]:
    with Store(out, create=True) as store:
        for entry in records:
            store.append(entry)
    return {path.name: path.read_text(encoding="utf-8") for path in write_report(out).paths}


def hostile_records() -> list[Record]:
    found: list[Record] = []
    for text in HOSTILE:
        found += cell(text, "dense", "0%")
        found += cell(
            text,
            text,
            text,
            warnings=(text,),
            parameters={text: text},
            provenance={text: text, "label": text},
        )
        found.append(
            record(status="failed", reason=text, model=text, method=text, target=text, subject=f"f{text}")
        )
    found.append(
        record(
            phase="perplexity",
            protocol="p",
            subject="m",
            metrics=[Metric(name=t, unit=t, value=1.5) for t in HOSTILE],
        )
    )
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return written(tmp_path_factory.mktemp("plain"), grid(seeds=(0, 1)))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return written(tmp_path_factory.mktemp("hostile"), hostile_records())


def test_the_page_says_what_was_measured(plain: dict[str, str]) -> None:
    text = " ".join("".join(Reader(plain["index.html"]).text).split())
    for words in (
        "At 50%, sparsegpt keeps most quality: perplexity 23.0",
        "2:4 needs widths divisible by 4, found 162",
        "bench run --models nano-opt",
        "abc1234",
        "kjv:64x512",
        "2 cells were refused or failed",
        "Bytes are the size with zeros stored dense.",
        "text never drawn for calibration",
    ):
        assert words in text


@pytest.mark.parametrize("which", ["plain", "hostile"])
def test_nothing_is_loaded_and_only_hashed_scripts_run(which: str, request: pytest.FixtureRequest) -> None:
    page = Reader(request.getfixturevalue(which)["index.html"])
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "video", "audio")
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert tag not in ("a", "link") or (attributes["href"] or "").startswith(("#", "data:,"))
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    running = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(running) == 2
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "ast: true" in running[1]


def test_charts_are_valid_specifications_without_addresses(plain: dict[str, str]) -> None:
    import altair as alt

    page = Reader(plain["index.html"])
    charts = [
        json.loads(text) for attributes, text in page.scripts if attributes.get("type") == "application/json"
    ]
    assert len(charts) == 6
    for chart in charts:
        alt.Chart.from_dict(chart)
        addresses = re.findall(r"https?://[^\"]+", json.dumps(chart))
        assert all(address.startswith("https://vega.github.io/schema/") for address in addresses)
    label = charts[0]["layer"][-1]
    assert label["mark"]["type"] == "text" and label["mark"]["align"] == "right"
    assert label["encoding"]["x"] == {"value": "width"}
    points = next(rows for rows in charts[0]["datasets"].values() if "method" in rows[0])
    assert {(point["method"], point["target"]) for point in points} == {
        (method, target) for method in ("sparsegpt", "magnitude") for target in ("50%", "2:4")
    }
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["data-chart"] for attributes, _ in page.scripts if "data-chart" in attributes} <= ids


def test_tables_are_accessible(plain: dict[str, str]) -> None:
    page = Reader(plain["index.html"])
    counts = {
        name: sum(tag == name for tag, _ in page.tags) for name in ("table", "caption", "thead", "h1", "main")
    }
    assert counts["table"] == counts["caption"] == counts["thead"] > 6
    assert counts["h1"] == counts["main"] == 1
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(attributes["href"] or "")[1:] for tag, attributes in page.tags if tag == "a"}
    assert targets <= set(ids)


def test_hostile_text_is_shown_as_text(hostile: dict[str, str]) -> None:
    page = Reader(hostile["index.html"])
    shown = "".join(page.text)
    for text in HOSTILE:
        assert clean(text) in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", hostile["index.html"])
    assert "(10,000 characters)" in shown
    assert "49" not in clean(HOSTILE[-2])


def test_hostile_text_stays_inert_in_markdown(hostile: dict[str, str]) -> None:
    markdown = hostile["report.md"]
    assert not re.search(r"<[a-zA-Z/!]", markdown)
    assert "://" not in markdown
    assert "](" not in re.sub(r"\\.", "", markdown)
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert all(re.match(r"(#{1,2} |- |\||$|[A-Z0-9])", line) for line in markdown.splitlines())


def test_hostile_text_runs_no_formula(hostile: dict[str, str]) -> None:
    rows = list(csv.reader(io.StringIO(hostile["results.csv"])))
    assert ",".join(rows[0]) == "cell,status,model,method,target,seed,protocol,metric,unit,value,recovery"
    assert all(len(row) == 11 for row in rows)
    assert not any(value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for row in rows for value in row)
    assert {row[2] for row in rows} >= {"'=cmd|' /C calc'!A0", "'-2+3", "x" * 10_000, HOSTILE[0]}
    # A row is a line, whatever the names hold.
    assert hostile["results.csv"].count("\n") == len(rows)


def test_hostile_text_reaches_no_terminal_as_control(hostile: dict[str, str]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    console.print(terminal_table(hostile_records()))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b]0" not in output
    assert "\x07" not in output
    assert "\u202e" not in output
    assert "[31m" in output


def test_csv_is_tidy() -> None:
    lines = list(csv_lines([*cell("nano-opt", "sparsegpt", "50%"), *grid()[-2:]]))
    assert lines[0] == "cell,status,model,method,target,seed,protocol,metric,unit,value,recovery"
    identity = "cell:nano-opt/sparsegpt/50%/0/nano/kjv,done,nano-opt,sparsegpt,50%,0"
    assert f"{identity},,sparsity,1,0.5," in lines
    assert f"{identity},nano/kjv,kl_to_dense,nat/token,0.10000000000000009," in lines
    assert [line for line in lines if ",done," not in line][1:] == [
        "refused,refused,opt-odd,sparsegpt,2:4,0,,,,,",
        "failed,failed,opt-125m,dense,0%,,,,,,",
    ]
    odd = record(
        metrics=[Metric(name=str(value), unit="1", value=value) for value in (None, -1.5, float("nan"))]
    )
    assert [line.split(",")[-2] for line in csv_lines([odd])] == ["value", "", "-1.5", "nan"]


def test_the_terminal_table_fits_and_tells() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(grid()))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "sparsegpt  50%          23.00  +15.0 %" in output
    assert "refused  opt-odd sparsegpt 2:4 seed 0: 2:4 needs widths" in output
    assert max(map(len, output.splitlines())) <= 80
    base = Metric(name="base_memory", unit="byte", value=150_000_000)
    based = [
        entry.model_copy(update={"metrics": (*entry.metrics, base)})
        for entry in cell("smollm2-135m", "sparsegpt", "50%")
    ]
    with console.capture() as captured:
        console.print(terminal_table(based))
    assert "250 MB" in captured.get() and "400 MB" not in captured.get()
    assert "single measurements on a machine" in captured.get()
    assert max(map(len, captured.get().splitlines())) <= 80
    console.print(terminal_table([]))
    assert "No results yet." in console.file.getvalue()  # type: ignore[attr-defined]


def test_labels_stand_with_the_model(tmp_path: Path) -> None:
    records = cell("smollm2-135m", "dense", "0%", provenance={"label": "Q4_1, dequantised"})
    texts = written(tmp_path, records)
    assert "smollm2-135m (Q4_1, dequantised) · nano/kjv" in texts["index.html"]
    assert "smollm2-135m (Q4_1, dequantised) · nano/kjv" in texts["report.md"]


def test_empty_and_damaged_stores(tmp_path: Path) -> None:
    texts = written(tmp_path, [])
    assert "No perplexity has been measured yet." in texts["index.html"]
    assert "script-src 'none'" in html.unescape(texts["index.html"])
    assert texts["results.csv"].splitlines() == [
        "cell,status,model,method,target,seed,protocol,metric,unit,value,recovery"
    ]
    (tmp_path / "records" / "gone.jsonl").write_text('<script>{"sha')
    texts = {path.name: path.read_text() for path in write_report(tmp_path).paths}
    assert "13 bytes at offset 0 are no record" in texts["index.html"]
    assert "13 bytes at offset 0 are no record" in texts["report.md"]


def test_where_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="holds no results"):
        write_report(tmp_path / "none")
    written(tmp_path / "out", [])
    report = write_report(tmp_path / "out", tmp_path / "else" / "where")
    assert report.paths == tuple(
        tmp_path / "else" / "where" / name for name in ("index.html", "report.md", "results.csv")
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must name a folder"):
        write_report(tmp_path / "out", tmp_path / "file")
    before = report.page.read_text()

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(MachineError, match="No space left on device") as caught:
        write_report(tmp_path / "out", tmp_path / "else" / "where")
    assert "\n" not in str(caught.value)
    assert report.page.read_text() == before


def test_a_thousand_records_take_seconds(tmp_path: Path) -> None:
    records: list[Record] = []
    for number in range(10):
        records += cell(f"model-{number}", "dense", "0%")
        for method in ("magnitude", "sparsegpt", "wanda", "mixed", "slicegpt"):
            for target in ("50%", "55%", "60%", "65%", "70%", "75%", "80%", "1:4", "2:4", "4:8"):
                records += cell(f"model-{number}", method, target)
    assert len(records) >= 1000
    with Store(tmp_path, create=True) as store:
        for entry in records:
            store.append(entry)
    # Processor time, since the machine may be busy; loading the drawing libraries is included.
    start = time.process_time()
    report = write_report(tmp_path)
    assert time.process_time() - start < 20
    assert report.page.stat().st_size < 20_000_000


@pytest.mark.parametrize(
    ("value", "unit", "name", "text"),
    [
        (None, "s", "", "–"),
        (float("nan"), "1", "", "not a number"),
        (float("inf"), "byte", "", "infinite"),
        (0.5, "1", "sparsity", "50.00 %"),
        (1_234_567, "1", "", "1,234,567"),
        (17.4567, "1", "perplexity", "17.46"),
        (3404.19, "1", "perplexity", "3,404.2"),
        (0.000012, "1", "", "1.200e-05"),
        (268_000_000, "byte", "", "268 MB"),
        (999, "byte", "", "999 B"),
        (0.25, "s", "", "250 ms"),
        (125.0, "s", "", "2 min 5 s"),
        (7265.0, "s", "", "2 h 1 min"),
        (1.2e12, "FLOP/token", "", "1.2 TFLOP/token"),
        (0.1234, "nat/token", "", "0.123 nat/token"),
        (5, "<b>", "", "5 <b>"),
    ],
)
def test_figures_read_well(value: float | None, unit: str, name: str, text: str) -> None:
    assert figure(value, unit, name) == text


def test_changes_read_well() -> None:
    assert [percent_change(value) for value in (None, 1.0, 1.0512, 0.99, 1.5, 66.0, float("inf"))] == [
        "–", "+0.00 %", "+5.12 %", "-1.00 %", "+50.0 %", "+6,500 %", "not finite",
    ]  # fmt: skip


def test_markdown_leaves_plain_names_alone() -> None:
    assert (
        escape_markdown("sparsegpt@owl nano-opt q_proj 2:4 50% Q4_1")
        == "sparsegpt@owl nano-opt q_proj 2:4 50% Q4_1"
    )
    assert escape_markdown("_x_ 1. - #") == "\\_x\\_ 1. - \\#"


def test_shares_are_rounded_once_never_cut() -> None:
    assert figure(0.42595, "1", "top1_flip_rate") == "42.59 %"  # 42.595 is a hair below in binary
    assert figure(0.42595, "1", "top1_flip_rate", share_digits=1) == "42.6 %"
