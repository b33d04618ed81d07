"""Tasks of lm-evaluation-harness with their data, from a folder, the hub, or what ships with us.

Prompts and answers are the configs' own; from a data folder only the place of the data differs.
"""

from __future__ import annotations

import atexit
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import lm_eval.api.task
import yaml
from lm_eval.tasks import TaskManager

from bench.evaluate.zeroshot.tasks import TaskFile, data_digest, few_shot_split, find, packaged, split_files
from bench.text.documents import hub_answers
from methods.errors import DataUnavailable, PruneBenchError, reason_of

__all__ = ["Loaded", "load", "obtainable", "quiet"]

_READ = ("acc", "acc_norm")
"""Metrics that are read; others may fail on a broken model, as the exponential of a perplexity does."""
_SEED = 1234
"""The harness's own seed of the few-shot draw."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The harness's task objects by name, and why each task of ``optional`` ones that is missing cannot be had.

    Those of ``missing`` that the hub did not give, which it may another time, are ``awaited``.
    """

    tasks: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)
    awaited: tuple[str, ...] = ()


_kept: dict[tuple[Any, ...], tuple[Loaded, tempfile.TemporaryDirectory[str]]] = {}
"""The last tasks loaded: the cells of a grid ask for the same ones, and reading them takes longer than scoring a few."""


def load(
    required: Sequence[str], optional: Sequence[str] = (), *, data_dir: Path | None = None, shots: int = 0
) -> Loaded:
    """Tasks ready to be asked, at ``shots`` examples in front of every item.

    Raises DataUnavailable or UserError for a required task that cannot be had, DataUnavailable where none of either can.
    """
    digests = tuple(_digest(name, data_dir) for name in (*required, *optional))
    key = (tuple(required), tuple(optional), data_dir, shots, digests)
    if key not in _kept:
        _forget()
        folder = tempfile.TemporaryDirectory(prefix="bench-tasks-")
        try:
            _kept[key] = (_load(required, optional, data_dir, shots, Path(folder.name)), folder)
        except BaseException:
            folder.cleanup()
            raise
    loaded = _kept[key][0]
    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed=_SEED)
    return loaded


def obtainable(name: str, shots: int = 0) -> bool:
    """Whether the hub gives a task now; if so, what was loaded without it is forgotten."""
    try:
        with tempfile.TemporaryDirectory(prefix="bench-tasks-") as folder:
            _load([name], (), None, shots, Path(folder))
    except PruneBenchError:
        return False
    _forget()
    return True


@atexit.register
def _forget() -> None:
    for _, folder in _kept.values():
        folder.cleanup()
    _kept.clear()


def _digest(name: str, data_dir: Path | None) -> str:
    try:
        return data_digest([name], str(data_dir or ""))
    except PruneBenchError:
        return ""


def _load(
    required: Sequence[str], optional: Sequence[str], data_dir: Path | None, shots: int, folder: Path
) -> Loaded:
    declared: dict[str, TaskFile] = {}
    missing: dict[str, str] = {}
    awaited: list[str] = []
    tasks: dict[str, Any] = {}
    with quiet(), _offline(data_dir is not None or not hub_answers()):
        for name in (*required, *optional):
            try:
                task = find(name)
                values = {"include": str(task.path), "task": name, **_changes(task, data_dir, shots, folder)}
                (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
                declared[name] = task
            except PruneBenchError as error:
                if name in required:
                    raise
                missing[name] = str(error)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        for name, task in declared.items():
            try:
                tasks[name] = manager.load([name])["tasks"][name]
                # a config that fixes zero shots is left alone, as the harness leaves it
                if tasks[name].get_config("num_fewshot") != 0:
                    tasks[name].set_config(key="num_fewshot", value=shots)
            # Whatever the client, the network, a parser or a template raises, the user is told where to look.
            except Exception as error:
                why = _reason(task, data_dir, error)
                if name in required:
                    raise DataUnavailable(why) from None
                missing[name] = why
                if data_dir is None and not packaged(task):
                    awaited.append(name)
    if not tasks:
        raise DataUnavailable(next(iter(missing.values()), "no --tasks are given"))
    return Loaded(tasks, missing, tuple(awaited))


def _reason(task: TaskFile, data_dir: Path | None, error: Exception) -> str:
    reason = reason_of(error)
    if packaged(task):
        return f"{task.name} cannot be made ({type(error).__name__}: {reason})"
    if data_dir is not None:
        path = split_files(task, data_dir)[task.split]
        return f"{path} cannot be read as {task.name} ({type(error).__name__}: {reason})"
    return (
        f"{task.name} cannot be had from the hub ({task.values.get('dataset_path')}: {reason}); give a "
        f"folder that holds tasks/{task.name}/{task.split}.jsonl with --data-dir or BENCH_DATA_DIR"
    )


def _changes(task: TaskFile, data_dir: Path | None, shots: int, folder: Path) -> dict[str, Any]:
    """What a task's config says otherwise: where its data lie, and which metrics are read."""
    if shots:
        few_shot_split(task, data_dir, shots)
    listed = task.values.get("metric_list") or []
    read = [entry for entry in listed if entry.get("metric") in _READ]
    changes: dict[str, Any] = {"metric_list": read} if read and len(read) < len(listed) else {}
    if data_dir is None or packaged(task):
        return changes
    files = split_files(task, data_dir)
    kept = {
        key: split if (split := task.values.get(key)) in files else None
        # The few-shot split is read even at zero shots, so what is absent must not be named.
        for key in ("training_split", "validation_split", "test_split", "fewshot_split")
    }
    return {
        **changes,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(path.resolve()) for split, path in files.items()},
            "cache_dir": str(folder / "cache"),
        },
        **kept,
    }


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or log lines of the harness: the observer shows progress."""
    logger, bars = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level, shown = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = partial(bars, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bars
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _offline(asked: bool) -> Iterator[None]:
    """Where ``asked``, the hub's clients read from disk only; as before afterwards."""
    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [(place, place.HF_HUB_OFFLINE) for place in places]
    for place, value in before:
        place.HF_HUB_OFFLINE = asked or value
    try:
        yield
    finally:
        for place, value in before:
            place.HF_HUB_OFFLINE = value
