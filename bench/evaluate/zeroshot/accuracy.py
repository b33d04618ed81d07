"""Zero-shot accuracy through lm-evaluation-harness, on a model in memory.

Prompts, answers and scoring are the harness's own; from a data folder only the place of the data differs.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub.constants
import lm_eval.api.task
import numpy as np
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from numpy.typing import NDArray
from torch import Tensor

from bench.evaluate.zeroshot.tasks import TaskFile, find, split_files
from bench.text.documents import hub_answers
from methods.errors import DataUnavailable, UnsupportedModel, UserError
from methods.interface import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BATCH", "Accuracies", "accuracies"]

BATCH = 8
"""Requests in one forward pass: fixed, since padding changes the last bits of a score."""
_METRICS = ("acc", "acc_norm")


@dataclass(frozen=True, slots=True)
class Accuracies:
    """What every item of every task scored: ``items[task][metric]``, float32 [items], 1 where it is right.

    ``metric`` is ``acc`` or ``acc_norm`` (by log-likelihood per byte), as the task defines them; ``versions``
    are those of the harness's tasks. Of ``requests`` scored, ``cut`` lost the start of their text to the context.
    """

    items: dict[str, dict[str, NDArray[np.float32]]]
    versions: dict[str, str]
    requests: int
    cut: int
    seconds: float


def accuracies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    context: int,
    observer: Observer,
    limit: int = 0,
    data_dir: Path | None = None,
) -> Accuracies:
    """Score ``tasks`` at zero shots, the first ``limit`` items of each (0: all), texts cut to ``context`` tokens.

    Data come from ``data_dir``/tasks/<task>/<split>.jsonl, where nothing is asked of the network, or from the
    hub. Raises DataUnavailable, UserError for a task without accuracy, UnsupportedModel where an answer alone
    exceeds the context.
    """
    began = time.perf_counter()
    found = [find(name) for name in tasks]
    offline = data_dir is not None or not hub_answers()
    with _quiet(), _offline(offline), tempfile.TemporaryDirectory(prefix="bench-tasks-") as folder:
        loaded = _load(found, data_dir, Path(folder))
        # A pad token is added to the tokenizer, which others use too.
        scorer = _Scorer(model, copy.deepcopy(tokenizer), context, observer)
        results = simple_evaluate(
            scorer,
            tasks=list(loaded.values()),
            task_manager=TaskManager(include_defaults=False),
            num_fewshot=0,
            limit=limit or None,
            bootstrap_iters=0,
            # Global generators stay as they are: nothing is drawn at zero shots.
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return Accuracies(
        items={task.name: _items(task.name, results["samples"][task.name]) for task in found},
        versions={task.name: str(results["versions"][task.name]) for task in found},
        requests=scorer.requests,
        cut=scorer.cut,
        seconds=time.perf_counter() - began,
    )


def _items(task: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float32]]:
    ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    found = {
        metric: np.array([float(sample[metric]) for sample in ordered], dtype=np.float32)
        for metric in _METRICS
        if all(metric in sample for sample in ordered)
    }
    if "acc" not in found:
        raise UserError(f"--tasks '{task}' gives no accuracy; choose tasks that do, such as piqa")
    return found


def _load(tasks: Sequence[TaskFile], data_dir: Path | None, folder: Path) -> dict[str, Any]:
    """The harness's task objects by name, with their data. Raises DataUnavailable."""
    for task in tasks:
        values = {"include": str(task.path), "task": task.name, **_local(task, data_dir, folder)}
        (folder / f"{task.name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded: dict[str, Any] = {}
    for task in tasks:
        try:
            loaded |= manager.load([task.name])["tasks"]
        # Whatever the client, the network, a parser or a template raises, the user is told where to look.
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            if data_dir is not None:
                path = split_files(task, data_dir)[task.split]
                why = f"{path} cannot be read as {task.name} ({type(error).__name__}: {reason})"
            else:
                why = (
                    f"{task.name} cannot be had from the hub ({task.values.get('dataset_path')}: {reason}); give a "
                    f"folder that holds tasks/{task.name}/{task.split}.jsonl with --data-dir or BENCH_DATA_DIR"
                )
            raise DataUnavailable(why) from None
    return loaded


def _local(task: TaskFile, data_dir: Path | None, folder: Path) -> dict[str, Any]:
    """What a task's config says otherwise where its data lie in a folder."""
    if data_dir is None:
        return {}
    files = split_files(task, data_dir)
    kept = {
        key: split if (split := task.values.get(key)) in files else None
        # The few-shot split is read even at zero shots, so what is absent must not be named.
        for key in ("training_split", "validation_split", "test_split", "fewshot_split")
    }
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(path.resolve()) for split, path in files.items()},
            "cache_dir": str(folder / "cache"),
        },
        **kept,
    }


@contextmanager
def _quiet() -> Iterator[None]:
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


class _Scorer(HFLM):  # type: ignore[misc]  # the harness ships no types
    """The harness's own scorer, with progress, and a count of texts that the context cuts."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int, observer: Observer
    ) -> None:
        # The context is given here, so the tokenizer's own idea of it would only warn.
        tokenizer.model_max_length = 1 << 30
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, max_length=context)
        self.observer = observer
        self.requests = self.cut = self._scored = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:  # noqa: ARG002
        """As the harness does, without its progress bar."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = True,  # noqa: ARG002 - the harness passes it
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest > self.max_length:
            raise UnsupportedModel(
                f"an answer of {longest} tokens exceeds this model's context of {self.max_length}; "
                "choose other --tasks"
            )
        self.requests += len(requests)
        self.cut += sum(len(text) + len(answer) > self.max_length + 1 for _, text, answer in requests)
        self.observer.phase("zeroshot", self.requests)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(
            requests, disable_tqdm=True, override_bs=override_bs
        )
        self.observer.step(self.requests)
        return found

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        logits: Tensor = super()._model_call(inps, attn_mask=attn_mask, labels=labels)
        self._scored = min(self.requests, self._scored + len(inps))
        self.observer.step(self._scored)
        return logits
