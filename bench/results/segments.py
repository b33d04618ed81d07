"""The store: one JSON-lines segment a writer, every line checksummed, damage set aside and reported."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, Self

from bench.results.files import fault, hold, replace_file, sync_folder, write_all
from bench.results.records import Key, Record, decode, encode, moment
from methods.errors import PruneBenchError, StoreError, reason_of

FORMAT: Final = 1
"""Version of the folder's layout and of a line's frame; records have a version of their own."""

MAX_LINE: Final = 64 << 20
"""Longest line in bytes that is read or written; a longer one is damage, not a record."""

_HEAD: Final = b'{"sha256":"'
_BODY: Final = b'","record":'
_TAIL: Final = b"}\n"
_FRAME: Final = len(_HEAD) + 64 + len(_BODY)
_WRITER = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class TornTail:
    """A piece of a segment that is no record: where it began and its length in bytes, and what is wrong."""

    segment: str
    offset: int
    length: int
    reason: str

    def __str__(self) -> str:
        return f"{self.segment}: {self.length} bytes at offset {self.offset} are no record ({self.reason})"


@dataclass(frozen=True)
class _Line:
    offset: int
    length: int
    record: Record | None
    reason: str
    open_end: bool = False


def frame(record: Record) -> bytes:
    """The line a segment holds for `record`: its canonical JSON behind the SHA-256 of exactly those bytes.

    Raises `StoreError` for a record longer than `MAX_LINE`.
    """
    body = encode(record)
    line = _HEAD + hashlib.sha256(body).hexdigest().encode("ascii") + _BODY + body + _TAIL
    if len(line) > MAX_LINE:
        raise StoreError(
            f"a record of {len(line)} bytes exceeds the {MAX_LINE} that a line may have: "
            "raw values belong in a values file"
        )
    return line


def unframe(line: bytes) -> Record:
    """The record of one whole line. Raises ValueError for damage, `StoreError` for a newer format."""
    if not line.endswith(_TAIL):
        raise ValueError("cut short")
    if not line.startswith(_HEAD) or line[_FRAME - len(_BODY) : _FRAME] != _BODY:
        raise ValueError("no checksummed record")
    body = line[_FRAME : -len(_TAIL)]
    if hashlib.sha256(body).hexdigest().encode("ascii") != line[len(_HEAD) : len(_HEAD) + 64]:
        raise ValueError("checksum does not match")
    return decode(body)


def _read_lines(stream: BufferedReader) -> Iterator[_Line]:
    offset = 0
    while line := stream.readline(MAX_LINE + 1):
        length, record, reason = len(line), None, ""
        if len(line) > MAX_LINE and not line.endswith(b"\n"):
            reason = "longer than a record may be"
            while rest := stream.readline(MAX_LINE):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
        else:
            try:
                record = unframe(line)
            except ValueError as error:
                reason = reason_of(error)
        yield _Line(offset, length, record, reason, open_end=not line.endswith(b"\n"))
        offset += length


def _alive(path: Path) -> bool:
    """Whether a writer still holds this segment open."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return not hold(stream.fileno())
    return False


