"""`bench wandb-sync` and `bench run --wandb` against a W&B server on this machine: there, away, slow, and unwilling."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_records import cell
from stub_wandb import KEY, WandbStub
from wandb_files import read_runs

from bench.mirror import mirror as mirroring
from bench.mirror import server
from bench.mirror.ledger import Ledger
from bench.results.segments import Store

RUN = ("run", "--models", "nano-opt", "--methods", "magnitude", "--quiet")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbStub]:
    """The server, and a user who is logged in to it and waits for nothing."""
    with WandbStub() as found:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for name in (
            "WANDB_PROJECT",
            "WANDB_ENTITY",
            "WANDB_TAGS",
            "WANDB_MODE",
            "NETRC",
            "WANDB_CONFIG_DIR",
        ):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER"):
            monkeypatch.setenv(f"WANDB__{part}_RETRY_MAX", "1")  # 0 would be wandb's own, 20 and more
            monkeypatch.setenv(f"WANDB__{part}_RETRY_WAIT_MIN_SECONDS", "0.01")
            monkeypatch.setenv(f"WANDB__{part}_RETRY_WAIT_MAX_SECONDS", "0.02")
        yield found


def test_a_store_is_uploaded_once_through_every_outage(
    bench: Any, stub: WandbStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("grid")
    with Store(out, create=True) as store:
        for entry in (*cell("nano-opt", "dense", "0%"), *cell("nano-opt", "sparsegpt", "50%")):
            store.append(entry)
    sync = ("wandb-sync", "--out", "grid")

    # Written offline with nobody to ask: the address is of a port where nothing listens.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = bench(*sync)
    assert (done.code, done.out) == (1, "")
    assert done.error == (
        "W&B at 127.0.0.1:9 cannot be reached; the runs are kept offline, bench wandb-sync uploads them later"
    )
    runs = read_runs(out)
    assert len(runs) == 3
    monkeypatch.setenv("WANDB_BASE_URL", stub.url)

    # Each of these is one line, at once, and starts nothing.
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    assert "refuses the API key (HTTP 401): set WANDB_API_KEY or run wandb login" in bench(*sync).error
    monkeypatch.delenv("WANDB_API_KEY")
    assert bench(*sync).error.startswith("no W&B API key: set WANDB_API_KEY or run wandb login")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    stub.failing = 500
    assert "answers with HTTP 500" in bench(*sync).error
    stub.clear()
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    stub.hanging, began = 30.0, time.monotonic()
    assert "did not answer within 0 s" in bench(*sync).error
    assert time.monotonic() - began < 10
    stub.clear()
    assert stub.runs == {}

    # Files that do not get through: W&B's own tool calls these runs synced.
    stub.failing_uploads = 500
    done = bench(*sync)
    assert done.code == 1
    assert done.error.startswith("3 W&B runs are not, or not wholly, uploaded (")
    assert "giving up after 2 attempt" in done.error
    assert not any(entry.uploaded for entry in Ledger.open(out).runs.values())
    stub.clear()

    # A server that accepts and never answers.
    monkeypatch.setattr(mirroring, "_START", 3.0)
    monkeypatch.setattr(mirroring, "_UPLOAD", 0.0)
    stub.hanging_uploads = 60.0
    assert "(not done within 3 s)" in bench(*sync).error
    stub.released.set()
    monkeypatch.undo()


def test_an_upload_is_whole_and_never_repeated(bench: Any, stub: WandbStub, tmp_path: Path) -> None:
    out = Path("grid")
    with Store(out, create=True) as store:
        for entry in (*cell("nano-opt", "dense", "0%"), *cell("nano-opt", "sparsegpt", "50%")):
            store.append(entry)
        netrc = tmp_path / "home" / ".netrc"
        netrc.parent.mkdir()
        netrc.write_text(f"machine 127.0.0.1 login user password {KEY}\n")
        netrc.chmod(0o600)
        done = bench("wandb-sync", "--out", "grid", "--wandb-tags", "nightly", "--json")
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out) == {
            "event": "wandb",
            "written": 3,
            "unchanged": 0,
            "uploaded": 3,
            "already": 0,
            "failed": 0,
        }
        assert stub.unknown == []
        runs = read_runs(out)
        assert set(stub.runs) == set(runs)
        for run_id, run in runs.items():
            there = stub.runs[run_id]
            assert there.fields["project"] == "prune-bench"
            assert there.fields["entity"] == "somebody"
            assert there.fields["groupName"] == run.group
            assert there.fields["displayName"] == run.name
            assert there.fields["tags"] == list(run.tags)
            assert there.exit_code == 0
            assert [there.history[index] for index in sorted(there.history)] == run.history
            config = {name: entry["value"] for name, entry in json.loads(there.fields["config"]).items()}
            # wandb-core leaves empty mappings out.
            expected = {name: value for name, value in run.config.items() if value != {}}
            assert {**config, "_wandb": None} == {**expected, "_wandb": None}
            for name in run.artifacts:
                (artifact,) = (
                    found for found in stub.artifacts if found.input["artifactCollectionName"] == name
                )
                assert artifact.committed
                for path, local in run.artifacts[name].items():
                    assert artifact.files[path] == local.read_bytes()
        report = next(run for run in runs.values() if run.job_type == "report")
        tables = {name for name in stub.runs[report.id].files if name.startswith("media/table/")}
        assert len(tables) == 1

        stub.clear()
        done = bench("wandb-sync", "--out", "grid")
        assert (done.code, done.out) == (
            0,
            "wandb: 0 runs written, 3 unchanged; 0 uploaded, 3 there already\n",
        )
        assert stub.requests == ["viewer"]

        for entry in cell("nano-opt", "magnitude", "50%"):
            store.append(entry)
    done = bench("wandb-sync", "--out", "grid")
    assert done.out == "wandb: 2 runs written, 2 unchanged; 2 uploaded, 2 there already\n"
    assert set(stub.runs) == set(read_runs(out))
    assert stub.runs[report.id].upserts > 0
    assert len(stub.runs) == 4
    kept = [path for path in out.rglob("*") if path.is_file()]
    assert all(KEY.encode() not in path.read_bytes() for path in kept)


def test_a_run_writes_then_uploads_and_no_outage_touches_it(
    bench: Any, runner: Any, stub: WandbStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = bench(*RUN, "--wandb", "online", "--wandb-project", "mine", "--wandb-tags", "a,b")
    assert (done.code, done.err) == (0, "")
    runs = read_runs(Path("bench-out"))
    assert {run.name for run in runs.values()} == {
        "nano-opt dense 0%",
        "nano-opt magnitude 50%",
        "bench-out: report",
    }
    assert {(run.project, run.tags[:2]) for run in runs.values()} == {("mine", ("a", "b"))}
    assert set(stub.runs) == set(runs)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = bench(*RUN, "--wandb", "online", "--out", "again")
    assert done.code == 0
    assert done.out.strip().endswith("index.html")
    assert done.err == (
        "warning: W&B at 127.0.0.1:9 cannot be reached; the runs are kept offline, bench wandb-sync uploads them later\n"
    )
    assert len(read_runs(Path("again"))) == 3


def test_without_asking_there_is_no_mirror(bench: Any, runner: Any, stub: WandbStub) -> None:
    assert bench(*RUN).code == 0
    runner.interrupted = True
    assert bench(*RUN, "--wandb", "online").code == 130
    assert not Path("bench-out/wandb").exists()
    assert stub.requests == []


def test_wrong_words_are_one_line(bench: Any) -> None:
    assert bench(*RUN, "--wandb", "onlin").error == (
        "--wandb 'onlin' is unknown; use off, offline, online; did you mean 'online'?"
    )
    assert "--wandb-project is 'a/b'; give one name" in bench(*RUN, "--wandb-project", "a/b").error
    assert "--wandb-tags has 'xxx" in bench(*RUN, "--wandb-tags", "x" * 65).error
    assert "--wandb-entity is 'a b'" in bench("wandb-sync", "--wandb-entity", "a b").error
    done = bench("wandb-sync", "--out", "nowhere")
    assert (done.code, done.error) == (2, "--out 'nowhere' is not there; give the folder of a run")
    Path("c.yaml").write_text("wandb: off\nwandb-project: 'x:y'\n")
    assert "--wandb-project is 'x:y'" in bench(*RUN, "--config", "c.yaml").error
