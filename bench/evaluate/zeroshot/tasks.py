"""Task configs of lm-evaluation-harness and where their data lie; free of torch and of lm_eval itself.

Only names and plain values are read here. The harness resolves the functions of its own configs when it runs them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.plan.grammar import nearest, shown
from bench.plan.suites import expand, tasks_of
from methods.errors import DataUnavailable, PruneBenchError, UserError

__all__ = [
    "OURS",
    "TaskFile",
    "check",
    "data_digest",
    "describe",
    "few_shot_split",
    "find",
    "packaged",
    "source_of",
    "split_files",
]

OURS = Path(__file__).parent.parent / "kjv_tasks"
"""Folder of the tasks that ship with us."""

_ELSEWHERE = {"boolq": "super_glue/boolq", "copa": "super_glue/copa", "rte": "glue/rte"}
"""Folders that a task's name does not tell."""
_NAMED = re.compile(r"^task: *['\"]?([\w.\-]+)['\"]?\s*$", re.MULTILINE)
_SCORED = ("multiple_choice", "loglikelihood")
_SPLITS = ("training_split", "validation_split", "test_split")


@dataclass(frozen=True, slots=True)
class TaskFile:
    """One task: its name, the YAML file that declares it, and that file's plain values, includes merged."""

    name: str
    path: Path
    values: Mapping[str, Any]

    @property
    def split(self) -> str:
        """The split whose items are scored: the test split where the task has one, else the validation split."""
        return str(self.values.get("test_split") or self.values.get("validation_split") or "")


def check(words: Sequence[str]) -> None:
    """Raises UserError, one line, for an unknown suite and a task that does not exist or whose score is no accuracy."""
    for name in expand(words)[0]:
        find(name)


def packaged(task: TaskFile) -> bool:
    """Whether the task and its items ship with us."""
    return task.path.parent == OURS


def find(name: str) -> TaskFile:
    """The task of that name. Raises UserError with the nearest names where there is none."""
    path = _ours().get(name) or _likely(name) or _all().get(name)
    if path is None:
        raise UserError(
            f"--tasks '{shown(name)}' is no task of lm-evaluation-harness{nearest(name, _all())}; "
            "name single tasks, such as piqa, not groups"
        )
    task = TaskFile(name, path, _values(path))
    kind = task.values.get("output_type")
    if kind not in _SCORED or not task.split:
        raise UserError(
            f"--tasks '{name}' is not scored by accuracy over given answers (its output is {kind or 'unknown'}); "
            f"tasks of type {' or '.join(_SCORED)} are"
        )
    return task


def split_files(task: TaskFile, data_dir: Path) -> dict[str, Path]:
    """Files of a task in a data folder by split; splits that zero shots do without may be absent.

    Raises DataUnavailable naming the file that was looked for.
    """
    folder = data_dir / "tasks" / task.name
    named = {str(task.values[key]) for key in (*_SPLITS, "fewshot_split") if task.values.get(key)}
    found = {split: folder / f"{split}.jsonl" for split in sorted(named)}
    wanted = found[task.split]
    if not wanted.is_file():
        raise DataUnavailable(
            f"{wanted} is not there; {task.name} is scored on its {task.split} split"
            " (leave out --data-dir and BENCH_DATA_DIR to use the hub)"
        )
    return {split: path for split, path in found.items() if path.is_file()}


def few_shot_split(task: TaskFile, data_dir: Path | None, shots: int) -> str:
    """The split that examples are drawn from. Raises DataUnavailable where the task has none, or its file is absent.

    The harness would draw from the very items that are scored.
    """
    split = str(task.values.get("fewshot_split") or task.values.get("training_split") or "")
    if not split:
        raise DataUnavailable(
            f"{task.name} has no split to draw {shots} shots from beside the one scored; leave --shots or the task out"
        )
    if data_dir is not None and not packaged(task):
        path = data_dir / "tasks" / task.name / f"{split}.jsonl"
        if not path.is_file():
            raise DataUnavailable(
                f"{path} is not there, and --shots {shots} draws from it; leave --shots out"
            )
    return split


def data_digest(words: Sequence[str], data_dir: str, shots: int = 0) -> str:
    """What the items of ``--tasks``, and those that shots are drawn from, are: hashes of the local files, or ``hub``.

    Of a suite's tasks those that are absent are named so. Raises DataUnavailable for a single task whose file is.
    """
    single, suites = expand(words)
    facts: dict[str, str] = {}
    for name in tasks_of(words):
        try:
            task = find(name)
            facts[name] = source_of(task, data_dir)
            if shots and data_dir and not packaged(task):
                split = few_shot_split(task, Path(data_dir), shots)
                facts[f"{name}/{split}"] = describe(split_files(task, Path(data_dir))[split])
        except PruneBenchError:
            if name in single:
                raise
            facts[name] = "absent"
    if not suites and set(facts.values()) == {"hub"}:
        return "hub"
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def source_of(task: TaskFile, data_dir: str) -> str:
    """``sha256:`` and the digest of the file that a task's items come from, or ``hub``. Raises DataUnavailable."""
    if packaged(task):
        return describe(task.path)
    return describe(split_files(task, Path(data_dir))[task.split]) if data_dir else "hub"


def describe(path: Path) -> str:
    """``sha256:`` and the digest of a file. Raises DataUnavailable."""
    try:
        stat = path.stat()
        return _sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise DataUnavailable(f"{path} cannot be read ({error.strerror})") from None


@functools.cache
def _sha256(path: Path, _size: int, _changed: int) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _root() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("--eval zeroshot needs lm-evaluation-harness; install it: pip install lm-eval")
    return Path(spec.origin).parent / "tasks"


def _likely(name: str) -> Path | None:
    """The task's file where its folder can be guessed: reading all fourteen thousand takes seconds."""
    if not re.fullmatch(r"[\w.\-]+", name):
        return None
    for folder in (_ELSEWHERE.get(name), name, name.partition("_")[0]):
        if folder and (_root() / folder).is_dir():
            for path in sorted((_root() / folder).glob("*.yaml")):
                if _name_in(path) == name:
                    return path
    return None


@functools.cache
def _ours() -> dict[str, Path]:
    return {path.stem: path for path in OURS.glob("*.yaml")}


@functools.cache
def _all() -> dict[str, Path]:
    found: dict[str, Path] = dict(_ours())
    for path in sorted(_root().rglob("*.yaml")):
        name = _name_in(path)
        if name:
            found.setdefault(name, path)
    return found


def _name_in(path: Path) -> str:
    match = _NAMED.search(path.read_text(encoding="utf-8", errors="replace"))
    return match[1] if match else ""


class _Plain(yaml.SafeLoader):
    """Safe YAML in which a reference to a function is a text; nothing is imported."""


_Plain.add_constructor("!function", lambda _, node: f"!function {node.value}")


@functools.cache
def _values(path: Path, depth: int = 0) -> dict[str, Any]:
    try:
        found = _Plain(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); install lm-eval again"
        ) from None
    if not isinstance(found, dict):
        return {}
    includes = found.pop("include", [])
    merged: dict[str, Any] = {}
    for include in [includes] if isinstance(includes, str) else includes:
        if depth < 8:
            merged |= _values((path.parent / str(include)).resolve(), depth + 1)
    return merged | found
