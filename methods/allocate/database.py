"""The level database: what every matrix of a model loses at several sparsities, kept as a file.

Errors are those of dense inputs: each matrix alone is pruned, all before it stay as they were. The file says
so, and names all else that its figures depend on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from methods.errors import UserError
from methods.interface import BlockSource, Matrix, Run
from methods.layerwise.rule import Budget, Problem, Rule, Statistic
from methods.layerwise.select import round_half_up
from methods.stream.dense import dense_moments
from methods.stream.sink import write_json
from methods.stream.text import text_hash

__all__ = ["Database", "Key", "build", "key_of", "load", "path_of", "save"]

FORMAT = "prune-bench levels"
VERSION = 1
_INPUTS = "dense"
_SOURCES = ("methods.layerwise", "methods.moments", "methods.stream", "methods.families", "methods.kernels")


@dataclass(frozen=True, slots=True)
class Key:
    """What the errors depend on: databases of equal keys hold the same figures."""

    model: str
    """Revision or file hash of the checkpoint."""
    rule: str
    parameters: str
    """The rule's, defaults included."""
    levels: tuple[str, ...]
    """Shares removed, ascending."""
    text: str
    """Hash of the calibration tokens."""
    seed: int
    dtype: str
    hessian_dtype: str
    device: str
    code: str
    """Digest of the modules that compute the errors."""


@dataclass(frozen=True, slots=True)
class Database:
    """Relative squared output errors |X(W-Ŵ)ᵀ|² / |XWᵀ|² by (block, matrix name), one for every level of the key."""

    key: Key
    seconds: float
    errors: Mapping[tuple[int, str], tuple[float, ...]]


def key_of(source: BlockSource, tokens: Tensor, rule: Rule, levels: Sequence[Fraction], run: Run) -> Key:
    """The key of a database of these levels, by this rule, on these calibration tokens."""
    return Key(
        model=run.model,
        rule=rule.name,
        parameters=repr(rule),
        levels=tuple(map(str, levels)),
        text=text_hash(tokens.cpu().numpy()),
        seed=run.seed,
        dtype=str(source.dtype).removeprefix("torch."),
        hessian_dtype=str(run.hessian_dtype).removeprefix("torch."),
        device=source.device.type,
        code=_code(),
    )


def build(source: BlockSource, tokens: Tensor, rule: Rule, key: Key, run: Run) -> Database:
    """Prune every matrix alone at every level, on dense inputs. Raises UserError, HessianError, NonFiniteError."""
    began = time.perf_counter()
    levels = [Fraction(level) for level in key.levels]
    errors: dict[tuple[int, str], tuple[float, ...]] = {}
    for block in dense_moments(source, tokens, rule.needs | Statistic.GRAM, run):
        for matrix, weight, moments in block.matrices():
            whole = moments.gram.energy(weight)
            found = []
            for level in levels:
                budget = Budget(remove=round_half_up(level * matrix.size))
                generator = run.generator(block.index, matrix.name)
                solved = rule.solve(
                    Problem(block.index, matrix, weight.clone(), budget, moments, generator)
                ).weight
                found.append(moments.gram.energy(weight - solved) / whole if whole > 0 else 0.0)
            errors[block.index, matrix.name] = tuple(found)
        del block  # two blocks' Hessians may not lie in memory at once
    return Database(key, time.perf_counter() - began, errors)


def path_of(folder: Path, key: Key) -> Path:
    """Where a run keeps the database of this key."""
    name = hashlib.sha256(json.dumps(dataclasses.asdict(key), sort_keys=True).encode()).hexdigest()
    return folder / "levels" / f"{key.rule}-{name[:16]}.json"


def save(path: Path, database: Database) -> None:
    """Write the file, whole or not at all. Raises MachineError."""
    matrices = [
        {"block": block, "name": name, "errors": list(errors)}
        for (block, name), errors in database.errors.items()
    ]
    write_json(
        path,
        {
            "format": FORMAT,
            "version": VERSION,
            "inputs": _INPUTS,
            "key": dataclasses.asdict(database.key),
            "seconds": database.seconds,
            "matrices": matrices,
        },
    )


def load(path: Path, key: Key, source: BlockSource) -> Database:
    """The database in a file. Raises UserError where it is none, damaged, or of another key."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(dataclasses.asdict(key)))
        if (value["format"], value["version"], value["inputs"]) != (FORMAT, VERSION, _INPUTS):
            raise UserError(f"{path}: no level database of version {VERSION}; remove it")
        if value["key"] != wanted:
            raise UserError(f"{path}: a level database of other work; remove it")
        errors = dict(_matrix(entry, len(key.levels)) for entry in value["matrices"])
        seconds = float(value["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); remove it") from None
    if set(errors) != set(_matrices(source)) or not 0 <= seconds < math.inf:
        raise UserError(f"{path}: damaged (not this model's matrices); remove it")
    return Database(key, seconds, errors)


def _matrix(entry: Any, levels: int) -> tuple[tuple[int, str], tuple[float, ...]]:
    errors = tuple(float(error) for error in entry["errors"])
    if len(errors) != levels or not all(0 <= error < math.inf for error in errors):
        raise ValueError("errors")
    return (int(entry["block"]), str(entry["name"])), errors


def _matrices(source: BlockSource) -> Iterator[tuple[int, str]]:
    matrices: Sequence[Matrix] = source.family.matrices(source.shape)
    for index in range(source.shape.blocks):
        for matrix in matrices:
            yield index, matrix.name


def _code() -> str:
    """Digest of every module that the errors are computed by, this one included."""
    found = hashlib.sha256(Path(__file__).read_bytes())
    for name in _SOURCES:
        spec = find_spec(name)
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            for path in sorted(Path(folder).rglob("*.py")):
                found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]
