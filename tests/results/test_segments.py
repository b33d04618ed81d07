"""The store under damage: torn tails, corrupt lines, many writers, full disks, newer formats."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sample_records import later, record

from bench.results import files
from bench.results.segments import MAX_LINE, Store, frame
from methods.errors import MachineError, StoreError


def segments(out: Path) -> list[Path]:
    return sorted((out / "records").glob("*.jsonl"))


def fill(out: Path, count: int = 3) -> Path:
    with Store(out, create=True) as store:
        for number in range(count):
            store.append(record(cell=f"c{number}", finished=later(number)))
    return segments(out)[0]


def tree(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }


def cells(out: Path) -> list[str]:
    return [entry.cell for entry in Store(out).records()]


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    fill(tmp_path)
    store = Store(tmp_path)
    assert [entry.cell for entry in store.records()] == ["c0", "c1", "c2"]
    assert store.records()[0] == record(cell="c0", finished=later(0))
    assert store.torn == []
    assert store.done() == {(f"c{number}", "prune", "", "x0") for number in range(3)}


def test_a_segment_line_is_plain_json(tmp_path: Path) -> None:
    line = json.loads(fill(tmp_path).read_text().splitlines()[0])
    assert set(line) == {"sha256", "record"}
    assert line["record"]["cell"] == "c0"


def test_a_tail_torn_at_any_byte_loses_only_itself_and_is_reported(tmp_path: Path) -> None:
    path = fill(tmp_path, 2)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        store = Store(tmp_path)
        assert [entry.cell for entry in store.records()] == ["c0"]
        assert [(piece.offset, piece.length) for piece in store.torn] == (
            [(start, cut - start)] if cut > start else []
        )
        assert path.read_bytes() == whole[:cut]
    path.write_bytes(whole)
    assert cells(tmp_path) == ["c0", "c1"]


def test_a_writer_moves_a_torn_tail_aside_and_goes_on(tmp_path: Path) -> None:
    path = fill(tmp_path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with Store(tmp_path, create=True) as store:
        start = whole.index(b"\n") + 1
        piece = f"{path.stem}: {len(whole) - 7 - start} bytes at offset {start} are no record (cut short)"
        assert [str(torn) for torn in store.torn] == [piece]
        store.append(record(cell="c1", finished=later(5)))
    assert path.read_bytes() == whole[: whole.index(b"\n") + 1]
    assert whole[whole.index(b"\n") + 1 : -7] in path.with_suffix(".torn").read_bytes()
    assert cells(tmp_path) == ["c0", "c1"]
    # The damage stays on record for whoever opens the store next, once.
    assert len(Store(tmp_path).torn) == 1
    assert len(Store(tmp_path, create=True).torn) == 1
    path.write_bytes(path.read_bytes() + b"again")
    assert [piece.length for piece in Store(tmp_path, create=True).torn] == [5, len(whole) - 7 - start]
    assert path.with_suffix(".1.torn").exists()


@pytest.mark.parametrize("flip", [0, 5, 40, 80, 200, -2])
def test_a_corrupt_line_in_the_middle_is_set_aside(tmp_path: Path, flip: int) -> None:
    path = fill(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    bad = bytearray(lines[1])
    bad[flip] ^= 1
    path.write_bytes(lines[0] + bytes(bad) + lines[2])
    reader = Store(tmp_path)
    assert [entry.cell for entry in reader.records()] == ["c0", "c2"]
    assert [(piece.offset, piece.length) for piece in reader.torn] == [(len(lines[0]), len(bad))]
    writer = Store(tmp_path, create=True)
    assert writer.torn == reader.torn
    assert path.read_bytes() == lines[0] + lines[2]
    assert bytes(bad) in path.with_suffix(".torn").read_bytes()
    assert cells(tmp_path) == ["c0", "c2"]


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"garbage\n",
        b"\x00" * 1000 + b"\n",
        b"[" * 100_000 + b"\n",
        b'{"sha256":"' + b"0" * 64 + b'","record":{}}\n',
        b'{"sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","record":{}}\n',
        b'{"record":1}\n',
        b"\xff" * 50 + b"\n",
    ],
)
def test_hostile_lines_are_reported_not_fatal(tmp_path: Path, line: bytes) -> None:
    path = fill(tmp_path, 2)
    good = path.read_bytes()
    path.write_bytes(line + good + line)
    store = Store(tmp_path)
    assert [entry.cell for entry in store.records()] == ["c0", "c1"]
    assert [piece.length for piece in store.torn] == [len(line)] * 2
    assert all("\n" not in str(piece) and len(str(piece)) < 500 for piece in store.torn)
    Store(tmp_path, create=True)
    assert path.read_bytes() == good


def test_a_huge_line_is_damage_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.results.segments.MAX_LINE", 2000)
    path = fill(tmp_path, 2)
    path.write_bytes(b"a" * 9000 + b"\n" + path.read_bytes() + b"b" * 5000)
    store = Store(tmp_path)
    assert [entry.cell for entry in store.records()] == ["c0", "c1"]
    assert [piece.length for piece in store.torn] == [9001, 5000]
    with pytest.raises(StoreError, match="values file"):
        Store(tmp_path, create=True).append(record(reason="x" * 3000))
    assert MAX_LINE > 2000


def test_a_damaged_set_aside_file_is_reported_too(tmp_path: Path) -> None:
    path = fill(tmp_path)
    path.with_suffix(".torn").write_bytes(b'{"offset": -1, "length": "many"}\nleft over')
    assert ["damaged as well" in piece.reason for piece in Store(tmp_path).torn] == [True]
    for length in (b"5", b"1" + b"0" * 400):
        path.with_suffix(".torn").write_bytes(b'{"offset": 1, "length": ' + length + b', "reason": "x"}\nabc')
        assert [piece.length for piece in Store(tmp_path).torn] == [path.with_suffix(".torn").stat().st_size]


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = fill(tmp_path)
    path.write_bytes(path.read_bytes()[:-3] + b"\nrubbish")
    before = tree(tmp_path)
    store = Store(tmp_path)
    assert store.torn
    assert store.records()
    assert store.done()
    assert tree(tmp_path) == before
    with pytest.raises(StoreError, match="opened for reading"):
        store.append(record())


def test_the_latest_finished_record_wins_and_all_stay(tmp_path: Path) -> None:
    with (
        Store(tmp_path, create=True, writer="b") as second,
        Store(tmp_path, create=True, writer="a") as first,
    ):
        second.append(record(finished=later(9), status="failed", reason="later"))
        first.append(record(finished=later(1)))
        # The same moment spelled in another zone still sorts by time, not by text.
        first.append(record(finished="2026-01-02T00:04:05-04:00", cell="zone"))
        first.append(record(finished=later(2), cell="zone"))
    store = Store(tmp_path)
    assert len(store.history()) == 4
    assert {entry.cell: entry.finished for entry in store.records()} == {
        "c0": later(9),
        "zone": "2026-01-02T00:04:05-04:00",
    }
    assert store.done() == {("zone", "prune", "", "x0")}


def write_many(out: Path, name: str, count: int) -> None:
    with Store(out, create=True) as store:
        for number in range(count):
            store.append(record(cell=f"{name}-{number}", warnings=("w" * 5000,)))


def test_several_processes_append_to_one_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_many, args=(tmp_path / "o", f"w{n}", 20)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = Store(tmp_path / "o")
    assert {entry.cell for entry in store.records()} == {f"w{n}-{k}" for n in range(3) for k in range(20)}
    assert store.torn == []
    assert len(segments(tmp_path / "o")) == 3


def test_a_forked_child_writes_a_segment_of_its_own(tmp_path: Path) -> None:
    with Store(tmp_path, create=True) as store:
        store.append(record(cell="parent"))
        child = os.fork()
        if child == 0:
            try:
                store.append(record(cell="child"))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        store.append(record(cell="parent again"))
    assert set(cells(tmp_path)) == {"parent", "child", "parent again"}
    assert len(segments(tmp_path)) == 2


KILLED = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from bench.results.segments import Store
from sample_records import record
store = Store(Path(sys.argv[1]), create=True)
print("ready", flush=True)
for number in range(1_000_000):
    store.append(record(cell=str(number), warnings=("w" * 20_000,)))
"""


