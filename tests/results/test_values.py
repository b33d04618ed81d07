"""Raw values: named by hash, verified on load, never outside their folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from bench.results.values import load_values, save_values
from methods.errors import MachineError, StoreError


def test_round_trip_and_sharing(tmp_path: Path) -> None:
    arrays = {
        "nll": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2],
        "flips": np.array([True, False]),
        "none": np.zeros(0),
    }
    name = save_values(tmp_path, arrays)
    again = save_values(tmp_path, dict(reversed(list(arrays.items()))))
    assert again == name
    assert len(list((tmp_path / "values").iterdir())) == 1
    loaded = load_values(tmp_path, name)
    assert set(loaded) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(loaded[key], array)
        assert loaded[key].dtype == array.dtype


def test_an_altered_file_is_refused_and_written_anew(tmp_path: Path) -> None:
    name = save_values(tmp_path, {"a": np.ones(3)})
    path = tmp_path / "values" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="altered or cut short"):
        load_values(tmp_path, name)
    assert save_values(tmp_path, {"a": np.ones(3)}) == name
    np.testing.assert_array_equal(load_values(tmp_path, name)["a"], np.ones(3))
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        load_values(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["", "../store.json", "/etc/passwd", "a" * 64, "A" * 64 + ".safetensors", "x\n"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="names no values file"):
        load_values(tmp_path, name)


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be stored"):
        save_values(tmp_path, {"a": np.array([object()])})


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(MachineError, match="make room"):
        save_values(tmp_path, {"a": np.ones(3)})
    assert list((tmp_path / "values").iterdir()) == []
