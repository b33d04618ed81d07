"""Greedy decoding against transformers' own, and its records through the grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved_models import saved, saved_with_tokenizer

from bench.measure.decode import decode, greedy, spread
from bench.plan.cells import expand
from bench.plan.observer import GridObserver
from bench.plan.settings import gather
from bench.results.records import Record
from bench.results.segments import Store
from bench.results.values import load_values
from bench.run.evaluations import _unsteady_warning
from bench.run.grid import Outcome, execute
from methods.inference.assemble import assemble
from methods.interface import Silent
from methods.stream.source import CheckpointSource

_PROMPT = torch.randint(3, 101, (1, 9), generator=torch.Generator().manual_seed(7))


class _Watcher(Silent, GridObserver):
    """Keeps nothing."""

    def plan(self, cells: Any) -> None: ...
    def cell(self, index: int, cell: Any) -> None: ...
    def cached(self, index: int, cell: Any) -> None: ...
    def done(self, index: int, cell: Any, status: str, summary: str) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_tokens_equal_those_of_generate(tmp_path: Path, family: str) -> None:
    model = assemble(CheckpointSource(saved(tmp_path / "model", family)))
    tokens, to_first, rest = greedy(model, _PROMPT, 20)
    expected = model.generate(  # type: ignore[operator]
        _PROMPT,
        attention_mask=torch.ones_like(_PROMPT),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert tokens.tolist() == expected[0, 9:].tolist()
    assert to_first > 0 and rest > 0


def test_every_repeat_is_kept_and_the_warm_up_is_not(tmp_path: Path) -> None:
    model = assemble(CheckpointSource(saved(tmp_path / "model", "llama")))
    timed = decode(model, _PROMPT, 5, Silent(), repeats=3)
    assert timed.first.shape == timed.rate.shape == (3,)
    assert timed.tokens.shape == (3, 5) and (timed.tokens == timed.tokens[0]).all()
    assert timed.peak_memory > sum(weight.nbytes for weight in model.parameters())


def test_spread_is_of_quartiles() -> None:
    found = spread(np.array([5.0, 1.0, 2.0, 3.0, 4.0]))
    assert found == {"median": 3.0, "q25": 2.0, "q75": 4.0, "min": 1.0, "max": 5.0}


def test_unsteady_speeds_are_warned_of() -> None:
    assert _unsteady_warning(np.array([10.0, 10.1, 10.2, 9.9, 30.0])) == ()
    assert "between 5 and 10 token/s" in _unsteady_warning(np.array([5.0, 5.0, 9.0, 10.0, 10.0]))[0]


def _run(out: Path, model: Path, **flags: Any) -> Outcome:
    settings = gather(
        {
            "models": f"path:{model}",
            "methods": "magnitude",
            "protocol": "nano",
            "windows": "2",
            "threads": "1",
            "evaluations": "perplexity,decode",
            **flags,
        }
    )
    return execute(expand(settings), out, _Watcher())


def _decoded(out: Path) -> dict[str, Record]:
    return {record.method: record for record in Store(out).records() if record.phase == "decode"}


def test_records_say_what_was_timed_and_a_rerun_times_nothing(tmp_path: Path) -> None:
    model = saved_with_tokenizer(tmp_path / "model", "opt", max_position_embeddings=192)
    out = tmp_path / "out"
    assert _run(out, model) == Outcome(done=2)
    before = Store(out).history()
    assert _run(out, model) == Outcome(cached=2)
    assert Store(out).history() == before
    for record in _decoded(out).values():
        assert record.protocol == "decode/128+64"
        values = load_values(out, record.values)
        rate = record.metric("decode_tokens_per_second")
        assert rate == pytest.approx(float(np.median(values["decode_tokens_per_second"])))
        assert record.metric("time_to_first_token") == pytest.approx(
            float(np.median(values["time_to_first_token"]))
        )
        assert values["tokens"].shape == (5, 64)
        assert math.isfinite(record.metric("decode_peak_memory") or math.nan)
        facts = record.provenance
        assert [facts[name] for name in ("format", "threads", "dtype", "prompt_tokens", "new_tokens")] == [
            *("dense", 1, "float32", 128, 64)
        ]
    assert len({record.subject for record in Store(out).records()}) == 6
    assert _run(out, model, threads="2") == Outcome(done=2), "a speed is of a thread count"
    assert len(_decoded(out)) == 2 and len(Store(out).history()) == len(before) + 2


def test_a_context_too_short_is_refused_after_the_other_phases(tmp_path: Path) -> None:
    model = saved_with_tokenizer(tmp_path / "model", "opt", max_position_embeddings=64)
    assert _run(tmp_path / "out", model, methods="dense") == Outcome(refused=1)
    records = {record.status: record for record in Store(tmp_path / "out").records()}
    assert "decode needs a context of 192 tokens" in records["refused"].reason
    assert {r.phase for r in Store(tmp_path / "out").records() if r.status == "done"} == {
        "prune",
        "perplexity",
    }
