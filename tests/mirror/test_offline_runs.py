"""Offline runs, read back from W&B's own files, against the store: every record, figure, curve and table row."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sample_records import cell, later, record
from stub_wandb import KEY, WandbStub
from wandb_files import OfflineRun, read_runs

from bench.mirror import runs as runs_module
from bench.mirror.ledger import Ledger, store_id
from bench.mirror.mirror import Asked, Written, mirror
from bench.mirror.runs import Destination
from bench.mirror.runs import mirrored as mirrored_runs
from bench.mirror.writer import write
from bench.results.current import current
from bench.results.records import Metric, Record, encode
from bench.results.rows import COLUMNS, tidy
from bench.results.segments import Store
from methods.errors import OutsideError, StoreError, UserError

STUDIES = Path(__file__).resolve().parents[2] / "studies"
HOSTILE = "a/b.c*</script>\u2028\x00\N{SNOWMAN}'\"\\"


def hostile() -> list[Record]:
    """Records whose every word and number is one that breaks something somewhere."""
    prune, evaluation = cell("nano-llama", "sparsegpt", "50%")
    words: dict[str, Any] = {
        "model": HOSTILE,
        "method": HOSTILE * 40,
        "target": "",
        "parameters": {HOSTILE: math.nan, "deep": {"_wandb": [math.inf, None, True, HOSTILE]}, "": ""},
        "warnings": (HOSTILE, ""),
        "cell": HOSTILE,
    }
    figures = (
        Metric(name="nan", unit="1", value=math.nan),
        Metric(name="up", unit="1", value=math.inf),
        Metric(name="down", unit="1", value=-math.inf),
        Metric(name="none", unit="1", value=None),
        Metric(name="large", unit="byte", value=2**62 + 1),
        Metric(name="tiny", unit="1", value=5e-324),
        Metric(name=HOSTILE, unit=HOSTILE, value=0.1),
    )
    bent = replace(prune.matrices[0], name=HOSTILE, heldout_error=math.nan)
    return [
        prune.model_copy(update={**words, "metrics": figures, "matrices": (bent, *prune.matrices[1:])}),
        evaluation.model_copy(update=words),
        evaluation.model_copy(
            update={**words, "protocol": HOSTILE, "metrics": figures, "finished": later(3)}
        ),
    ]


def bad() -> list[Record]:
    """A cell that is refused, one that failed, and one that failed first and was done later."""
    done = cell("nano-opt", "magnitude", "50%")
    failed = {"status": "failed", "reason": "no room", "metrics": (), "finished": later(0.5)}
    lost = {
        "cell": "refused",
        "status": "refused",
        "reason": "2:4 needs widths divisible by 4",
        "metrics": (),
    }
    return [
        record(**lost, subject="r"),
        record(cell="failed", subject="f", status="failed", reason=f"{HOSTILE}; gone", metrics=()),
        done[0].model_copy(update=failed),
        *done,
    ]


@dataclass(frozen=True)
class Mirrored:
    out: Path
    home: Path
    environ: dict[str, str]
    history: list[Record]
    runs: dict[str, OfflineRun]
    asked: list[str]

    def of(self, cell: str) -> OfflineRun:
        return next(run for run in self.runs.values() if run.config.get("cell") == cell)

    @property
    def whole(self) -> OfflineRun:
        return next(run for run in self.runs.values() if run.job_type == "report")


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrored]:
    """Real kernel and decode records of two studies, and made-up ones, mirrored once beside a server that listens."""
    home = tmp_path_factory.mktemp("home")
    out = tmp_path_factory.mktemp("runs") / "grid 1"
    with Store(out, create=True, writer="first") as store:
        for study in ("smollm2-decode", "kernels"):
            for entry in Store(STUDIES / study).history():
                store.append(entry)
        for entry in (*hostile(), *bad()):
            store.append(entry)
    with WandbStub() as stub:
        environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "WANDB_API_KEY": KEY,
            "WANDB_BASE_URL": stub.url,
            "WANDB_MODE": "online",
            "WANDB_ENTITY": "team",
            "WANDB_TAGS": "nightly, main",
        }
        assert mirror(out, Asked(project="pruning"), environ=environ) == Written(11, 0)
        yield Mirrored(out, home, environ, Store(out).history(), read_runs(out), stub.requests)


def spelled(value: Any) -> Any:
    """A value by which NaN equals NaN and 1 equals 1.0."""
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def test_every_record_lies_in_exactly_one_run_as_it_is_in_the_store(mirrored: Mirrored) -> None:
    found = [row for run in mirrored.runs.values() if run.job_type == "cell" for row in run.table("records")]
    found += mirrored.whole.table("records")
    assert Counter(row["record"] for row in found) == Counter(
        encode(entry).decode() for entry in mirrored.history
    )
    newest = {encode(entry).decode() for entry in Store(mirrored.out).records()}
    assert {row["record"] for row in found if not row["superseded"]} == newest
    for row in found:
        stored = next(entry for entry in mirrored.history if encode(entry).decode() == row["record"])
        for name in ("phase", "protocol", "status", "reason", "started", "finished"):
            assert row[name] == getattr(stored, name)


def test_there_is_one_run_a_cell_and_one_for_all_in_one_group(mirrored: Mirrored) -> None:
    cells = {entry.cell for entry in mirrored.history if entry.phase != "kernels"}
    assert {run.config.get("cell") for run in mirrored.runs.values()} == {*cells, None}
    assert len(mirrored.runs) == len(cells) + 1
    store = Ledger.open(mirrored.out).store
    for run in mirrored.runs.values():
        assert (run.project, run.entity, run.group) == ("pruning", "team", f"grid 1-{store}")
        assert run.tags[:2] == ("nightly", "main")
        assert len(run.name) <= 128
        assert set(run.id) <= set("0123456789abcdef")


def test_every_figure_is_in_the_history_as_it_was_measured(mirrored: Mirrored) -> None:
    for stored in Store(mirrored.out).records():
        if stored.phase == "kernels":
            continue
        run = mirrored.of(stored.cell)
        alike = [e for e in Store(mirrored.out).records() if (e.cell, e.phase) == (stored.cell, stored.phase)]
        name = stored.phase if len(alike) == 1 else f"{stored.phase}@{stored.protocol}"
        for metric in stored.metrics:
            value = run.figures[f"{name}/{metric.name}"]
            assert spelled(value) == spelled(metric.value)
            assert isinstance(value, float) <= isinstance(metric.value, float)
        for part, seconds in stored.seconds.items():
            assert run.figures[f"{name}/seconds/{part}"] == seconds
        assert run.summary[f"{name}/status"] == stored.status
        assert run.config["phases"][name]["environment"] == stored.environment
    bent = mirrored.of(HOSTILE)
    assert math.isnan(bent.figures["perplexity/nan"])
    assert math.isnan(bent.summary["prune/nan"])
    assert bent.summary["prune/large"] == 2**62 + 1
    assert bent.config["method"] == HOSTILE * 40


def test_curves_follow_the_blocks_and_the_matrices_are_whole(mirrored: Mirrored) -> None:
    pruned = [entry for entry in Store(mirrored.out).records() if entry.matrices]
    assert {entry.model for entry in pruned} >= {"smollm2-135m", "nano-opt", HOSTILE}
    for stored in pruned:
        run = mirrored.of(stored.cell)
        assert run.step_metrics == {"block/*": "block"}
        rows = [{name: spelled(value) for name, value in row.items()} for row in run.table("matrices")]
        assert rows == [
            {name: spelled(value) for name, value in asdict(matrix).items()} for matrix in stored.matrices
        ]
        assert [row["block"] for row in run.curves] == sorted({matrix.block for matrix in stored.matrices})
        for row in run.curves:
            inside = [matrix for matrix in stored.matrices if matrix.block == row["block"]]
            size = sum(matrix.rows * matrix.columns for matrix in inside)
            assert row["block/sparsity"] == sum(matrix.removed for matrix in inside) / size
            assert row["block/seconds"] == pytest.approx(sum(matrix.seconds for matrix in inside))
            for matrix in inside:
                if matrix.heldout_error is not None:
                    value = row[f"block/heldout_error/{matrix.name}"]
                    assert spelled(value) == spelled(matrix.heldout_error)


def test_kernel_decode_and_tidy_rows_are_tables(mirrored: Mirrored) -> None:
    kernels = [entry.provenance["row"] for entry in mirrored.history if entry.phase == "kernels"]
    assert mirrored.whole.table("kernels") == kernels
    assert len(kernels) > 20
    tidied = [
        {name: spelled(value) for name, value in row.items()} for row in tidy(current(mirrored.history))
    ]
    results = mirrored.whole.table("results")
    assert [{name: spelled(value) for name, value in row.items()} for row in results] == tidied
    assert tuple(results[0]) == COLUMNS
    decoded = [entry for entry in mirrored.history if entry.phase == "decode"]
    rows = mirrored.whole.table("decode")
    assert len(rows) == sum(len(entry.metrics) for entry in decoded)
    for entry in decoded:
        own = mirrored.of(entry.cell).table("decode")
        place = (entry.method, entry.target, entry.dtype)
        assert [row for row in rows if (row["method"], row["target"], row["dtype"]) == place] == own
        assert [(row["metric"], row["value"]) for row in own] == [(m.name, m.value) for m in entry.metrics]
        spread: Any = entry.provenance["spread"]
        for row in own:
            if row["metric"] in spread:
                kept = {name: row[name] for name in ("min", "q25", "median", "q75", "max")}
                assert kept == spread[row["metric"]]


def test_a_long_table_goes_on_in_further_ones(
    mirrored: Mirrored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own limits, lowered with ours, are never met: no row is lost."""
    import wandb

    monkeypatch.setattr(wandb.Table, "MAX_ROWS", 9)
    monkeypatch.setattr(runs_module, "TABLE_ROWS", 9)
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    out = tmp_path / "grid"
    entries = [entry for entry in mirrored.history if entry.phase == "kernels"]
    with Store(out, create=True, writer="one") as store:
        for entry in entries:
            store.append(entry)
    report = tmp_path / "index.html"
    report.touch()
    assert write(out, Destination("p"), (report,)) == 1
    (whole,) = read_runs(out).values()
    results = list(tidy(current(entries)))
    for name, rows in (("kernels", len(entries)), ("records", len(entries)), ("results", len(results))):
        names = [name, *(f"{name}-{part}" for part in range(2, -(-rows // 9) + 1))]
        parts = [whole.table(part) for part in names]
        assert len(parts) > 2 and sum(map(len, parts)) == rows
        assert all(len(part) == 9 for part in parts[:-1])
        assert not any(f"{name}-{len(names) + 1}" in row for row in whole.history)
        if name == "results":
            found = [{key: spelled(value) for key, value in row.items()} for part in parts for row in part]
            assert found == [{key: spelled(value) for key, value in row.items()} for row in results]


def test_refusals_and_failures_say_so(mirrored: Mirrored) -> None:
    refused, failed, mended = (mirrored.of(name) for name in ("refused", "failed", bad()[-1].cell))
    assert (refused.tags[-1], refused.exit_code) == ("refused", 0)
    assert refused.notes == refused.summary["prune/reason"] == "2:4 needs widths divisible by 4"
    assert (failed.tags[-1], failed.exit_code) == ("failed", 1)
    assert failed.notes == f"{HOSTILE}; gone"
    assert (mended.tags[-1], mended.exit_code, mended.notes) == ("done", 0, "")
    assert [row["superseded"] for row in mended.table("records")] == [True, False, False]


def test_the_report_is_an_artifact(mirrored: Mirrored) -> None:
    (files,) = (found for name, found in mirrored.whole.artifacts.items() if name.startswith("report-"))
    assert set(files) == {"index.html", "results.html", "provenance.html", "report.md", "results.csv"}
    assert files["index.html"].read_text("utf-8").startswith("<!DOCTYPE html>")
    assert files["results.csv"].read_text("utf-8").count("\n") > 50
    assert all(path.is_relative_to(mirrored.out) for path in files.values())


def test_nothing_leaves_the_folder_and_nothing_is_captured(mirrored: Mirrored) -> None:
    assert mirrored.asked == []
    own = mirrored.home / ".cache" / "prune-bench"
    # what the report's figures are drawn with is kept in the program's own cache
    assert {
        path for path in mirrored.home.rglob("*") if path.is_file() and not path.is_relative_to(own)
    } == set()
    files = [path for path in (mirrored.out / "wandb").rglob("*") if path.is_file()]
    assert all(KEY.encode() not in path.read_bytes() for path in files)
    names = {path.name for path in files}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log", "debug.log"}
    assert {
        path.name for path in (mirrored.out / "wandb").iterdir() if not path.name.startswith("offline-run")
    } == {
        "mirror.json",
        "mirror.lock",
    }
    assert {run.host for run in mirrored.runs.values()} == {""}


def test_a_rerun_adds_nothing_and_a_resumed_grid_only_what_is_new(mirrored: Mirrored, tmp_path: Path) -> None:
    out = tmp_path / "grid 1"
    with Store(out, create=True, writer="one") as store:
        for entry in cell("nano-opt", "dense", "0%"):
            store.append(entry)
        store.append(cell("nano-opt", "sparsegpt", "50%")[0])
        environ = {"PATH": "/usr/bin:/bin", "HOME": str(mirrored.home)}
        assert mirror(out, Asked(tags=("mine",)), environ=environ) == Written(3, 0)
        first = read_runs(out)
        state = {path: path.stat().st_mtime_ns for path in (out / "wandb").rglob("*.wandb")}
        assert mirror(out, environ=environ) == Written(0, 3)
        assert {path: path.stat().st_mtime_ns for path in (out / "wandb").rglob("*.wandb")} == state
        store.append(cell("nano-opt", "sparsegpt", "50%")[1])
        for entry in cell("nano-opt", "sparsegpt", "2:4"):
            store.append(entry)
    # One new cell, one that grew, and the whole; the dense one stays as it was.
    assert mirror(out, environ=environ) == Written(3, 1)
    second = read_runs(out)
    assert len(second) == 4
    assert set(first) < set(second)
    assert all(run.tags[0] == "mine" for run in second.values())
    (grown,) = (run for run in second.values() if run.name == "nano-opt sparsegpt 50% seed 0")
    assert [row["phase"] for row in grown.table("records")] == ["prune", "perplexity"]
    assert first[grown.id].folder != grown.folder or not first[grown.id].folder.samefile(grown.folder.parent)
    # The same store elsewhere, its mirror lost: the same runs.
    moved = tmp_path / "elsewhere"
    shutil.copytree(out / "records", moved / "records")
    history = Store(out).history()
    ids = [
        {
            run.id
            for run in mirrored_runs(history, store=store_id(place), name="x", destination=Destination("p"))
        }
        for place in (out, moved)
    ]
    assert ids == [set(second), set(second)]


def test_what_stands_in_the_way_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoreError, match="holds no records yet"):
        mirror(out)
    with Store(out, create=True) as store:
        store.append(record())
    entry = {"digest": "", "folder": "offline-run-1", "place": ""}
    for damage in (
        {"store": "../../x", "name": ""},
        {"store": "0" * 8, "name": "", "runs": {"../../x": entry}},
        {"store": "0" * 8, "name": "", "runs": {"0" * 16: {**entry, "folder": "offline-run-../../x"}}},
        [],
    ):
        (out / "wandb" / "mirror.json").write_text(json.dumps(damage))
        with pytest.raises(StoreError, match=r"mirror\.json is damaged; remove it"):
            mirror(out)
    (out / "wandb" / "mirror.json").unlink()
    with (
        FileLock(out / "wandb" / "mirror.lock"),
        pytest.raises(UserError, match="mirrored by another process"),
    ):
        mirror(out)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "broken")}
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text("raise RuntimeError('no wandb today')")
    with pytest.raises(OutsideError, match="offline runs could not be written: RuntimeError: no wandb today"):
        mirror(out, environ=environ)
