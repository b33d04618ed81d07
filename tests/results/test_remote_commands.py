"""Every command that takes a store or an output folder, at a URL: on a real S3 server of this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from leaderboard_stores import store as sound_store
from sample_records import cell, record
from saved_models import saved_with_tokenizer

from bench.cli.main import main
from bench.executors.grid import Outcome
from bench.mirror.ledger import Ledger
from bench.plan.cells import Plan
from bench.results import remote
from bench.results.records import Record
from bench.results.segments import Store

Elsewhere = Callable[[str], remote.Mirror]
Told = Callable[..., str]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Run a command that should end with ``code``; what it wrote on standard output, or its one line of error."""

    def call(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        ended = main(words)
        shown = capsys.readouterr()
        assert ended == code, shown.err
        assert not code or shown.err.count("\n") == (0 if shown.out else 1), shown.err
        return shown.out or shown.err

    return call


def _as_another_machine(elsewhere: Elsewhere, url: str) -> None:
    """Whatever is run next has an empty spool."""
    os.close(elsewhere(url)._held)
    remote._mirrors.clear()


def _records(elsewhere: Elsewhere, url: str) -> Sequence[Record]:
    reader = elsewhere(url)
    reader.fetch()
    return Store(reader.folder).history()


def test_kernel_rows_at_a_url_are_not_measured_again_elsewhere(
    bucket: str, elsewhere: Elsewhere, told: Told
) -> None:
    words = ("kernels", "--shapes", "64x96", "--batch", "1", "--format", "dense,bitmap", "--threads", "1")
    words += ("--repeats", "3", "--out", bucket)
    assert f"rows go to {bucket}" in told(*words, "--dry-run")
    first = told(*words)
    assert "2 measured" in first and f"rows are stored in {bucket}" in first
    _as_another_machine(elsewhere, bucket)
    assert "2 stored already" in told(*words)
    assert len(_records(elsewhere, bucket)) == 2


def test_a_published_table_is_reproduced_into_a_url(
    bucket: str, elsewhere: Elsewhere, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grid(plan: Plan, out: Path, *_: Any, **__: Any) -> Outcome:
        with Store(out, create=True) as store:
            store.append(record(model="opt-125m", method="magnitude"))
        return Outcome(done=1)

    monkeypatch.setattr("bench.executors.local.execute", grid)
    words = ("reproduce", "sparsegpt/table1", "--models", "opt-125m", "--methods", "magnitude")
    told(*words, "--device", "cpu", "--threads", "1", "--out", bucket)
    assert [found.model for found in _records(elsewhere, bucket)] == ["opt-125m"]


def test_wandb_runs_of_a_url_have_the_same_ids_on_every_machine(
    bucket: str, elsewhere: Elsewhere, told: Told
) -> None:
    assert "holds no results" in told("wandb-sync", "--out", bucket, "--offline", code=2)
    writer = remote.mirror_of(remote.place(bucket))
    assert writer is not None
    with Store(writer.folder, create=True) as store:
        for entry in cell("nano-opt", "dense", "0%"):
            store.append(entry)
            writer.publish()
    ids = []
    for _ in range(2):
        _as_another_machine(elsewhere, bucket)
        assert json.loads(told("wandb-sync", "--out", bucket, "--offline", "--json"))["written"] == 2
        ids.append(set(Ledger.open(remote.place(bucket)).runs))
    assert ids[0] == ids[1]


def test_a_leaderboard_at_a_url_is_one_board_for_all_machines(
    bucket: str, elsewhere: Elsewhere, told: Told, tmp_path: Path
) -> None:
    one = sound_store(tmp_path / "one", ("sparsegpt", "50%", 0, 0.1))
    two = sound_store(tmp_path / "two", ("magnitude", "50%", None, 0.4), ("sparsegpt", "60%", 0, 0.2))
    assert "no stores" in told("leaderboard", "--out", bucket, code=2)
    assert f"leaderboard: {bucket}/index.html" in told("leaderboard", "add", str(one), "--out", bucket)
    _as_another_machine(elsewhere, bucket)
    told("leaderboard", "add", str(two), "--out", bucket)
    assert "3 results in 2 tables of 2 stores" in told("leaderboard", "--out", bucket)
    _as_another_machine(elsewhere, bucket)
    # the store of that name is replaced, here and there
    told("leaderboard", "add", str(one), "--out", bucket, "--name", "two")
    _as_another_machine(elsewhere, bucket)
    assert "of 2 stores" in told("leaderboard", "--out", bucket)
    mirror = remote.mirror_of(remote.place(bucket))
    assert mirror is not None
    assert {entry.method for entry in Store(mirror.folder / "stores" / "two").records()} == {
        "dense",
        "sparsegpt",
    }
    board = {path.removeprefix(f"{mirror.root}/"): path for path in mirror.files.find(mirror.root)}
    assert len([name for name in board if name.startswith("stores/two/records/")]) == 1
    assert json.loads(mirror.files.cat_file(board["feed.json"]))["items"]
    assert b"<html" in mirror.files.cat_file(board["index.html"])
    for name in ("stores/../../planted", "stores/two/.hidden", "stores/two/records/x.py"):
        mirror.files.pipe_file(f"{mirror.root}/{name}", b"x")
    _as_another_machine(elsewhere, bucket)
    told("leaderboard", "--out", bucket)
    folder = remote.place(bucket)
    assert not list(folder.parent.rglob("planted")) and not list(folder.rglob(".hidden"))
    assert not list(folder.rglob("x.py"))


def test_a_model_saved_at_a_url_gives_the_same_perplexity_when_it_is_loaded_back(
    bucket: str, told: Told, tmp_path: Path
) -> None:
    model = saved_with_tokenizer(tmp_path / "model", "llama")
    shared = ("--methods", "magnitude", "--protocol", "nano", "--windows", "2", "--threads", "1")
    told("run", "--models", f"path:{model}", *shared, "--save-as", "dense,bitmap", "--out", bucket)
    mirror = remote.mirror_of(remote.place(bucket))
    assert mirror is not None
    (expected,) = _perplexities(mirror.folder, "magnitude")
    folders = {path.rpartition("/")[0] for path in mirror.files.find(f"{mirror.root}/checkpoints")}
    assert len(folders) == 2
    for number, folder in enumerate(sorted(folders)):
        there, out = tmp_path / f"there{number}", tmp_path / f"again{number}"
        mirror.files.get(folder, str(there), recursive=True)
        told("run", "--models", f"path:{there}", *shared, "--out", str(out))
        assert _perplexities(out, "dense") == [expected]


def _perplexities(out: Path, method: str) -> list[float | None]:
    return [
        metric.value
        for record in Store(out).records()
        if record.method == method and record.phase == "perplexity"
        for metric in record.metrics
        if metric.name == "perplexity"
    ]


def test_the_doctor_looks_at_a_url(bucket: str, told: Told) -> None:
    assert f"{bucket} answers: 0 records" in told("doctor", "--out", bucket)
    checks = json.loads(told("doctor", "--out", "s3://nobody-made-this/x", "--json", code=1))["checks"]
    assert next(check for check in checks if check["name"] == "store")["state"] == "bad"


COMMANDS = (
    ("run", "--models", "nano-opt", "--methods", "magnitude"),
    ("reproduce", "sparsegpt/table1", "--models", "opt-125m"),
    ("kernels", "--shapes", "64x64"),
    ("report",),
    ("status",),
    ("doctor",),
    ("wandb-sync",),
    ("leaderboard",),
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_every_command_refuses_a_url_that_cannot_be_used(words: tuple[str, ...], told: Told) -> None:
    assert "use s3://, gs:// or file://" in told(*words, "--out", "nosuch://bucket/x", code=2)
    assert "hunter2" not in told(*words, "--out", "s3://me:hunter2@bucket/x", code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--models", "path:s3://b/m"),
            "path:s3://b/m' is at a URL; copy its folder to this machine, and give path:FOLDER",
        ),
        (
            ("--models", "nano-opt", "--data-dir", "s3://b/texts"),
            "--data-dir 's3://b/texts' is a URL; copy it to this machine and give the folder",
        ),
    ],
)
def test_what_must_lie_on_this_machine_is_refused_at_a_url(
    words: tuple[str, ...], said: str, told: Told
) -> None:
    assert said in told("run", "--methods", "magnitude", *words, code=2)
