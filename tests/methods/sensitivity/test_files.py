"""Sensitivities on disk: the same figures back, and one line for what is wrong or differs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MemorySource, tiny

from methods.errors import UserError
from methods.interface import Run
from methods.sensitivity.estimate import ESTIMATORS, estimate
from methods.sensitivity.files import Key, Stored, find, load, save
from methods.stream.text import text_hash

TOKENS = torch.arange(64).view(2, 2, 16) % 101
KEY = Key("rev-1", "float32", "fisher", 2, 2, 16, text_hash(TOKENS.numpy()), 0)


@pytest.fixture(scope="module")
def source() -> MemorySource:
    return tiny("opt")[1]


@pytest.fixture(scope="module")
def stored(source: MemorySource) -> Stored:
    return Stored(KEY, ESTIMATORS["fisher"].sign, 1.5, estimate(source, TOKENS, "fisher", Run()))


@pytest.fixture
def path(tmp_path: Path, stored: Stored) -> Path:
    save(tmp_path / "some.json", stored)
    return tmp_path / "some.json"


def test_comes_back_to_the_bit(path: Path, source: MemorySource, stored: Stored) -> None:
    assert load(path, source) == stored
    assert find(path, KEY, source) == stored


def test_says_what_the_figures_are(path: Path) -> None:
    value = json.loads(path.read_text())
    assert value["unit"] == "nat"
    assert value["sign"].startswith("never negative")
    first = value["matrices"][0]
    assert first["mean"] == pytest.approx(sum(first["probes"]) / 2)
    assert first["standard_error"] > 0


def test_what_differs_is_said_in_one_line(path: Path, source: MemorySource) -> None:
    other = dataclasses.replace(KEY, model="rev-2", seed=3)
    with pytest.raises(UserError) as caught:
        find(path, other, source)
    assert str(caught.value) == (
        f"{path}: other sensitivities than this run's: model rev-1 (here rev-2), seed 0 (here 3); "
        "give a file that matches, or leave mixed.file out to have them computed"
    )


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Key)])
def test_every_entry_of_the_key_counts(field: str, path: Path, source: MemorySource) -> None:
    here = {"estimator": "hutchinson"}.get(field, "x" if isinstance(getattr(KEY, field), str) else 9)
    with pytest.raises(UserError, match=rf"{field} .* \(here {here}\)"):
        find(path, dataclasses.replace(KEY, **{field: here}), source)


def test_a_folder_is_searched(path: Path, source: MemorySource, stored: Stored) -> None:
    other = dataclasses.replace(stored, key=dataclasses.replace(KEY, seed=1))
    save(path.parent / "other.json", other)
    assert find(path.parent, KEY, source).key.seed == 0
    assert find(path.parent, other.key, source).key.seed == 1
    with pytest.raises(UserError, match=r"none of its 2 files has the sensitivities of model rev-1.* seed 7"):
        find(path.parent, dataclasses.replace(KEY, seed=7), source)


def test_another_model_is_refused(path: Path) -> None:
    _, wider = tiny("opt", ffn_dim=48)
    with pytest.raises(
        UserError, match="has block 0 fc1 of 960 weights where the model has block 0 fc1 of 1152"
    ):
        load(path, wider)
    _, longer = tiny("opt", num_hidden_layers=4)
    with pytest.raises(UserError, match="sensitivities of 18 matrices, the model has 24"):
        load(path, longer)


Change = Callable[[dict[str, Any]], object]
HOSTILE: list[tuple[Change, str]] = [
    (lambda v: v.pop("format"), "no file of sensitivities"),
    (lambda v: v.update(version=2), "version 2 of the format, this program reads 1"),
    (lambda v: v.update(version=[1]), r"version \[1\] of the format"),
    (lambda v: v.pop("key"), "a key of model, dtype"),
    (lambda v: v["key"].update(more=1), "a key of model, dtype"),
    (lambda v: v["key"].update(seed=True), "a whole number for the key's seed"),
    (lambda v: v["key"].update(seed=-1), "a whole number for the key's seed"),
    (lambda v: v["key"].update(model=7), "text for the key's model"),
    (lambda v: v["key"].update(estimator="magic"), r"an estimator \(fisher, hutchinson, inputs\)"),
    (lambda v: v["key"].update(probes=0), "one probe at least"),
    (lambda v: v["key"].update(probes=3), "3 finite numbers in every matrix's probes"),
    (lambda v: v.update(seconds=-1), "matrices and seconds"),
    (lambda v: v.update(matrices={}), "matrices and seconds"),
    (lambda v: v["matrices"].pop(), "sensitivities of 17 matrices, the model has 18"),
    (lambda v: v["matrices"].reverse(), "where the model has block 0 self_attn.q_proj"),
    (lambda v: v["matrices"][3].pop("mean"), "a mapping of block, mean, name"),
    (lambda v: v["matrices"].__setitem__(3, [1]), "a mapping of block, mean, name"),
    (lambda v: v["matrices"][3].update(probes=[1.0, float("nan")]), "2 finite numbers"),
    (lambda v: v["matrices"][3].update(probes=[1.0, float("inf")]), "2 finite numbers"),
    (lambda v: v["matrices"][3].update(probes=[1.0, 10**400]), "2 finite numbers"),
    (lambda v: v["matrices"][3].update(probes=[1.0, "2"]), "2 finite numbers"),
    (lambda v: v["matrices"][3].update(probes=[1.0, -2.0]), "fisher traces of 0 or more"),
    (lambda v: v["matrices"][3].update(name="x" * 500), "has block 0 x{37}\\.\\.\\. of"),
]


@pytest.mark.parametrize(("change", "line"), HOSTILE, ids=[line for _, line in HOSTILE])
def test_hostile_files_get_one_line(change: Change, line: str, path: Path, source: MemorySource) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=line) as caught:
        load(path, source)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff\xfe", "null", "[1]"])
def test_what_is_no_json_mapping_gets_one_line(text: str, tmp_path: Path, source: MemorySource) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"not JSON|no file of sensitivities"):
        load(path, source)


def test_a_missing_or_huge_file_is_named(
    tmp_path: Path, path: Path, source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"absent.json: cannot be read \(No such file or directory\)"):
        load(tmp_path / "absent.json", source)
    monkeypatch.setattr("methods.sensitivity.files._MOST_BYTES", 100)
    with pytest.raises(UserError, match="larger than 0 MiB"):
        load(path, source)
