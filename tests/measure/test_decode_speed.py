"""Greedy decoding against transformers' own, and its records through the grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruned_nanos import PROMPT, pruned
from saved_models import saved, saved_with_tokenizer

from bench.executors.local import Outcome, execute
from bench.measure.decode import TIE, Loop, Once, Timings, agreement, by_generate, in_turns, spread
from bench.plan.cells import expand
from bench.plan.formats import sparse_formats
from bench.plan.observer import GridObserver
from bench.plan.settings import gather
from bench.results.records import Record
from bench.results.segments import Store
from bench.results.values import load_values
from bench.run.decoding import _token_warnings, _unsteady_warnings
from methods.inference.assemble import assemble
from methods.inference.served import serve, serve_model
from methods.interface import Silent
from methods.kernels.prepared import BitmapProduct
from methods.stream.source import CheckpointSource

_PROMPT = torch.randint(3, 101, (1, 9), generator=torch.Generator().manual_seed(7))


class _Watcher(Silent, GridObserver):
    """Keeps nothing."""

    def plan(self, cells: Any) -> None: ...
    def cell(self, index: int, cell: Any) -> None: ...
    def cached(self, index: int, cell: Any) -> None: ...
    def done(self, index: int, cell: Any, status: str, summary: str) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_the_loop_chooses_what_generate_chooses(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = CheckpointSource(saved(tmp_path / "model", family), dtype=dtype)
    model = assemble(source)
    served = serve_model(model, source)
    ours, theirs = Loop(served, _PROMPT, 20).run(), by_generate(model, _PROMPT, 20)()
    assert min(ours.first, *ours.steps, theirs.first, *theirs.steps) > 0
    assert ours.steps.shape == theirs.steps.shape == (19,)
    # step by step from transformers' logits, so that a tie is told from a fault
    ids = torch.cat((_PROMPT[0], ours.tokens))[None]
    logits = model(ids).logits[0, _PROMPT.shape[1] - 1 : -1].float()
    gaps = logits.amax(1) - logits.gather(1, ours.tokens[:, None])[:, 0]
    assert float(gaps.max()) <= TIE[dtype] * float(logits.abs().max())
    if dtype == torch.float32:
        assert ours.tokens.tolist() == theirs.tokens.tolist()


class _Paced(Loop):
    """Takes the time it is told to, and says when it was called."""

    def __init__(self, name: str, seconds: float, calls: list[str]) -> None:
        self.name, self.seconds, self.calls, self.new_tokens = name, seconds, calls, 3

    def step(self) -> float:
        self.calls.append(self.name)
        return self.seconds

    def end(self, first: float, steps: np.ndarray[Any, Any]) -> Once:
        return Once(torch.tensor([1, 2, 3]), first, steps)


def test_loops_go_in_step_and_the_warm_up_is_not_kept() -> None:
    calls: list[str] = []

    def whole() -> Once:
        calls.append("whole")
        return Once(torch.tensor([1, 2, 3]), 0.5, np.array([1.0, 3.0]))

    loops = {"dense": _Paced("d", 0.5, calls), "bitmap": _Paced("b", 0.25, calls)}
    timed = in_turns(loops, Silent(), whole={"generate": whole}, repeats=3)
    assert calls == ["d", "b", "b", "d", "d", "b", "whole"] * 4
    assert timed["dense"].rate.tolist() == [2, 2, 2] and timed["bitmap"].rate.tolist() == [4, 4, 4]
    assert (
        timed["generate"].rate.tolist() == [0.5, 0.5, 0.5] and timed["generate"].first.tolist() == [0.5] * 3
    )
    assert timed["bitmap"].speedup(timed["dense"]).tolist() == [2, 2, 2]
    assert timed["bitmap"].tokens.shape == (3, 3)


def test_a_ratio_stands_a_disturbance_of_single_tokens() -> None:
    steps, tokens = np.full((1, 9), 0.1), np.zeros((1, 10), dtype=np.int64)
    disturbed = steps / 2
    disturbed[0, 3] = 50
    dense, packed = Timings(np.ones(1), steps, tokens), Timings(np.ones(1), disturbed, tokens)
    assert packed.speedup(dense).tolist() == [2] and packed.rate[0] < dense.rate[0]


def test_tokens_agree_up_to_ties_and_a_wrong_kernel_is_found(tmp_path: Path) -> None:
    source = pruned("nano-llama", tmp_path)
    dense, packed = serve(source), serve(source, format="bitmap")
    tokens = Loop(dense, PROMPT, 24).run().tokens
    found = agreement(dense, packed, PROMPT, tokens)
    assert found.compared == 24 and not found.wrong and found.distance < found.tie
    product = next(packed.blocks[1].products())
    assert isinstance(product, BitmapProduct)
    product.weight.values.mul_(1.5)
    broken = agreement(dense, packed, PROMPT, tokens)
    assert broken.wrong and broken.wrong[0][1] > broken.tie
    line = _token_warnings({}, {"bitmap": broken})[0]
    assert f"bitmap: token {broken.wrong[0][0]} is not the dense kernels' choice" in line
    assert f"{len(broken.wrong)} of 24 differ so" in line


def test_spread_is_of_quartiles() -> None:
    found = spread(np.array([5.0, 1.0, 2.0, 3.0, 4.0]))
    assert found == {"median": 3.0, "q25": 2.0, "q75": 4.0, "min": 1.0, "max": 5.0}


def test_unsteady_speeds_are_warned_of() -> None:
    def timed(*rate: float) -> dict[str, Timings]:
        tokens = np.zeros((len(rate), 2), dtype=np.int64)
        return {"bitmap": Timings(np.ones(len(rate)), 1 / np.array(rate)[:, None], tokens)}

    assert _unsteady_warnings(timed(10.0, 10.1, 10.2, 9.9, 30.0)) == ()
    line = _unsteady_warnings(timed(5.0, 5.0, 9.0, 10.0, 10.0))[0]
    assert "(bitmap)" in line and "between 5 and 10 token/s" in line


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


def test_records_say_what_was_timed_and_a_rerun_times_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.measure.decode.REPEATS", 2)
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
        assert values["tokens"].shape == (2, 64)
        assert math.isfinite(record.metric("decode_peak_memory") or math.nan)
        facts = record.provenance
        assert [facts[name] for name in ("threads", "dtype", "prompt_tokens", "new_tokens")] == [
            *(1, "float32", 128, 64)
        ]
        assert (record.metric("decode_tokens_per_second_generate") or 0) > 0
        if record.method == "dense":
            assert facts["formats"] == ["dense"] and record.metric("decode_speedup") is None
            continue
        assert facts["formats"] == ["bitmap", "dense"]
        assert facts["agreement"]["bitmap"]["compared"] == 64  # type: ignore[call-overload, index]
        ratio = np.median(values["step_seconds"] / values["step_seconds_bitmap"], axis=1)
        assert record.metric("decode_speedup") == pytest.approx(float(np.median(ratio)))
        assert values["step_seconds"].shape == (2, 63)
        packed, dense = (record.metric(f"decode_weight_bytes{way}") or 0 for way in ("_bitmap", ""))
        assert 0 < packed < dense
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


def test_formats_follow_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.decode.REPEATS", 1)
    assert [
        sparse_formats(target) for target in ("0%", "50%", "2:4", "slice25%", "0%+4bit", "bytes-30%")
    ] == [*((), ("bitmap",), ("bitmap", "nm"), (), (), ("bitmap",))]
    model = saved_with_tokenizer(tmp_path / "model", "llama", max_position_embeddings=192)
    out = tmp_path / "out"
    targets = {
        "methods": "magnitude,slicegpt",
        "sparsity": "0.02",
        "pattern": "unstructured,2:4",
        "slicing": "0.25",
    }
    assert _run(out, model, evaluations="decode", **targets).done == 4
    found = {record.target: record for record in Store(out).records() if record.phase == "decode"}
    assert {target: record.provenance["formats"] for target, record in found.items()} == {
        "0%": ["dense"],
        "2%": ["dense"],
        "2:4": ["bitmap", "nm", "dense"],
        "slice25%": ["dense"],
    }
    assert found["2%"].provenance["notes"] == [
        "bitmap: too few zeros for any linear to get faster: dense only"
    ]
    assert (found["2:4"].metric("decode_speedup_nm") or 0) > 0