def test_kill_at_any_moment_loses_no_finished_record(tmp_path: Path) -> None:
    script = KILLED.format(path=[entry for entry in sys.path if entry])
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    seen = 0
    while seen < 30:
        # A live writer's unfinished line is in flight: readers neither count it nor call it torn.
        store = Store(tmp_path)
        assert len(store.history()) >= seen
        seen = len(store.history())
        assert store.torn == []
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdout.close()
    found = Store(tmp_path, create=True).records()
    assert [entry.cell for entry in found] == [str(number) for number in range(len(found))]
    assert len(found) >= seen


def test_a_live_writer_is_never_repaired(tmp_path: Path) -> None:
    with Store(tmp_path, create=True) as writer:
        writer.append(record())
        path = segments(tmp_path)[0]
        with path.open("ab") as stream:
            stream.write(b'{"sha256":"')
        assert Store(tmp_path, create=True).torn == []
        assert path.read_bytes().endswith(b'{"sha256":"')
    assert len(Store(tmp_path).torn) == 1


def test_a_disk_that_fills_up_leaves_whole_records(tmp_path: Path) -> None:
    store = Store(tmp_path, create=True)
    store.append(record(cell="first"))
    path = segments(tmp_path)[0]
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(MachineError, match="what was stored before is intact") as caught:
            store.append(record(cell="second"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert cells(tmp_path) == ["first"]
    assert Store(tmp_path).torn == []
    store.append(record(cell="third"))
    assert set(cells(tmp_path)) == {"first", "third"}


def test_where_a_failed_line_cannot_be_cut_off_it_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, create=True)
    store.append(record(cell="first"))
    real = os.write
    calls: list[int] = []

    def short(handle: int, data: memoryview) -> int:
        calls.append(handle)
        if len(calls) == 1:
            return real(handle, data[:40])
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", short)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(MachineError, match="No space left on device"):
            store.append(record(cell="second"))
    store.append(record(cell="third"))
    reader = Store(tmp_path)
    assert {entry.cell for entry in reader.records()} == {"first", "third"}
    assert [piece.length for piece in reader.torn] == [40]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fill(tmp_path / "full")

    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(MachineError, match=os.strerror(code)) as caught:
            Store(tmp_path / "new", create=True)
        assert "\n" not in str(caught.value)
        store = Store(tmp_path / "full", create=True)
        with pytest.raises(MachineError, match=os.strerror(code)):
            store.append(record())
    assert len(cells(tmp_path / "full")) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(MachineError, match="--out"):
            Store(tmp_path / "new", create=True)
    finally:
        tmp_path.chmod(0o755)


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match="must name a folder"):
        Store(tmp_path / "out", create=True)
    with pytest.raises(StoreError, match="holds no results"):
        Store(tmp_path / "out")


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="bench run --out"):
        Store(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_newer_formats_say_upgrade(tmp_path: Path) -> None:
    path = fill(tmp_path)
    (tmp_path / "store.json").write_text('{"store": "prune-bench", "format": 7}')
    for create in (False, True):
        with pytest.raises(StoreError, match="format 7, this program reads up to 1: upgrade prune-bench"):
            Store(tmp_path, create=create)
    (tmp_path / "store.json").write_text('{"store": "prune-bench", "format": 1}')
    path.write_bytes(path.read_bytes() + frame(record().model_copy(update={"schema_version": 9})))
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"\.jsonl: .*version 9.*upgrade prune-bench"):
        Store(tmp_path).records()
    with pytest.raises(StoreError, match="upgrade prune-bench"):
        Store(tmp_path, create=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format": "1"}', b'{"format": true}', b"\xff", b"[" * 4000]
)
def test_a_damaged_marker_is_one_line(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path)
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.json is damaged") as caught:
        Store(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 101, "a b"])
def test_writer_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="writer name"):
        Store(tmp_path, create=True, writer=name)
