"""Fuzzed: segments, damage set aside and markers of a store, values files, live state, and a leaderboard's submissions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path

from fuzz.refusals import Finding, refusals, scratch, split
from sample_records import cell, record

from bench.cli.status import inspect
from bench.mirror.ledger import Ledger
from bench.results.current import current
from bench.results.records import Record, decode, encode
from bench.results.rows import tidy
from bench.results.segments import Store, frame
from bench.results.values import arrays_of, load_values, save_values
from methods.errors import StoreError
from reports.comparison import compare
from reports.leaderboard.page import write_leaderboard
from reports.leaderboard.private import private
from reports.leaderboard.submission import accept, examine
from reports.load import load
from reports.markdown import markdown_page
from reports.pages import write_report
from reports.tidy_csv import csv_lines

_MARKER = b'{"store": "prune-bench", "format": 1}\n'


def _framed(body: bytes) -> bytes:
    """A line whose checksum is right, so that what is behind it is reached."""
    digest = hashlib.sha256(body).hexdigest().encode()
    return b'{"sha256":"' + digest + b'","record":' + body + b"}\n"


def store(data: bytes) -> None:
    """0: a segment; 1: records behind right checksums; 2: damage set aside; 3: the marker; 4: status; 5: the mirror's ledger."""
    kind, body = split(data, 6)
    if kind == 1:
        with refusals(ValueError):
            _same(decode(body))
    with scratch() as out:
        (out / "records").mkdir()
        (out / "store.json").write_bytes(body if kind == 3 else _MARKER)
        if kind <= 2:
            content = b"".join(map(_framed, body.split(b"\n"))) if kind == 1 else body
            (out / "records" / f"w-1.{'torn' if kind == 2 else 'jsonl'}").write_bytes(content)
        for name in ("run.json", "run.holder.json") if kind == 4 else ():
            (out / name).write_bytes(body)
        if kind == 5:
            (out / "wandb").mkdir()
            (out / "wandb" / "mirror.json").write_bytes(body)
            with refusals():
                Ledger.open(out)
            return
        with refusals():
            if kind == 4:
                inspect(out)
                return
            opened = Store(out)
            found = opened.history()
            pieces = [str(piece) for piece in opened.torn]
            list(tidy(current(found)))
            with Store(out, create=True, writer="fuzz") as written:
                written.append(record())
                again = written.history()
            if len(again) != len(found) + 1:
                raise Finding(f"{len(found)} records, and {len(again)} after one more; damage was {pieces}")


def _same(found: object) -> None:
    if not isinstance(found, Record):
        raise Finding(f"decode gave {type(found)}")
    once = encode(found)
    if encode(decode(once)) != once:
        raise Finding("a record changes when it is written and read again")
    frame(private(found))


def values(data: bytes) -> None:
    """0: the bytes of a values file; 1: its header, the eight bytes before it added; 2: the name that a record gives it."""
    kind, body = split(data, 3)
    if kind == 1:
        body = len(body).to_bytes(8, "little") + body + bytes(64)
    with scratch() as out:
        (out / "values").mkdir()
        if kind == 2:
            with refusals():
                load_values(out, body.decode("utf-8", "replace"))
                raise Finding("a file that is not there was read")
        name = f"{hashlib.sha256(body).hexdigest()}.safetensors"
        (out / "values" / name).write_bytes(body)
        with refusals():
            arrays = load_values(out, name)
            if any(array.nbytes > len(body) for array in arrays.values()):
                raise Finding("an array larger than its file")
            with refusals(StoreError):
                save_values(out, arrays)
        with refusals(StoreError):
            arrays_of(body, name)


