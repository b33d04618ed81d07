"""Reads W&B's offline files: protobuf messages of wandb_internal in the framing of LevelDB's log."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = 7
IDENT = b":W&B\xe1\xbe\x00"
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(path: Path) -> Iterator[Any]:
    """Every `Record` message of a .wandb file, checksums verified, nothing left over."""
    data = path.read_bytes()
    assert data.startswith(IDENT)
    place, pieces = len(IDENT), []
    while place < len(data):
        if (left := BLOCK - place % BLOCK) < HEADER:
            assert not data[place : place + left].strip(b"\0")
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        body = data[place + HEADER : place + HEADER + length]
        assert len(body) == length
        # LevelDB masks a CRC-32C; W&B writes the plain CRC-32 of type and body.
        assert checksum == zlib.crc32(body, zlib.crc32(bytes((kind,))))
        assert (kind in (WHOLE, FIRST)) == (not pieces)
        pieces.append(body)
        place += HEADER + length
        if kind in (WHOLE, LAST):
            message = wandb_internal_pb2.Record()
            message.ParseFromString(b"".join(pieces))
            pieces = []
            yield message
    assert not pieces


@dataclass
class OfflineRun:
    """What one offline run holds: settings, config, history by step, summary, tables, artifacts, how it ended."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    entity: str = ""
    notes: str = ""
    host: str = ""
    tags: tuple[str, ...] = ()
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def figures(self) -> dict[str, Any]:
        """The numbers of the row that has no block and no table."""
        return {
            key: value
            for row in self.history
            if "block" not in row
            for key, value in row.items()
            if not key.startswith("_") and not isinstance(value, dict)
        }

    @property
    def curves(self) -> list[dict[str, Any]]:
        """The rows of the blocks."""
        rows = [row for row in self.history if "block" in row]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]

    def table(self, name: str) -> list[dict[str, Any]]:
        """A logged table's rows, from the file that the history names."""
        entry = next(row[name] for row in self.history if name in row)
        assert entry["_type"] == "table-file"
        found = json.loads((self.folder / "files" / entry["path"]).read_text("utf-8"))
        assert (entry["nrows"], entry["ncols"]) == (len(found["data"]), len(found["columns"]))
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


def _items(items: Any) -> Iterator[tuple[list[str], Any]]:
    for item in items:
        yield list(item.nested_key) or [item.key], json.loads(item.value_json)


def _put(target: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        target = target.setdefault(key, {})
    target[keys[-1]] = value


def read_run(path: Path) -> OfflineRun:
    """One run from its .wandb file."""
    run = OfflineRun(folder=path.parent)
    for message in messages(path):
        kind = message.WhichOneof("record_type")
        if kind == "run":
            given = message.run
            run.id, run.name, run.group = given.run_id, given.display_name, given.run_group
            run.job_type, run.project, run.entity = given.job_type, given.project, given.entity
            run.notes, run.host, run.tags = given.notes, given.host, tuple(given.tags)
            for keys, value in _items(given.config.update):
                _put(run.config, keys, value)
        elif kind == "history":
            row: dict[str, Any] = {}
            for keys, value in _items(message.history.item):
                _put(row, keys, value)
            run.history.append(row)
        elif kind == "summary":
            for keys, value in _items(message.summary.update):
                _put(run.summary, keys, value)
        elif kind == "metric" and message.metric.step_metric:
            run.step_metrics[message.metric.glob_name] = message.metric.step_metric
        elif kind == "artifact":
            entries = message.artifact.manifest.contents
            run.artifacts[message.artifact.name] = {entry.path: Path(entry.local_path) for entry in entries}
        elif kind == "exit":
            run.exit_code = message.exit.exit_code
    return run


def read_runs(out: Path) -> dict[str, OfflineRun]:
    """All offline runs under OUT/wandb, by id; a run that lies there twice fails."""
    runs = [read_run(path) for path in sorted((out / "wandb").glob("offline-run-*/*.wandb"))]
    assert len({run.id for run in runs}) == len(runs)
    return {run.id: run for run in runs}
