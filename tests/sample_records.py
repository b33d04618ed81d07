"""Made-up records for tests of the store and of the reports; none of these figures was ever measured."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from bench.results.records import MatrixFigures, Metric, Record

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def record(**changes: Any) -> Record:
    """A small finished prune record, any field replaced by `changes`."""
    fields: dict[str, Any] = {
        "phase": "prune",
        "status": "done",
        "cell": "c0",
        "subject": "s0",
        "environment": "e0",
        "sources": "x0",
        "model": "nano-opt",
        "method": "sparsegpt",
        "target": "50%",
        "seed": 0,
        "dtype": "float32",
        "calibration": "kjv:64x512",
        "metrics": (Metric(name="sparsity", unit="1", value=0.5),),
        "started": START.isoformat(),
        "finished": (START + timedelta(seconds=1)).isoformat(),
    }
    return Record.model_validate({**fields, **changes})


def later(seconds: float) -> str:
    """An ISO time that many seconds after the first record began."""
    return (START + timedelta(seconds=seconds)).isoformat()


DENSE_PERPLEXITY = {"nano-opt": 20.0, "nano-bloom": 22.0, "nano-llama": 18.0}
LOSS = {"dense": 1.0, "sparsegpt": 1.1, "magnitude": 1.4}


def cell(
    model: str,
    method: str,
    target: str,
    *,
    seed: int | None = None,
    protocol: str = "nano/kjv",
    **changes: Any,
) -> list[Record]:
    """The prune and perplexity records of one finished cell; figures follow from the names alone."""
    dense = method == "dense"
    seed = None if dense or method == "magnitude" else (seed or 0)
    identity = f"{model}/{method}/{target}/{seed}/{protocol}"
    harder = 1.0 if dense else 1.0 + (int(target[:-1]) / 100 if target.endswith("%") else 0.6)
    perplexity = DENSE_PERPLEXITY.get(model, 30.0) * (1 + (LOSS.get(method, 1.2) - 1) * harder) + 0.01 * (
        seed or 0
    )
    shared: dict[str, Any] = {
        "cell": f"cell:{identity}",
        "subject": f"subject:{identity}",
        "model": model,
        "method": method,
        "target": target,
        "seed": seed,
        "calibration": "" if dense or method == "magnitude" else "kjv:64x512",
        "provenance": {
            "protocol": protocol,
            "versions": {"torch": "2.13.0", "python": "3.11"},
            "cpu": "A processor",
            "threads": 2,
            "commit": "abc1234",
            "command": ["bench", "run", "--models", model],
        },
    }
    removed = 0 if dense else 500_000
    prune = record(
        **shared,
        phase="prune",
        metrics=(
            Metric(name="weights_removed", unit="1", value=removed),
            Metric(name="weights_prunable", unit="1", value=1_000_000),
            Metric(name="sparsity", unit="1", value=removed / 1_000_000),
            Metric(name="parameters", unit="1", value=1_500_000),
            Metric(name="parameters_nonzero", unit="1", value=1_500_000 - removed),
            Metric(name="bytes", unit="byte", value=6_000_000),
            Metric(name="prune_time", unit="s", value=0.0 if dense else 3.25),
            Metric(name="peak_memory", unit="byte", value=400_000_000),
            Metric(name="heldout_error", unit="1", value=None if dense else (LOSS.get(method, 1.2) - 1) / 4),
        ),
        matrices=()
        if dense
        else tuple(
            MatrixFigures(
                block=block,
                name=name,
                rows=160,
                columns=160,
                removed=12_800,
                calibration_error=0.01 * (block + 1),
                heldout_error=0.02 * (block + 1) * LOSS.get(method, 1.2),
            )
            for block in range(4)
            for name in ("self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2")
        ),
    )
    evaluation = record(
        **shared,
        phase="perplexity",
        protocol=protocol,
        metrics=(
            Metric(name="perplexity", unit="1", value=perplexity),
            Metric(name="nll", unit="nat/token", value=3.0),
            Metric(name="kl_to_dense", unit="nat/token", value=0.0 if dense else LOSS.get(method, 1.2) - 1),
            Metric(name="top1_flip_rate", unit="1", value=0.0 if dense else 0.12),
            Metric(name="tokens_per_second", unit="token/s", value=12_345.6),
            Metric(name="tokens", unit="1", value=65_536),
            Metric(name="eval_time", unit="s", value=5.3),
            Metric(name="peak_memory", unit="byte", value=500_000_000),
        ),
        finished=later(2),
    )
    return [entry.model_copy(update=changes) for entry in (prune, evaluation)]


def grid(seeds: tuple[int, ...] = (0,)) -> list[Record]:
    """Three models, dense and two methods at 50 % and 2:4, one refused and one failed cell."""
    found: list[Record] = []
    for model in DENSE_PERPLEXITY:
        found += cell(model, "dense", "0%")
        for target in ("50%", "2:4"):
            found += cell(model, "magnitude", target)
            for seed in seeds:
                found += cell(model, "sparsegpt", target, seed=seed)
    found.append(
        record(
            cell="refused",
            subject="refused",
            status="refused",
            method="sparsegpt",
            target="2:4",
            model="opt-odd",
            reason="2:4 needs widths divisible by 4, found 162",
            metrics=(),
        )
    )
    found.append(
        record(
            cell="failed",
            subject="failed",
            status="failed",
            method="dense",
            target="0%",
            model="opt-125m",
            seed=None,
            reason="opt-125m is not in the cache and the hub cannot be reached",
            metrics=(),
        )
    )
    return found


def with_perplexity(records: list[Record], value: float | None) -> list[Record]:
    """The records with another perplexity."""
    return [
        entry.model_copy(
            update={
                "metrics": tuple(
                    Metric(name=metric.name, unit=metric.unit, value=value)
                    if metric.name == "perplexity"
                    else metric
                    for metric in entry.metrics
                )
            }
        )
        for entry in records
    ]