def submission(data: bytes) -> None:
    """Records as JSON lines behind right checksums; behind a zero byte, a values file that `@` names in a record."""
    lines, _, side = data.partition(b"\0")
    name = f"{hashlib.sha256(side).hexdigest()}.safetensors"
    with scratch() as folder:
        out = folder / "out"
        (out / "records").mkdir(parents=True)
        (out / "values").mkdir()
        (out / "store.json").write_bytes(_MARKER)
        (out / "values" / name).write_bytes(side)
        body = lines.replace(b'"values":"@"', b'"values":"' + name.encode() + b'"')
        (out / "records" / "w-1.jsonl").write_bytes(b"".join(map(_framed, body.split(b"\n"))))
        with refusals():
            found = examine(out)
            if any("\n" in entry for entry in (*found.missing, *found.notes)):
                raise Finding("what is missing is told in more than one line")
            if not found.missing:
                accept(found, folder / "board", "fuzz")
                write_leaderboard([folder / "board" / "stores" / "fuzz"], folder / "board")
            _shown(out)


def _shown(out: Path) -> None:
    """Everything a report prints. What a record says becomes neither markup nor a formula."""
    found = load(out)
    comparison = compare(found.records)
    for line in csv_lines(found.records):
        for row in csv.reader(io.StringIO(line)):
            if any(entry.startswith(("=", "@", "\t", "\r")) for entry in row):
                raise Finding(f"a formula in the CSV: {line[:200]!r}")
    text = markdown_page(found, comparison)
    if re.search(r"<(?!br>|/?sub>|/?details>|/?summary>)[a-zA-Z/!]", text):
        raise Finding("markup in the Markdown report")
    page = write_report(out).page.read_text(encoding="utf-8")
    if "<fuzz" in page:
        raise Finding("a record's text is markup in the page")


def store_seeds() -> list[bytes]:
    """One of every kind."""
    lines = b"".join(frame(entry) for entry in cell("nano-opt", "sparsegpt", "50%"))
    torn = b'{"offset": 0, "length": 4, "reason": "cut short"}\nabcd\n'
    live = {"state": "running", "pid": 1, "host": "h", "started": "2026-01-02T03:04:05+00:00", "cells": []}
    ledger = {"store": "0" * 8, "name": "n", "runs": {}}
    return [
        b"0" + lines,
        b"0" + lines[:-9],
        b"1" + encode(record()),
        b"1" + encode(record(schema_version=1, parameters={"a": float("nan")})),
        b"2" + torn,
        b"3" + _MARKER,
        b"4" + json.dumps(live).encode(),
        b"5" + json.dumps(ledger).encode(),
    ]


def values_seeds() -> list[bytes]:
    """Whole files, a header, names."""
    import numpy as np
    from safetensors.numpy import save

    whole = save({"nll": np.zeros((2, 3)), "flag": np.ones(4, bool), "half": np.zeros(0, np.float16)})
    header = {"a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}, "__metadata__": {"k": "v"}}
    return [
        b"0" + whole,
        b"1" + json.dumps(header).encode(),
        b"2" + b"0" * 64 + b".safetensors",
        b"2../../etc/passwd",
    ]


def submission_seeds() -> list[bytes]:
    """A whole submission, one of hostile texts, one of failures."""
    import numpy as np
    from hostile_records import HOSTILE
    from safetensors.numpy import save

    side = save({"nll": np.full((4,), 3.0)})
    known = {
        "commit": "abc1234",
        "environment": {"processor": "p", "versions": {"torch": "2"}},
        "model": {"revision": "r", "files": {"a": "b"}},
        "text": {"sha256": "t"},
    }
    whole = [
        entry.model_copy(update={"provenance": known})
        for m in ("dense", "sparsegpt")
        for entry in cell("nano-opt", m, "0%" if m == "dense" else "50%")
    ]
    lines = [encode(entry).replace(b'"values":""', b'"values":"@"') for entry in whole]
    acting = [
        encode(entry) for text in HOSTILE[:3] for entry in cell(text, text, "50%", warnings=(text, "<fuzz>"))
    ]
    failed = [encode(record(status="failed", reason="=<fuzz>", model="<fuzz"))]
    return [b"\n".join(lines) + b"\0" + side, b"\n".join(lines[:2]), b"\n".join(acting), b"\n".join(failed)]
