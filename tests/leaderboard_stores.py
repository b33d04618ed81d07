"""Made-up stores that lack nothing a leaderboard asks for; no figure in them was ever measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sample_records import later, record

from bench.results.records import MatrixFigures, Metric
from bench.results.segments import Store
from bench.results.values import save_values

__all__ = ["WINDOWS", "Run", "provenance", "store"]

WINDOWS = np.random.default_rng(0).normal(3.0, 0.5, 80)

Run = tuple[str, str, int | None, float]
"""Method, target, seed, what is added to the loss of every window."""


def provenance(**changes: Any) -> dict[str, Any]:
    return {
        "environment": {"processor": "P", "versions": {"torch": "2.13.0"}},
        "commit": "abcdef0123456789",
        "command": ["bench", "run", "--out", "/home/me/secret/out", "--models", "path:/home/me/models/x"],
        "model": {"id": "nano-opt", "revision": "sha256:1", "files": {"model.safetensors": "f"}},
        "evaluation": {"tokens_sha256": "t"},
        **changes,
    }


def store(folder: Path, *runs: Run, **changes: Any) -> Path:
    """A store of runs (method, target, seed, what is added to every window's loss), with the dense model."""
    rng = np.random.default_rng(len(runs))
    with Store(folder, create=True) as out:
        for method, target, seed, added in (("dense", "0%", None, 0.0), *runs):
            nll = WINDOWS + added + rng.normal(0, 0.02, len(WINDOWS))
            place = f"{method} {target} {seed} {changes.get('protocol', '')}"
            fields: dict[str, Any] = {
                "cell": f"c {place}",
                "method": method,
                "target": target,
                "seed": seed,
                "calibration": "" if seed is None else "kjv:128xcontext",
                "provenance": provenance(),
                "finished": later(seed or 0),
                **changes,
            }
            matrix = MatrixFigures(block=0, name="fc1", rows=4, columns=4, removed=8)
            out.append(record(**{**fields, "subject": f"p {place}", "protocol": ""}, matrices=(matrix,)))
            quality = (
                Metric(name="perplexity", unit="1", value=float(np.exp(nll.mean()))),
                Metric(name="kl_to_dense", unit="nat/token", value=added),
            )
            out.append(
                record(
                    **{"protocol": "nano/kjv", **fields},
                    subject=f"q {place}",
                    phase="perplexity",
                    metrics=quality,
                    values=save_values(folder, {"nll": nll}),
                )
            )
    return folder
