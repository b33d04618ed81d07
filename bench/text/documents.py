"""Where texts come from: the embedded Bible, a local data folder, or the Hugging Face hub.

The local folder's layout is ``wikitext2/{train,validation,test}.txt`` (the raw files),
``ptb/{train,validation,test}.txt`` (one sentence a line) and ``c4/{train,train_extra,validation}.jsonl``
(objects with a ``text``). Where a folder is given the hub is not asked. From the hub only data files are
read, never a loading script.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from bench.text import kjv
from methods.errors import DataUnavailable, UserError, reason_of

__all__ = ["Documents", "data_folder", "load"]

OFFICIAL_FILES = {
    ("wikitext2", "test"): "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    ("wikitext2", "validation"): "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
}
"""sha256 of files of wikitext-2-raw-v1 as published; the other sets have no one file to name."""


@dataclass(frozen=True)
class Repository:
    """A data set on the hub: parquet or JSON files by split, and the column that holds the text."""

    name: str
    revision: str
    files: dict[str, str]
    column: str


REPOSITORIES = {
    "wikitext2": Repository(
        "Salesforce/wikitext",
        "main",
        {split: f"wikitext-2-raw-v1/{split}-*.parquet" for split in ("train", "validation", "test")},
        "text",
    ),
    # The repository's main branch holds a loading script; the hub keeps its parquet form on this branch.
    "ptb": Repository(
        "ptb-text-only/ptb_text_only",
        "refs/convert/parquet",
        {split: f"penn_treebank/{split}/*.parquet" for split in ("train", "validation", "test")},
        "sentence",
    ),
    "c4": Repository(
        "allenai/c4",
        "main",
        {
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
        "text",
    ),
}


class Column(Sequence[str]):
    """One column of a ``datasets`` table, read row by row: a C4 shard is not copied into memory."""

    def __init__(self, table: Any, name: str) -> None:
        self._table, self._name = table, name

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return str(self._table[index][self._name])

    def __iter__(self) -> Iterator[str]:
        for rows in self._table.iter(batch_size=1000):
            yield from rows[self._name]


@dataclass(frozen=True)
class Documents:
    """Documents of a split in order, and where they are from, in JSON types.

    ``origin`` has ``source`` (package, local, hub), ``revision``, ``file``, ``official`` (whether this is
    known to be the published text) and what else identifies it.
    """

    texts: Sequence[str]
    origin: dict[str, Any] = field(default_factory=dict)


def data_folder(given: Path | None) -> Path | None:
    """The folder ``given``, else ``BENCH_DATA_DIR``, else None. Raises UserError where it is no folder."""
    named = str(given) if given is not None else os.environ.get("BENCH_DATA_DIR", "")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        option = "--data-dir" if given is not None else "BENCH_DATA_DIR"
        raise UserError(f"{option} {named[:200]!r} is no folder; give one that holds wikitext2/, ptb/ or c4/")
    return folder


def load(dataset: str, split: str, data_dir: Path | None) -> Documents:
    """Documents of a split of ``kjv``, ``wikitext2``, ``ptb`` or ``c4``.

    Raises DataUnavailable where the file is missing, empty or malformed, or the hub does not have it or
    does not answer; UserError where the data folder is none.
    """
    if dataset == "kjv":
        origin = {
            "source": "package",
            "revision": f"{kjv.DISTRIBUTION}=={kjv.VERSION}",
            "file": kjv.SOURCE_FILE,
            "text_sha256": kjv.TEXT_SHA256,
            "split_seed": kjv.SPLIT_SEED,
            "official": True,
        }
        return Documents(tuple(kjv.documents(split)), origin)
    folder = data_folder(data_dir)
    return _from_hub(dataset, split) if folder is None else _from_folder(folder, dataset, split)


def local_file(folder: Path, dataset: str, split: str) -> Path:
    """Path of a split in a data folder."""
    return folder / dataset / f"{split}.{'jsonl' if dataset == 'c4' else 'txt'}"


def _from_folder(folder: Path, dataset: str, split: str) -> Documents:
    path = local_file(folder, dataset, split)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        there = f"there is {', '.join(beside)}" if beside else f"there is nothing in {path.parent}"
        raise DataUnavailable(
            f"no {dataset}/{path.name} in the data folder {folder} ({there}); put it there,"
            " or use the hub: leave out --data-dir and BENCH_DATA_DIR"
        )
    stamp = path.stat()
    texts, digest = _read(path, dataset, stamp.st_mtime_ns, stamp.st_size)
    official = OFFICIAL_FILES.get((dataset, split)) == digest
    origin = {"source": "local", "revision": f"sha256:{digest[:16]}", "file": f"{dataset}/{path.name}"}
    return Documents(texts, {**origin, "file_sha256": digest, "official": official})


LARGEST = 4 << 30
"""Bytes of the largest local file that is read: one C4 shard is 0.8 GB."""


@lru_cache(maxsize=4)
def _read(path: Path, dataset: str, changed: int, size: int) -> tuple[tuple[str, ...], str]:  # noqa: ARG001
    """Documents and sha256 of a local file; time of change and size make the cache notice an edited file."""
    if size > LARGEST:
        raise DataUnavailable(f"{path} has {size:,} bytes; at most {LARGEST:,} are read: give a part of it")
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise DataUnavailable(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataUnavailable(f"{path} is not UTF-8 (byte {error.start}); convert it") from None
    if not text.strip():
        raise DataUnavailable(f"{path} is empty; it should hold the text of {dataset}")
    documents = _parse_json(path, text) if dataset == "c4" else _parse_lines(dataset, text)
    return documents, hashlib.sha256(raw).hexdigest()


def _parse_lines(dataset: str, text: str) -> tuple[str, ...]:
    """Rows as on the hub: WikiText keeps a line's end and empties blank ones, PTB strips its lines."""
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    if dataset == "ptb":
        return tuple(line.strip() for line in lines)
    return tuple(f"{line}\n" if line.strip() else "" for line in lines)


