"""Accuracy through lm-evaluation-harness, on a model in memory: prompts, answers and what counts as right are its own."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.evaluator import evaluate
from numpy.typing import NDArray

from bench.evaluate.zeroshot.loading import load, quiet
from bench.evaluate.zeroshot.scorer import Scorer
from methods.errors import UserError
from methods.inference.served import Served
from methods.interface import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Accuracies", "accuracies"]

_METRICS = ("acc", "acc_norm")


@dataclass(frozen=True, slots=True)
class Accuracies:
    """What every item of every task scored: ``items[task][metric]``, float32 [items], 1 where it is right.

    ``metric`` is ``acc`` or ``acc_norm`` (by log-likelihood per character of the answer), as the task defines them; NaN where a
    log-likelihood is not finite. ``versions`` are those of the harness's tasks, ``missing`` says why optional tasks cannot
    be had, ``awaited`` which of them the hub may give another time. Of ``requests`` scored, ``cut`` lost the start of their
    text to the context. ``tokens`` is the work as the requests state it, each by itself; ``computed`` tokens went through
    the blocks, ``logits`` of them through the head, in ``scoring`` of the ``seconds``.
    """

    items: dict[str, dict[str, NDArray[np.float32]]]
    versions: dict[str, str]
    missing: dict[str, str]
    awaited: tuple[str, ...]
    requests: int
    cut: int
    tokens: int
    computed: int
    logits: int
    scoring: float
    seconds: float


def accuracies(
    model: Served,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    context: int,
    batch_tokens: int,
    observer: Observer,
    optional: Sequence[str] = (),
    limit: int = 0,
    shots: int = 0,
    data_dir: Path | None = None,
) -> Accuracies:
    """Score ``tasks``, and those of ``optional`` that can be had, behind ``shots`` solved examples.

    The first ``limit`` items of each (0: all), texts cut to ``context`` tokens, ``batch_tokens`` at a time. Data come from
    ``data_dir``/tasks/<task>/<split>.jsonl, where nothing is asked of the network, from the hub, or with us. Raises
    DataUnavailable, UserError for a task without accuracy, UnsupportedModel where an answer alone exceeds the context.
    """
    began = time.perf_counter()
    loaded = load(tasks, optional, data_dir=data_dir, shots=shots)
    # The context is given here, so the tokenizer's own idea of it would only warn.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 1 << 30
    scorer = Scorer(model, tokenizer, context=context, batch_tokens=batch_tokens, observer=observer)
    with quiet():
        results = evaluate(
            scorer,
            {"tasks": dict(loaded.tasks), "groups": {}, "group_map": {}},
            limit=limit or None,
            bootstrap_iters=0,
        )
    return Accuracies(
        items={name: _items(name, results["samples"][name]) for name in sorted(loaded.tasks)},
        versions={name: str(results["versions"][name]) for name in loaded.tasks},
        missing=dict(loaded.missing),
        awaited=loaded.awaited,
        requests=scorer.requests,
        cut=scorer.cut,
        tokens=scorer.tokens,
        computed=scorer.computed,
        logits=scorer.logits,
        scoring=scorer.seconds,
        seconds=time.perf_counter() - began,
    )


def _items(task: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float32]]:
    ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    # The likeliest of choices that are no numbers would be the first one.
    known = np.array([_finite(sample) for sample in ordered])
    found = {
        metric: np.where(known, [float(sample[metric]) for sample in ordered], np.nan).astype(np.float32)
        for metric in _METRICS
        if all(metric in sample for sample in ordered)
    }
    if "acc" not in found:
        raise UserError(f"--tasks '{task}' gives no accuracy; choose tasks that do, such as piqa")
    return found


def _finite(sample: Mapping[str, Any]) -> bool:
    return all(math.isfinite(score) for responses in sample["resps"] for score, _ in responses)