class Store:
    """The records of one output folder.

    Opened plainly it only reads, and changes nothing. With `create=True` it makes the folder where there is
    none, moves what dead writers left damaged into `records/<writer>.torn`, and `append` writes to a
    segment that no other writer shares, so any number of writers may work on one store. Damage, set aside
    or still in place, is listed in `torn`.

    Raises `StoreError` where there is no store or one of a newer format, `MachineError` where the system
    refuses.
    """

    def __init__(self, out: Path, *, create: bool = False, writer: str | None = None) -> None:
        self.out = Path(out)
        self.folder = self.out / "records"
        self.writable = create
        if writer is not None and not _WRITER.fullmatch(writer):
            raise StoreError(f"writer name {writer!r:.80}: use letters, digits, dashes and underscores")
        self._writer = writer
        self._handle: int | None = None
        self._size = 0
        self._owner = 0
        self._lock = threading.Lock()
        self._torn: list[TornTail] | None = None
        if create:
            self._create()
        self._check_format()
        if create:
            self._set_aside()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the segment; a later `append` starts another."""
        with self._lock:
            self._release()

    @property
    def torn(self) -> list[TornTail]:
        """Every damaged piece known, by segment and offset; reads the segments if nothing has yet."""
        if self._torn is None:
            self.history()
        return list(self._torn or ())

    def append(self, record: Record) -> None:
        """Add `record` durably: on return it is on disk, on an error the segment is as it was before.

        Raises `MachineError` (disk full, read-only, ...) and `StoreError` (opened for reading, record too
        long).
        """
        if not self.writable:
            raise StoreError(f"{self.out} was opened for reading: open the store with create=True to append")
        line = frame(record)
        with self._lock:
            handle = self._segment()
            try:
                write_all(handle, line)
                os.fsync(handle)
            except OSError as error:
                self._take_back(handle)
                raise fault("store a record in", self.folder, error) from error
            self._size += len(line)

    def history(self) -> list[Record]:
        """All records in order of `finished`, superseded ones (a later one has the same key) included."""
        found: list[Record] = []
        torn: list[TornTail] = []
        for path in self._segments():
            # Asked before reading: an unfinished last line of a live writer is being written, not damaged.
            alive = _alive(path)
            for line in self._lines(path):
                if line.record is not None:
                    found.append(line.record)
                elif not (line.open_end and alive):
                    torn.append(TornTail(path.stem, line.offset, line.length, line.reason))
        self._torn = sorted([*torn, *self._aside()], key=lambda piece: (piece.segment, piece.offset))
        return sorted(found, key=lambda record: moment(record.finished))

    def records(self) -> list[Record]:
        """The latest finished record of every key, in order of `finished`."""
        latest: dict[Key, Record] = {}
        for record in self.history():
            latest.pop(record.key, None)
            latest[record.key] = record
        return list(latest.values())

    def done(self) -> set[Key]:
        """The keys whose latest record is done, with nothing awaited: what a rerun need not repeat."""
        return {record.key for record in self.records() if record.settled}

    def _create(self) -> None:
        marker = self.out / "store.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                replace_file(marker, json.dumps({"store": "prune-bench", "format": FORMAT}).encode() + b"\n")
        except OSError as error:
            raise fault("create a store in", self.out, error) from error

    def _check_format(self) -> None:
        marker = self.out / "store.json"
        try:
            with marker.open("rb") as stream:
                content = stream.read(4097)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"{self.out} holds no results: write some with bench run --out {self.out}"
            ) from None
        except OSError as error:
            raise fault("read", marker, error) from error
        try:
            found: Any = json.loads(content)
            version = found["format"]
            if isinstance(version, bool) or not isinstance(version, int) or version < 1:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StoreError(
                f'{marker} is damaged: put back {{"store": "prune-bench", "format": {FORMAT}}}'
            ) from None
        if version > FORMAT:
            raise StoreError(
                f"{self.out} is a store of format {version}, this program reads up to {FORMAT}: "
                "upgrade prune-bench (pip install --upgrade prune-bench)"
            )

    def _segments(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.glob("*.jsonl") if path.is_file())
        except OSError as error:
            raise fault("read", self.folder, error) from error

    def _lines(self, path: Path) -> Iterator[_Line]:
        try:
            with path.open("rb") as stream:
                yield from _read_lines(stream)
        except StoreError as error:
            raise StoreError(f"{path}: {error}") from error
        except OSError as error:
            raise fault("read", path, error) from error

    def _segment(self) -> int:
        # A fork inherits the descriptor: leave it to the parent and start a segment of its own.
        if self._handle is not None and self._owner == os.getpid():
            return self._handle
        self._release()
        host = re.sub("[^A-Za-z0-9_-]", "-", socket.gethostname())[:40] or "host"
        name = self._writer or f"{host}-{os.getpid()}"
        stamp = f"{time.time_ns():x}-{secrets.token_hex(3)}"
        path = self.folder / f"{name}-{stamp}.jsonl"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
            handle = os.open(path, flags, 0o666)
        except OSError as error:
            raise fault("open a segment in", self.folder, error) from error
        hold(handle)
        sync_folder(self.folder)
        self._handle, self._size, self._owner = handle, 0, os.getpid()
        return handle

    def _release(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = None

    def _take_back(self, handle: int) -> None:
        """After a failed write, cut the segment to its last whole line; failing that, abandon it."""
        try:
            os.ftruncate(handle, self._size)
        except OSError:
            self._release()

    def _set_aside(self) -> None:
        """Move damage in segments whose writers are gone into `<writer>.torn`, then close the gaps."""
        for path in self._segments():
            if all(line.record is not None for line in self._lines(path)):
                continue
            try:
                with path.open("r+b") as stream:
                    if hold(stream.fileno()):
                        self._move(path, stream)
            except PruneBenchError:
                raise
            except OSError as error:
                raise fault("repair", path, error) from error

    def _move(self, path: Path, stream: BufferedReader | Any) -> None:
        # Save the pieces durably, then rewrite: a crash between the two leaves them twice, never nowhere.
        lines = list(_read_lines(stream))
        damaged = [line for line in lines if line.record is None]
        if not damaged:
            return
        # A file for every time this happens: one that a crash cut short never swallows what comes after it.
        name = next(name for name in _torn_names(path) if not name.exists())
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for line in damaged:
                stream.seek(line.offset)
                header = json.dumps({"offset": line.offset, "length": line.length, "reason": line.reason})
                write_all(handle, header.encode("ascii") + b"\n")
                _copy(stream, handle, line.length)
                write_all(handle, b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_folder(self.folder)
        if damaged == lines[-len(damaged) :]:
            os.ftruncate(stream.fileno(), damaged[0].offset)
            os.fsync(stream.fileno())
            return
        kept = []
        for line in lines:
            if line.record is not None:
                stream.seek(line.offset)
                kept.append(stream.read(line.length))
        replace_file(path, b"".join(kept))

    def _aside(self) -> Iterator[TornTail]:
        for path in sorted(self.folder.glob("*.torn")):
            try:
                with path.open("rb") as stream:
                    yield from _aside_pieces(path.name.partition(".")[0], stream)
            except OSError as error:
                raise fault("read", path, error) from error


def _torn_names(path: Path) -> Iterator[Path]:
    return (path.with_suffix(f".{number}.torn" if number else ".torn") for number in itertools.count())


def _copy(source: BufferedReader, handle: int, length: int) -> None:
    while length > 0:
        chunk = source.read(min(length, 1 << 20))
        if not chunk:
            return
        write_all(handle, chunk)
        length -= len(chunk)


def _aside_pieces(segment: str, stream: BufferedReader) -> Iterator[TornTail]:
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    while (place := stream.tell()) < end:
        try:
            header = json.loads(stream.readline(4096))
            offset, length = int(header["offset"]), int(header["length"])
            piece = TornTail(segment, offset, length, str(header["reason"])[:200])
            if offset < 0 or not 0 <= length < end - stream.tell():
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            yield TornTail(segment, place, end - place, "set aside, and its description is damaged as well")
            return
        yield piece
        stream.seek(piece.length + 1, os.SEEK_CUR)