def _parse_json(path: Path, text: str) -> tuple[str, ...]:
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataUnavailable(
                f'{path} line {number} is no JSON object with a "text"; each line should be one'
            )
        documents.append(row["text"])
    return tuple(documents)


def _from_hub(dataset: str, split: str) -> Documents:
    repository = REPOSITORIES[dataset]
    if split not in repository.files:
        raise DataUnavailable(
            f"{dataset} has no split {split!r} on the hub; it has {', '.join(repository.files)}"
        )
    table = _fetch(dataset, repository, split)
    if len(table) == 0 or repository.column not in table.column_names:
        raise DataUnavailable(
            f"{repository.name} {repository.files[split]} has {len(table)} rows and columns"
            f" {', '.join(table.column_names)}; a column {repository.column!r} was expected"
        )
    origin = {"source": "hub", "revision": _revision(table, repository), "file": repository.files[split]}
    return Documents(
        Column(table, repository.column), {**origin, "repository": repository.name, "official": True}
    )


def _fetch(dataset: str, repository: Repository, split: str) -> Any:
    """The split's table, from the cache of ``datasets`` or the hub."""
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = not hub_answers()
    try:
        return datasets.load_dataset(
            repository.name,
            data_files={split: repository.files[split]},
            split=split,
            revision=repository.revision,
        )
    # Whatever the client, the network or a parser raises, the user is told how to do without.
    except Exception as error:
        reason = reason_of(error)
        raise DataUnavailable(
            f"{dataset}/{split} cannot be had from the hub ({repository.name}: {reason}); give a folder"
            f" that holds {local_file(Path(), dataset, split)} with --data-dir or BENCH_DATA_DIR"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def hub_answers() -> bool:
    """Whether the hub answers within seconds; False too where HF_HUB_OFFLINE asks not to try.

    The client's own retries would take half a minute to find out.
    """
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5.0)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True


def _revision(table: Any, repository: Repository) -> str:
    """The commit that the data files were resolved to, where the table tells; else the name of the branch."""
    for address in getattr(table.info, "download_checksums", None) or {}:
        found = re.search(r"@([0-9a-f]{40})(?:/|$)", address)
        if found:
            return found.group(1)
    return repository.revision
