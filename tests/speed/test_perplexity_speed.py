"""Perplexity against lm-evaluation-harness and a plain loop of transformers, on the same windows: tokens/s and agreement.

Times are CPU seconds on one thread, which other work on the machine moves less than the clock; medians of seven rounds for
the nano model. `BENCH_SPEED_WINDOWS` sets how many windows of 512 tokens: ours reads the model once a call, so few say
little. `off_ours` and `off_transformers` are the perplexities of the first four windows relative to those in float64.
SmolLM2 is measured where `bench pull smollm2-135m` has put it in the cache.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np
import pytest
import torch
from perplexity_peers import by_harness, by_transformers
from ratios import on_threads

from bench.evaluate.perplexity import score
from bench.models.load import resolve, tokenizer
from bench.plan.machine import batch_tokens
from bench.text.kjv import documents
from methods.errors import PruneBenchError
from methods.inference.assemble import assemble
from methods.interface import Run
from methods.stream.source import CheckpointSource

WINDOWS = int(os.environ.get("BENCH_SPEED_WINDOWS", "8"))
_CACHE = os.environ.get("BENCH_CACHE", "")


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
@pytest.mark.parametrize("name", ["nano-llama", "smollm2-135m"])
def test_perplexity(benchmark: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    if not name.startswith("nano"):
        # the user's own cache, from before the suite put an empty one in its place
        monkeypatch.setenv("BENCH_CACHE", _CACHE)
    try:
        checkpoint = resolve(name)
    except PruneBenchError as error:
        pytest.skip(str(error))
    source = CheckpointSource(checkpoint.path)
    words, model = tokenizer(checkpoint), assemble(source)
    length = min(512, source.shape.positions)
    tokens = words("\n".join(documents("test")), verbose=False)["input_ids"][: WINDOWS * length]
    windows = torch.tensor(tokens).view(-1, length)
    harness = HFLM(model, tokenizer=words, batch_size=4, max_length=length)
    run = Run(batch_tokens=batch_tokens("cpu"))
    ways = {
        "ours": lambda: score(source, windows, run).loss,
        "lm_eval": lambda: by_harness(harness, windows),
        "transformers": lambda: by_transformers(model, windows),
        "transformers_batched": lambda: by_transformers(model, windows, 4),
    }
    with on_threads(1):
        score(source, windows[:1], run)  # warm
        losses: dict[str, Any] = {}
        times: dict[str, list[float]] = {key: [] for key in ways}
        for _ in range(7 if name.startswith("nano") else 1):
            for key, call in ways.items():
                began = time.process_time()
                losses[key] = call()
                times[key].append(time.process_time() - began)
        took = {key: statistics.median(seconds) for key, seconds in times.items()}
        benchmark.pedantic(lambda: score(source, windows[:1], run), rounds=1)
    worst = max(abs(float(np.exp(loss.mean() - losses["ours"].mean())) - 1) for loss in losses.values())
    assert worst < 1e-4
    exact = by_transformers(assemble(CheckpointSource(checkpoint.path, dtype=torch.float64)), windows[:4])
    off = {
        f"off_{key}": abs(float(np.exp(losses[key][:4].mean() - exact.mean())) - 1)
        for key in ("ours", "transformers")
    }
    told = {f"tokens_per_second_{key}": round(windows.numel() / seconds) for key, seconds in took.items()}
    ratios = {
        f"ratio_{key}": round(seconds / took["ours"], 2) for key, seconds in took.items() if key != "ours"
    }
    benchmark.extra_info.update(windows=len(windows), length=length, apart=worst, **off, **told, **ratios)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
