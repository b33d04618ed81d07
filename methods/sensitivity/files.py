"""Sensitivities as files: JSON that names what it was made from, and is refused where that differs.

A file is read as anybody's: its form, its numbers and its matrices are checked before anything uses them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from methods.errors import UserError
from methods.interface import BlockSource
from methods.sensitivity.estimate import ESTIMATORS, Sensitivity
from methods.stream.sink import write_json

__all__ = ["Key", "Stored", "find", "load", "save"]

FORMAT = "prune-bench sensitivities"
VERSION = 1
_MOST_BYTES = 64 << 20
_MATRIX = {"block", "name", "weights", "mean", "standard_error", "probes"}


@dataclass(frozen=True, slots=True)
class Key:
    """What sensitivities depend on: two estimates of equal keys are the same figures, but for rounding."""

    model: str
    """Revision or file hash of the checkpoint."""
    dtype: str
    """What the embeddings were rounded to; the rest is computed in float32."""
    estimator: str
    probes: int
    windows: int
    length: int
    text: str
    """Hash of the probes' tokens."""
    seed: int

    def differences(self, other: Key) -> str:
        """``seed 0 (here 1), ...`` for every entry in which ``other``, that of this run, differs."""
        names = [field.name for field in dataclasses.fields(self)]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return ", ".join(
            f"{name} {_brief(mine)} (here {_brief(here)})" for name, mine, here in pairs if mine != here
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Sensitivities with their key, what their sign means, and the seconds that they took."""

    key: Key
    sign: str
    seconds: float
    matrices: tuple[Sensitivity, ...]


def save(path: Path, stored: Stored) -> None:
    """Write the file, whole or not at all. Raises MachineError."""
    matrices = [
        {
            "block": matrix.block,
            "name": matrix.name,
            "weights": matrix.weights,
            "mean": matrix.mean,
            "standard_error": matrix.error,
            "probes": list(matrix.probes),
        }
        for matrix in stored.matrices
    ]
    write_json(
        path,
        {
            "format": FORMAT,
            "version": VERSION,
            "unit": ESTIMATORS[stored.key.estimator].unit,
            "key": dataclasses.asdict(stored.key),
            "sign": stored.sign,
            "seconds": stored.seconds,
            "matrices": matrices,
        },
    )


def find(path: Path, key: Key, source: BlockSource) -> Stored:
    """The sensitivities of ``key`` in the file ``path``, or in the one file of the folder ``path`` that has them.

    Raises UserError: a file that is none, another model's matrices, or what differs.
    """
    if not path.is_dir():
        stored = load(path, source)
        if stored.key != key:
            raise UserError(
                f"{path}: other sensitivities than this run's: {stored.key.differences(key)}; give a file "
                "that matches, or leave mixed.file out to have them computed"
            )
        return stored
    files = sorted(path.glob("*.json"))
    for file in files:
        if _key(_read(file), file) == key:
            return load(file, source)
    raise UserError(
        f"{path}: none of its {len(files)} files has the sensitivities of model {_brief(key.model)}, "
        f"{key.estimator}, {key.probes} probes, text {key.text}, seed {key.seed}; "
        "leave mixed.file out to have them computed"
    )


def load(path: Path, source: BlockSource) -> Stored:
    """The sensitivities in a file, one for every matrix of the model. Raises UserError, one line."""
    value = _read(path)
    key = _key(value, path)
    entries, seconds = value.get("matrices"), value.get("seconds")
    if not isinstance(entries, list) or not _number(seconds) or seconds < 0:
        raise _broken(path, "matrices and seconds")
    expected = [
        (index, matrix.name, matrix.size)
        for index in range(source.shape.blocks)
        for matrix in source.family.matrices(source.shape)
    ]
    if len(entries) != len(expected):
        raise UserError(
            f"{path}: sensitivities of {len(entries)} matrices, the model has {len(expected)}; "
            "give a file of this model"
        )
    found = tuple(_matrix(entry, wanted, key, path) for entry, wanted in zip(entries, expected, strict=True))
    return Stored(key, ESTIMATORS[key.estimator].sign, float(seconds), found)


def _matrix(entry: object, wanted: tuple[int, str, int], key: Key, path: Path) -> Sensitivity:
    block, name, weights = wanted
    if not isinstance(entry, dict) or set(entry) != _MATRIX:
        raise _broken(path, f"a mapping of {', '.join(sorted(_MATRIX))} for every matrix")
    if (entry["block"], entry["name"], entry["weights"]) != wanted:
        raise UserError(
            f"{path}: has block {_brief(entry['block'])} {_brief(entry['name'])} of {_brief(entry['weights'])} "
            f"weights where the model has block {block} {name} of {weights}; give a file of this model"
        )
    probes = entry["probes"]
    if not isinstance(probes, list) or len(probes) != key.probes or not all(map(_number, probes)):
        raise _broken(path, f"{key.probes} finite numbers in every matrix's probes")
    if ESTIMATORS[key.estimator].positive and min(probes) < 0:
        raise _broken(path, f"{key.estimator} traces of 0 or more")
    return Sensitivity(block, name, weights, tuple(map(float, probes)))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: larger than {_MOST_BYTES >> 20} MiB; give a file of sensitivities")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a file of sensitivities, or leave mixed.file out"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; give a file of sensitivities, or leave mixed.file out") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path}: no file of sensitivities; give one that a run left in OUT/sensitivities")
    if value.get("version") != VERSION:
        raise UserError(
            f"{path}: version {_brief(value.get('version'))} of the format, this program reads {VERSION}; "
            "have them computed again"
        )
    return value


def _key(value: Mapping[str, Any], path: Path) -> Key:
    entry = value.get("key")
    kinds = {field.name: int if field.type == "int" else str for field in dataclasses.fields(Key)}
    if not isinstance(entry, dict) or set(entry) != set(kinds):
        raise _broken(path, f"a key of {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(entry[name]) is not kind or (kind is int and entry[name] < 0):
            raise _broken(path, f"{'a whole number' if kind is int else 'text'} for the key's {name}")
    if entry["estimator"] not in ESTIMATORS or entry["probes"] < 1:
        raise _broken(path, f"an estimator ({', '.join(ESTIMATORS)}) and one probe at least")
    return Key(**entry)


def _number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # false for a NaN, and for whole numbers beyond any float


def _brief(value: object) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 40 else f"{text[:37]}..."


def _broken(path: Path, wanted: str) -> UserError:
    return UserError(f"{path}: damaged, it should hold {wanted}; have the sensitivities computed again")
