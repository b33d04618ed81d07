"""The evaluation ``decode``: a cell's weights decoded by dense kernels, by packed ones where there are zeros, and by
transformers' ``generate``, in turns.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.measure.memory import PeakMemory
from bench.plan.cells import NEW_TOKENS, PROMPT_TOKENS
from bench.plan.formats import sparse_formats
from bench.results.records import Metric
from bench.run.phases import Figures
from methods.errors import UnsupportedModel
from methods.interface import Run
from methods.target import Target

if TYPE_CHECKING:
    from bench.measure.decode import Agreement, Timings
    from bench.run.evaluations import Weights
    from methods.inference.served import Served
    from methods.stream.source import CheckpointSource

__all__ = ["decode"]

_STEADY = 0.1
"""Share of the median that the quartiles of a speed may lie apart without a warning."""
_GENERATE = "generate"


@dataclass(slots=True)
class _Loaded:
    """Models by format, each with the memory that loading it and one continuation added to what was there before."""

    models: dict[str, Served]
    added: dict[str, int]
    base: int
    notes: tuple[str, ...]


def decode(weights: Weights, run: Run) -> Figures:
    """Speed of greedy decoding. Dense kernels are timed on every model; packed ones, and the ratio, on pruned ones."""
    cell, subject = weights.cell, weights.subject
    from bench.measure import decode as decoding
    from methods.inference.assemble import assemble
    from methods.inference.served import serve_model

    windows = subject.evaluation(cell.evaluation, cell.data_dir)
    needed = PROMPT_TOKENS + NEW_TOKENS
    if min(subject.context, windows.tokens.shape[1] + NEW_TOKENS) < needed:
        raise UnsupportedModel(
            f"decode needs a context of {needed} tokens and windows of {PROMPT_TOKENS}; "
            f"{cell.model} has {subject.context} and {windows.tokens.shape[1]}"
        )
    prompt = torch.from_numpy(windows.tokens[:1, :PROMPT_TOKENS])
    began = time.perf_counter()
    source = weights.source()
    loaded = _load_packed(cell.target, source, prompt)
    with PeakMemory(cell.device) as memory:
        whole = assemble(source)
        dense = serve_model(whole, source)
        decoding.Loop(dense, prompt, NEW_TOKENS).run()
    loaded.models["dense"], loaded.added["dense"] = dense, memory.peak - memory.base
    loaded.base = loaded.base or memory.base
    assembled = time.perf_counter() - began
    timed = decoding.in_turns(
        {name: decoding.Loop(model, prompt, NEW_TOKENS) for name, model in loaded.models.items()},
        run.observer,
        whole={_GENERATE: decoding.by_generate(whole, prompt, NEW_TOKENS)},
        repeats=decoding.REPEATS,
    )
    chosen = torch.from_numpy(timed["dense"].tokens[0])
    agreed = {
        name: decoding.agreement(dense, model, prompt, chosen)
        for name, model in loaded.models.items()
        if name != "dense"
    }
    ratios = {name: timed[name].speedup(timed["dense"]) for name in agreed}
    arrays: dict[str, NDArray[Any]] = {"tokens": timed["dense"].tokens}
    spreads: dict[str, dict[str, float]] = {}
    for name, timings in timed.items():
        for metric, values in (
            (_named("decode_tokens_per_second", name), timings.rate),
            (_named("time_to_first_token", name), timings.first),
        ):
            arrays[metric], spreads[metric] = values, decoding.spread(values)
        arrays[_named("step_seconds", name)] = timings.steps
    for name, values in ratios.items():
        metric = _named("decode_speedup", name, main="bitmap")
        arrays[metric], spreads[metric] = values, decoding.spread(values)
    return Figures(
        metrics=_metrics(timed, ratios, loaded),
        seconds={"decode": time.perf_counter() - began - assembled, "assemble": assembled},
        arrays=arrays,
        warnings=(*_unsteady_warnings(timed), *_token_warnings(timed, agreed)),
        provenance={
            "formats": list(loaded.models),
            "notes": list(loaded.notes),
            "batch": 1,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
            "repeats": decoding.REPEATS,
            "warmups": decoding.WARMUPS,
            "threads": torch.get_num_threads(),
            "dtype": cell.dtype,
            "dense_kernels": dense.kernels,
            "linears": {
                name: {"packed": model.swap.packed, "dense": model.swap.dense}
                for name, model in loaded.models.items()
            },
            "agreement": {name: asdict(found) for name, found in agreed.items()},
            "spread": spreads,
            "evaluation": windows.provenance,
        },
    )


def _load_packed(target: str, source: CheckpointSource, prompt: Tensor) -> _Loaded:
    """Packed models of the formats that suit the target, each loaded while only those before it lie in memory."""
    from bench.measure.decode import Loop
    from methods.inference.served import serve
    from methods.kernels import _native

    found = _Loaded({}, {}, 0, ())
    formats = () if source.shape.slices is not None else sparse_formats(target)
    if formats and source.device.type != "cpu":
        found.notes = (f"packed decoding runs on CPUs only, not on {source.device.type}: dense only",)
        return found
    if formats and _native.load("cpu").handle is None:
        found.notes = (f"no native library ({_native.load('cpu').reason}): dense only",)
        return found
    aim = Target.parse(target)
    for name in formats:
        with PeakMemory(str(source.device)) as memory:
            keep, group = (aim.keep, aim.group) if name == "nm" else (0, 0)
            model = serve(source, format="auto", keep=keep, group=group)
            if model.swap.packed:
                Loop(model, prompt, NEW_TOKENS).run()
        found.base = found.base or memory.base
        if not model.swap.packed:
            found.notes += (f"{name}: too few zeros for any linear to get faster: dense only",)
            break
        found.models[name], found.added[name] = model, memory.peak - memory.base
    return found


def _metrics(
    timed: dict[str, Timings], ratios: dict[str, NDArray[np.float64]], loaded: _Loaded
) -> tuple[Metric, ...]:
    metrics: list[Metric] = []
    for name in sorted(timed, key=lambda name: name != "dense"):
        timings = timed[name]
        rate, first = float(np.median(timings.rate)), float(np.median(timings.first))
        metrics.append(Metric(name=_named("decode_tokens_per_second", name), unit="token/s", value=rate))
        metrics.append(Metric(name=_named("time_to_first_token", name), unit="s", value=first))
        if name == _GENERATE:
            continue
        peak, held = loaded.base + loaded.added[name], loaded.models[name].nbytes
        metrics.append(Metric(name=_named("decode_peak_memory", name), unit="byte", value=peak))
        metrics.append(Metric(name=_named("decode_weight_bytes", name), unit="byte", value=held))
    metrics += [
        Metric(name=_named("decode_speedup", name, main="bitmap"), unit="1", value=float(np.median(values)))
        for name, values in ratios.items()
    ]
    return tuple(metrics)


def _named(metric: str, way: str, *, main: str = "dense") -> str:
    """A metric's name: plain for the main way, with the way's name behind it for others."""
    return metric if way == main else f"{metric}_{way}"


def _unsteady_warnings(timed: dict[str, Timings]) -> tuple[str, ...]:
    """A machine busy with something else gives speeds that compare with nothing."""
    found = []
    for name, timings in timed.items():
        lower, median, upper = (float(value) for value in np.quantile(timings.rate, (0.25, 0.5, 0.75)))
        if upper - lower > _STEADY * median:
            found.append(
                f"decoding ({name}) was unsteady: half of the repeats lie between {lower:.4g} and {upper:.4g} token/s"
            )
    return tuple(found)


def _token_warnings(timed: dict[str, Timings], agreed: dict[str, Agreement]) -> tuple[str, ...]:
    """Repeats, and formats, must choose the same tokens up to ties within rounding."""
    found = [
        f"repeats of greedy decoding ({name}) chose different tokens"
        for name, timings in timed.items()
        if not (timings.tokens == timings.tokens[0]).all()
    ]
    for name, compared in agreed.items():
        for position, gap in compared.wrong[:1]:
            found.append(
                f"{name}: token {position} is not the dense kernels' choice, whose logits of the two lie {gap:.3g} apart "
                f"(rounding explains {compared.tie:.3g}); {len(compared.wrong)} of {compared.compared} differ so"
            )
    return tuple(found)
