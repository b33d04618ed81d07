"""Stores at URLs, on a real S3 server of this machine: several writers at once, outages, damage, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_records import later, record
from saved_models import saved_with_tokenizer

from bench.cli.main import main
from bench.results import remote
from bench.results.segments import Store
from bench.results.values import load_values, save_values
from methods.errors import MachineError, UserError

_WRITER = """
import sys
from pathlib import Path
from sample_records import later, record
from bench.results.remote import mirror_of, place, publishing
from bench.results.segments import Store
url, number = sys.argv[1], int(sys.argv[2])
folder = place(url)
with publishing(folder, print), Store(folder, create=True) as store:
    for index in range(12):
        store.append(record(cell=f"w{number}-{index}", finished=later(index)))
        mirror_of(folder).publish()
    store.append(record(cell="shared", finished=later(100 + number)))
print(folder)
"""


def _cells(mirror: remote.Mirror) -> list[str]:
    return [entry.cell for entry in Store(mirror.folder).records()]


def test_concurrent_writers_lose_and_double_nothing(
    bucket: str, elsewhere: Callable[[str], remote.Mirror]
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[1]),))}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, bucket, str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    folders = {writer.communicate()[0].strip() for writer in writers}
    assert [writer.returncode for writer in writers] == [0, 0, 0] and len(folders) == 3
    reader = elsewhere(bucket)
    reader.fetch()
    history = Store(reader.folder).history()
    assert sorted(entry.cell for entry in history) == sorted(
        [f"w{number}-{index}" for number in range(3) for index in range(12)] + ["shared"] * 3
    )
    latest = next(entry for entry in Store(reader.folder).records() if entry.cell == "shared")
    assert latest.finished == later(102), "records of one key are resolved as in any store"
    reader.fetch()
    assert reader.publish() == 0 and len(Store(reader.folder).history()) == len(history)


def test_values_travel_and_a_damaged_object_is_set_aside(
    bucket: str, elsewhere: Callable[[str], remote.Mirror]
) -> None:
    import numpy as np

    writer = remote.mirror_of(remote.place(bucket))
    assert writer is not None
    with Store(writer.folder, create=True) as store:
        name = save_values(writer.folder, {"nll": np.arange(3.0)})
        store.append(record(cell="good", finished=later(1), values=name))
        store.append(record(cell="bad", finished=later(2)))
    assert writer.publish() == 2
    hashes = {
        entry.cell: hashed
        for entry, hashed in zip(Store(writer.folder).history(), _hashes(writer), strict=True)
    }
    (path,) = (p for p in writer.files.find(writer.root) if hashes["bad"] in p)
    whole = writer.files.cat_file(path)
    writer.files.pipe_file(path, whole[:-20])
    reader = elsewhere(bucket)
    for _ in range(2):
        reader.fetch()
        assert _cells(reader) == ["good"]
        assert [piece.length for piece in Store(reader.folder).torn] == [len(whole) - 20]
    assert "object" in str(Store(reader.folder).torn[0])
    assert load_values(reader.folder, name)["nll"].tolist() == [0, 1, 2]
    writer.files.pipe_file(path, whole)
    reader.fetch()
    assert _cells(reader) == ["good", "bad"] and not Store(reader.folder).torn


def _hashes(mirror: remote.Mirror) -> list[str]:
    return [name for path in mirror._segments(mirror.folder) for name, _ in remote._lines(path)]


def test_an_outage_keeps_records_and_the_next_run_publishes_them(
    bucket: str, server: str, elsewhere: Callable[[str], remote.Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    folder = remote.place(bucket)
    with (
        pytest.raises(MachineError, match=r"1 records wait in .* publishes them"),
        remote.publishing(folder, said.append),
        Store(folder, create=True) as store,
    ):
        store.append(record(cell="kept"))
    assert len(said) == 1 and "for now" in said[0] and "testing-secret" not in said[0]
    os.close(remote._mirrors.pop(folder)._held)  # as that process's end would
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    with remote.publishing(remote.place(bucket), said.append):
        pass
    assert len(said) == 1
    reader = elsewhere(bucket)
    reader.fetch()
    assert _cells(reader) == ["kept"]


def test_the_command_runs_reports_and_saves_at_a_url(
    bucket: str, elsewhere: Callable[[str], remote.Mirror], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved_with_tokenizer(tmp_path / "model", "opt")
    words = [
        "run",
        "--models",
        f"path:{model}",
        "--methods",
        "magnitude",
        "--protocol",
        "nano",
        "--windows",
        "2",
    ]
    words += ["--threads", "1", "--save", "--out", bucket]
    assert main(words) == 0, capsys.readouterr().err
    mine = next(iter(remote._mirrors.values()))
    saved = {
        p.rpartition("/")[2]: mine.files.info(p)["size"] for p in mine.files.find(f"{mine.root}/checkpoints")
    }
    local = {p.name: p.stat().st_size for p in mine.folder.glob("checkpoints/*/*")}
    assert saved == local and "model.safetensors" in saved
    everything = b"".join(mine.files.cat(mine.files.find(f"{mine.root}/records")).values())
    assert everything and b"testing-secret" not in everything
    capsys.readouterr()
    reader = elsewhere(bucket)
    os.close(reader._held)
    remote._mirrors.clear()
    for command in (["report", "--out", bucket, "--format", "csv"], ["status", "--out", bucket]):
        assert main(command) == 0
    shown = capsys.readouterr().out
    assert "magnitude,50%" in shown and "5 done" in shown
    assert main(["compare", bucket, bucket]) == 0
    assert main([word for word in words if word != "--save"]) == 0
    assert "2 cached" in capsys.readouterr().out, (
        "what is stored at the URL is not done again on another machine"
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://user:hunter2@bucket/x", "leave them out"),
        ("nosuch://bucket/x", "use s3://, gs:// or file://"),
        ("s3://", "names no place"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(
    url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["report"], ["run", "--models", "nano-opt", "--methods", "magnitude"]):
        assert main([*command, "--out", url]) == 2
        shown = capsys.readouterr().err
        assert said in shown and "hunter2" not in shown and shown.count("\n") == 1


def test_a_missing_bucket_and_a_missing_package_are_named(
    bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["report", "--out", "s3://nobody-made-this/x"]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1

    def gone(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", gone)
    with pytest.raises(UserError, match=r"pip install 'prune-bench\[s3\]'"):
        remote.place("s3://elsewhere/x")


def test_a_file_url_needs_no_package(tmp_path: Path, elsewhere: Callable[[str], remote.Mirror]) -> None:
    url = f"file://{tmp_path / 'store'}"
    writer = elsewhere(url)
    with Store(writer.folder, create=True) as store:
        store.append(record(cell="a"))
    assert writer.publish() == 1 and writer.publish() == 0
    reader = elsewhere(url)
    reader.fetch()
    assert _cells(reader) == ["a"]
