"""Runs llm-compressor on a model and tokens from disk: a program for an interpreter of its own.

``python worker.py JOB.json`` reads the job that ``methods.external.llmcompressor.exchange`` describes, writes
one safetensors file a block and, last, ``result.json``. Lines of JSON on standard output are signs of life;
whatever llm-compressor prints goes to standard error. Nothing of prune-bench is imported. It ends when its
standard input does, so that it does not outlive the one who started it.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import platform
import sys
import threading
import time
import warnings
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

_PACKAGES = ("llmcompressor", "torch", "transformers", "compressed-tensors", "safetensors")
_PERIOD = 0.005


class Reporter:
    """Signs of life, and what llm-compressor says of each matrix."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._matrix: tuple[str, float] | None = None
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []

    def say(self, **message: Any) -> None:
        """One line of JSON."""
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()

    def hear(self, message: Any) -> None:
        """A sink of loguru's: the matrix at work, how long it took, warnings."""
        record = message.record
        text, moment = str(record["message"]), record["time"].timestamp()
        level = record["level"].name
        if level == "INFO" and text.startswith("Sparsifying "):
            self._matrix = (text.split()[1].rstrip("."), moment)
            self.say(matrix=self._matrix[0])
        elif level == "METRIC" and text.startswith("time ") and self._matrix is not None:
            name, began = self._matrix
            self.seconds[name] = moment - began
        elif level in ("WARNING", "ERROR", "CRITICAL") and "No accelerator" not in text:
            where = f"{self._matrix[0]}: " if self._matrix is not None else ""
            self.warnings.append(where + " ".join(text.split()))


class Peak:
    """Highest anonymous resident memory between ``start`` and ``stop``, in bytes, sampled every 5 ms."""

    def __init__(self) -> None:
        self.base = self.peak = 0
        self._stop = threading.Event()

    def start(self) -> None:
        """Give freed memory back, take the base, and sample from now on."""
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.base = self.peak = _anonymous()
        threading.Thread(target=self._sample, daemon=True).start()

    def stop(self) -> None:
        """Sample no more."""
        self._stop.set()
        self.peak = max(self.peak, _anonymous())

    def _sample(self) -> None:
        while not self._stop.wait(_PERIOD):
            self.peak = max(self.peak, _anonymous())


def _anonymous() -> int:
    with suppress(OSError), Path("/proc/self/status").open(encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1 << 12):  # not sys.stdin: its lock would be held when this process ends
        pass
    os._exit(3)


def _modifier(job: dict[str, Any], names: list[str]) -> Any:
    from llmcompressor.modifiers.pruning import (
        MagnitudePruningModifier,
        SparseGPTModifier,
        WandaPruningModifier,
    )

    share = float(job["sparsity"])
    if job["modifier"] == "magnitude":
        return MagnitudePruningModifier(
            targets=names, init_sparsity=share, final_sparsity=share, start=0.0, end=1.0
        )
    common = {"targets": names, "sparsity": share, "mask_structure": job["mask"]}
    if job["modifier"] == "wanda":
        return WandaPruningModifier(**common)
    return SparseGPTModifier(**common, block_size=job["blocksize"], dampening_frac=job["percdamp"])


def _calibrated(model: Any, modifier: Any, job: dict[str, Any]) -> None:
    """One shot over exactly the tokens of the job: whole windows, nothing masked, padded or shuffled."""
    import torch
    from llmcompressor import oneshot
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader

    tokens = load_file(job["tokens"])["tokens"]
    windows = [{"input_ids": window, "attention_mask": torch.ones_like(window)} for window in tokens]
    oneshot(
        model=model,
        dataset=DataLoader(windows, batch_size=job["batch"], shuffle=False),  # type: ignore[arg-type]
        recipe=modifier,
        processor=object(),  # it wants a tokenizer beside any text, and reads none where tokens are given
        num_calibration_samples=len(windows),
    )


def _uncalibrated(model: Any, modifier: Any) -> None:
    """The steps of training at which the magnitude modifier acts: ``oneshot`` never comes to them."""
    from llmcompressor.core import active_session
    from llmcompressor.core.session_functions import LifecycleCallbacks

    session = active_session()
    session.reset()
    session.initialize(model=model, recipe=modifier, start=-1)
    LifecycleCallbacks.batch_start()
    LifecycleCallbacks.optim_pre_step()
    LifecycleCallbacks.optim_post_step()
    session.finalize()


def _write(model: Any, job: dict[str, Any], out: Path) -> dict[str, str]:
    """Pruned matrices, a file a block; returns the files' SHA-256 by name."""
    from safetensors.torch import save_file

    found: dict[str, str] = {}
    for index, matrices in enumerate(job["blocks"]):
        path = out / f"block-{index:05d}.safetensors"
        tensors = {
            name: model.get_submodule(full).weight.detach().contiguous() for name, full in matrices.items()
        }
        save_file(tensors, path)
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def run(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Do the job; returns what ``result.json`` holds."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def passed(phase: str) -> None:
        nonlocal began
        seconds[phase], began = time.perf_counter() - began, time.perf_counter()
        reporter.say(phase=phase)

    import torch
    from llmcompressor import oneshot  # noqa: F401 - imported here so that its import is timed as such
    from loguru import logger
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    logger.add(reporter.hear, level="INFO")
    passed("import")
    memory = Peak()
    memory.start()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    modifier = _modifier(job, [full for matrices in job["blocks"] for full in matrices.values()])
    passed("load")
    if job["modifier"] == "magnitude":
        _uncalibrated(model, modifier)
    else:
        _calibrated(model, modifier, job)
    passed("prune")
    memory.stop()
    files = _write(model, job, Path(job["out"]))
    passed("write")
    return {
        "key": job["key"],
        "files": files,
        "seconds": seconds,
        "matrix_seconds": reporter.seconds,
        "warnings": reporter.warnings,
        "base_memory": memory.base,
        "peak_memory": memory.peak,
        "versions": _versions(),
    }


def main() -> None:
    """Entry of the program: one argument, the job's file."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.pop(0)  # this script's own folder: other packages' names must not be looked for here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # deprecations between libraries there are nobody's business here
    reporter = Reporter(stream)
    reporter.say(phase="start")
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = run(job, reporter)
    out = Path(job["out"])
    partial = out / ".result.json"
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(out / "result.json")
    reporter.say(phase="done")
    sys.stdout.flush()
    os._exit(0)  # what llm-compressor leaves running must not hold this process


if __name__ == "__main__":
    main()
