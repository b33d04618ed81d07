"""kill -9 at random moments of a grid, again and again, until it ends: nothing lost, nothing twice, the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from saved_models import saved_with_tokenizer

from bench.results.segments import Store

_KILLS = 10
_FLAGS = (
    "--methods",
    "magnitude,sparsegpt,slicegpt",
    "--pattern",
    "unstructured,2:4",
    "--slicing",
    "0.3",
    "--protocol",
    "nano",
    "--samples",
    "48",
)
_FIGURES = ("perplexity", "kl_to_dense", "weights_removed", "heldout_error")


def _start(out: Path, models: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench", "run", "--models", models, *_FLAGS, "--windows", "60"]
    options = ["--out", str(out), "--threads", "1", "--save-as", "dense,bitmap", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _figures(out: Path) -> dict[tuple[str, ...], list[float | None]]:
    history = Store(out).history()
    assert len({record.key for record in history}) == len(history), "a record stands twice"
    return {(r.model, r.method, r.target, r.phase): [r.metric(name) for name in _FIGURES] for r in history}


def _weights(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted((out / "checkpoints").rglob("*.safetensors"))
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    folders = [
        saved_with_tokenizer(tmp_path / family, family, **more)
        for family, more in (("opt", {"num_hidden_layers": 8}), ("llama", {"num_hidden_layers": 8}))
    ]
    models = ",".join(f"path:{folder}" for folder in folders)
    whole = _start(tmp_path / "whole", models)
    began = _work_begins(whole)
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    duration = time.monotonic() - began

    dice = random.Random(20261122)
    done_before = 0
    moments = []
    for _ in range(_KILLS):
        run = _start(tmp_path / "parts", models)
        _work_begins(run)
        # short enough that ten kills fall within one grid, with its restarts
        moments.append(dice.uniform(0, 0.35 * duration))
        time.sleep(moments[-1])
        run.send_signal(signal.SIGKILL)
        run.communicate()
        finished = Store(tmp_path / "parts").history()
        assert len(finished) >= done_before, "a finished record was lost"
        done_before = len(finished)
    last = _start(tmp_path / "parts", models)
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    assert _figures(tmp_path / "parts") == _figures(tmp_path / "whole")
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")
    print(
        f"grid of {duration:.1f} s killed after {', '.join(f'{moment:.2f}' for moment in moments)} s; equal bits"
    )


def _work_begins(run: subprocess.Popen[str]) -> float:
    """Wait for the first line the run prints: the plan is made, work begins."""
    assert run.stdout is not None
    run.stdout.readline()
    return time.monotonic()
