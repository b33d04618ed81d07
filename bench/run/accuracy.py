"""Zero-shot accuracy of a cell's weights; returns figures, writes no records."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.measure.memory import PeakMemory
from bench.results.records import Metric
from bench.run.phases import Figures
from methods.interface import Run
from methods.target import Target

if TYPE_CHECKING:
    from bench.evaluate.zeroshot.accuracy import Accuracies
    from bench.plan.suites import Suite
    from bench.run.evaluations import Weights

__all__ = ["zeroshot"]

Items = Mapping[str, NDArray[np.float32]]


def zeroshot(weights: Weights, run: Run) -> Figures:
    """Accuracy on the cell's tasks, with its standard error over items (sample deviation / sqrt(items)), and the means of
    its suites.
    """
    cell, subject = weights.cell, weights.subject
    from bench.evaluate.zeroshot.accuracy import accuracies
    from bench.plan.suites import expand, tasks_of
    from methods.inference.served import serve

    folder = Path(cell.data_dir) if cell.data_dir else None
    single, suites = expand(cell.tasks)
    with PeakMemory(cell.device) as memory:
        began = time.perf_counter()
        source = weights.source()
        aim = Target.parse(cell.target)
        packed = cell.packed and source.shape.slices is None
        model = serve(
            source,
            format="auto" if packed else "dense",
            keep=aim.keep if packed and aim.kind == "nm" else 0,
            group=aim.group if packed and aim.kind == "nm" else 0,
            tune=False,  # kernels chosen by timing would make the last bits differ from run to run
        )
        read = time.perf_counter() - began
        scored = accuracies(
            model,
            subject.tokenizer,
            single,
            optional=[task for task in tasks_of(cell.tasks) if task not in single],
            context=subject.context,
            batch_tokens=run.batch_tokens,
            observer=run.observer,
            limit=cell.limit,
            shots=cell.shots,
            data_dir=folder,
        )
    metrics: list[Metric] = []
    arrays: dict[str, NDArray[Any]] = {}
    for task, found in scored.items.items():
        for name, values in found.items():
            metrics.append(Metric(name=f"{name}/{task}", unit="1", value=_mean(values)))
            metrics.append(Metric(name=f"{name}_stderr/{task}", unit="1", value=_standard_error(values)))
            arrays[f"{name}/{task}"] = values
    for suite in suites:
        metrics += _suite_metrics(suite, scored)
    rate = 1 / scored.scoring if scored.scoring else math.nan
    metrics += [
        Metric(name="eval_time", unit="s", value=scored.seconds),
        Metric(name="tokens", unit="1", value=scored.tokens),
        Metric(name="tokens_computed", unit="1", value=scored.computed),
        Metric(name="tokens_per_second", unit="token/s", value=scored.tokens * rate),
        Metric(name="tokens_computed_per_second", unit="token/s", value=scored.computed * rate),
        Metric(name="peak_memory", unit="byte", value=memory.peak),
    ]
    return Figures(
        metrics=tuple(metrics),
        seconds={"zeroshot": scored.seconds, "scoring": scored.scoring, "read": read},
        arrays=arrays,
        warnings=(
            *_cut_warning(scored.cut, scored.requests, subject.context),
            *_broken_warnings(scored),
            *_partial_warnings(suites, scored),
        ),
        provenance={
            "format": ("nm" if aim.kind == "nm" else "bitmap") if packed else "dense",
            "linears": {"packed": model.swap.packed, "dense": model.swap.dense},
            "scorer": "shared beginnings computed once, logits at answers",
            "tasks": {name: _task_facts(name, scored, folder) for name in scored.items},
            "suites": {suite.name: _suite_facts(suite, scored) for suite in suites},
            **({"awaited": list(scored.awaited)} if scored.awaited else {}),
            "shots": cell.shots,
            "limit": cell.limit,
            "batch_tokens": run.batch_tokens,
            "context": subject.context,
            "requests": scored.requests,
            "requests_cut": scored.cut,
            "logits": scored.logits,
            "lm_eval": metadata.version("lm-eval"),
        },
    )


def _task_facts(name: str, scored: Accuracies, folder: Path | None) -> dict[str, Any]:
    from bench.evaluate.zeroshot.tasks import find, packaged, source_of

    declared = find(name)
    data: dict[str, str]
    if packaged(declared):
        from bench.text.kjv import TEXT_SHA256

        data = {"source": "packaged", "sha256": f"sha256:{TEXT_SHA256}"}
    elif folder is None:
        data = {"source": "hub", "dataset": str(declared.values.get("dataset_path"))}
    else:
        data = {"source": "local", "sha256": source_of(declared, str(folder))}
    count = len(scored.items[name]["acc"])
    return {"version": scored.versions[name], "split": declared.split, "items": count, **data}


def _averaged(suite: Suite, scored: Accuracies) -> dict[str, NDArray[np.float32]]:
    """Items of the suite's tasks that could be had, by the metric that its paper averages."""
    found = {task: scored.items[task] for task in suite.tasks if task in scored.items}
    return {task: items.get(suite.metric, items["acc"]) for task, items in found.items()}


def _partial(suite: Suite, scored: Accuracies) -> bool:
    return any(task not in scored.items for task in suite.tasks)


def _suite_metrics(suite: Suite, scored: Accuracies) -> list[Metric]:
    """The mean over tasks, each of equal weight, with its standard error; under a name of its own where tasks lack, so
    that it is never taken for the published mean.
    """
    found = _averaged(suite, scored)
    if not found:
        return []
    name = "acc_avg_partial" if _partial(suite, scored) else "acc_avg"
    errors = [_standard_error(values) for values in found.values()]
    error = None
    if all(one is not None for one in errors):
        error = math.sqrt(sum(one**2 for one in errors if one is not None)) / len(errors)
    return [
        Metric(name=f"{name}/{suite.name}", unit="1", value=float(np.mean([*map(_mean, found.values())]))),
        Metric(name=f"{name}_stderr/{suite.name}", unit="1", value=error),
    ]


def _suite_facts(suite: Suite, scored: Accuracies) -> dict[str, Any]:
    return {
        "paper": suite.paper,
        "metric": suite.metric,
        "tasks": list(_averaged(suite, scored)),
        "missing": {task: scored.missing.get(task, "") for task in suite.tasks if task not in scored.items},
        "partial": _partial(suite, scored),
    }


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64))


def _standard_error(values: NDArray[np.float32]) -> float | None:
    if len(values) < 2:
        return None
    return float(values.std(ddof=1, dtype=np.float64)) / math.sqrt(len(values))


def _cut_warning(cut: int, requests: int, context: int) -> tuple[str, ...]:
    if not cut:
        return ()
    return (f"{cut} of {requests} requests lost the start of their text to the context of {context} tokens",)


def _broken_warnings(scored: Accuracies) -> tuple[str, ...]:
    broken = {name: int(np.isnan(items["acc"]).sum()) for name, items in scored.items.items()}
    return tuple(
        f"{name}: the log-likelihoods of {count} of {len(scored.items[name]['acc'])} items are not finite, so there is no "
        "accuracy"
        for name, count in broken.items()
        if count
    )


def _partial_warnings(suites: tuple[Suite, ...], scored: Accuracies) -> tuple[str, ...]:
    return tuple(
        f"suite {suite.name}: the mean is partial, without "
        + "; ".join(
            f"{task} ({scored.missing.get(task, '')})" for task in suite.tasks if task not in scored.items
        )
        for suite in suites
        if _partial(suite, scored)
    )
