"""Zero-shot scoring against lm-evaluation-harness itself and a plain loop of transformers, on the same requests.

Every request's log-likelihood must agree to 1e-3, and every item's answer. Times are CPU seconds on one thread, which other
work on the machine moves less than the clock. `BENCH_SPEED_ITEMS` sets the items of each task; with `BENCH_DATA_DIR` the
tasks are real ones, all of them or those of `BENCH_SPEED_TASKS`; `BENCH_SPEED_PEERS=lm_eval` leaves the slower plain loop out.
SmolLM2 is measured where `bench pull smollm2-135m` has put it in the cache.

lm-eval's log-softmax in float32 is 1e-5 off a token with a vocabulary of 49,152, so that an answer of a hundred tokens is 1e-3
off; `BENCH_SPEED_SOFTMAX=float64` has it summed in float64 (its own `softmax_dtype`), slower, for agreement and not for speed.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ratios import on_threads

from bench.evaluate.zeroshot.loading import load, quiet
from bench.evaluate.zeroshot.scorer import Scorer
from bench.models.load import resolve, tokenizer
from bench.plan.machine import batch_tokens
from bench.plan.suites import KJV
from methods.errors import PruneBenchError
from methods.inference.assemble import assemble
from methods.inference.served import serve
from methods.interface import Silent
from methods.stream.source import CheckpointSource

ITEMS = int(os.environ.get("BENCH_SPEED_ITEMS", "8"))
REAL = tuple(
    os.environ.get(
        "BENCH_SPEED_TASKS",
        "piqa,hellaswag,arc_easy,arc_challenge,winogrande,lambada_openai,boolq,openbookqa,rte,copa,sciq",
    ).split(",")
)
PEERS = os.environ.get("BENCH_SPEED_PEERS", "lm_eval,transformers").split(",")
SOFTMAX = os.environ.get("BENCH_SPEED_SOFTMAX") or None
_CACHE = os.environ.get("BENCH_CACHE", "")

Scores = list[tuple[float, bool]]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")


def _timed(call: Callable[[], Scores]) -> tuple[Scores, float]:
    began = time.process_time()
    return call(), time.process_time() - began


def _plain(model: Any, encode: Callable[[str], list[int]], requests: list[Any], context: int) -> Scores:
    """One request after another, as a script on transformers would do it."""
    found: Scores = []
    for text, answer in (request.args for request in requests):
        whole, begin = encode(text.rstrip() + text[len(text.rstrip()) :] + answer), len(encode(text.rstrip()))
        tokens = torch.tensor([whole[-(context + 1) :]])
        with torch.inference_mode():
            scores = model(tokens[:, :-1]).logits[0].float().log_softmax(-1)
        count = len(whole) - begin
        wanted = tokens[0, -count:]
        asked = scores[-count:]
        found.append(
            (
                float(asked.gather(1, wanted[:, None]).sum()),
                bool((asked.argmax(-1) == wanted).all()),
            )
        )
    return found


def _answers(requests: list[Any], scores: Scores) -> list[Any]:
    """By item: the choice taken, or whether the one answer is greedy."""
    pairs = zip(requests, scores, strict=True)
    found = []
    for _, group in groupby(pairs, key=lambda pair: pair[0].doc_id):
        items = [score for _, score in group]
        found.append(int(np.argmax([score for score, _ in items])) if len(items) > 1 else items[0][1])
    return found


@pytest.mark.timeout(3600)  # with many items the harness and the plain loop take their time
@pytest.mark.parametrize("name", ["nano-llama", "smollm2-135m"])
def test_zero_shot_scoring(benchmark: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    if name == "smollm2-135m":
        # the user's own cache, from before the suite put an empty one in its place
        monkeypatch.setenv("BENCH_CACHE", _CACHE)
        try:
            checkpoint = resolve(name)
        except PruneBenchError as error:
            pytest.skip(str(error))
    else:
        checkpoint = resolve(name)
    folder = os.environ.get("BENCH_DATA_DIR", "")
    tasks = REAL if folder else KJV
    with quiet():
        loaded = load(tasks, data_dir=Path(folder) if folder else None).tasks
        for task in loaded.values():
            task.build_all_requests(limit=ITEMS)
    source = CheckpointSource(checkpoint.path)
    words, context = tokenizer(checkpoint), source.shape.positions
    words.model_max_length = 1 << 30
    served, model = serve(source, tune=False), assemble(source)
    ours = Scorer(served, words, context=context, batch_tokens=batch_tokens("cpu"), observer=Silent())
    copied = copy.deepcopy(words)
    harness = HFLM(model, tokenizer=copied, batch_size=8, max_length=context, softmax_dtype=SOFTMAX)
    took = dict.fromkeys(("ours", *PEERS), 0.0)
    worst = dict.fromkeys(PEERS, 0.0)
    with on_threads(1):
        for task in loaded.values():
            requests = task.instances
            scores = {}
            calls: dict[str, Callable[[], Scores]] = {
                "ours": lambda: ours.loglikelihood(requests),  # noqa: B023 - called at once
                "lm_eval": lambda: harness.loglikelihood(requests, disable_tqdm=True),  # noqa: B023
                "transformers": lambda: _plain(model, words.encode, requests, context),  # noqa: B023
            }
            for key in took:
                scores[key], seconds = _timed(calls[key])
                took[key] += seconds
            for key in PEERS:
                assert [greedy for _, greedy in scores[key]] == [greedy for _, greedy in scores["ours"]]
                assert _answers(requests, scores[key]) == _answers(requests, scores["ours"])
                apart = np.subtract(
                    [score for score, _ in scores[key]], [score for score, _ in scores["ours"]]
                )
                worst[key] = max(worst[key], float(np.abs(apart).max()))
        assert max(worst.values()) < 1e-3
        few = next(iter(loaded.values())).instances[:4]
        benchmark.pedantic(lambda: ours.loglikelihood(few), rounds=1)
    told = {f"tokens_per_second_{key}": round(ours.tokens / seconds) for key, seconds in took.items()}
    ratios = {f"ratio_{key}": round(took[key] / took["ours"], 2) for key in PEERS}
    benchmark.extra_info.update(
        items=ITEMS, softmax=SOFTMAX, largest_difference=worst, computed=ours.computed, **told, **ratios
    )
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
