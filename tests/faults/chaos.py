"""Kill a grid at random points until it ends, again and again: nothing lost, nothing twice, the same bits at the end.

`python tests/faults/chaos.py --points 200 --seed 1 --log FILE` is what `nox -s chaos` runs. Every attempt is a process of
its own that runs `bench run`; it is forked from one that has the imports done, so that the points fall on the grid and
not on the start. A point is the n-th step on the file system (before it, after it, or in the middle of a write) or a
moment, mostly counted from where new work begins, so that a grid gets on; the blow is SIGKILL, or SIGTERM, which must end
with exit code 130.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from saved_models import saved_with_tokenizer

from bench.cli.main import main as bench
from bench.results.records import Metric
from bench.results.segments import Store
from bench.run.live import LiveObserver

STEPS = ("open", "write", "fsync", "replace", "ftruncate", "unlink")
"""Functions of `os` on which a point can fall; everything this program keeps goes through them."""
METHODS = "magnitude,sparsegpt,slicegpt"
FLAGS = (
    *("--methods", METHODS, "--pattern", "unstructured,2:4", "--slicing", "0.3", "--protocol", "nano"),
    *("--samples", "8", "--windows", "6", "--threads", "1", "--device", "cpu", "--quiet"),
    *("--save-as", "dense,bitmap"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One blow: after `step` steps on the file system, or after `seconds`; from the start, or from the first new work."""

    signal: str
    step: int = 0
    place: str = ""
    seconds: float = 0.0
    at_work: bool = False


@dataclass(frozen=True, slots=True)
class Struck:
    """Where a blow fell: the step's function, the grid's cell and phase as its state file last said."""

    function: str
    phase: str
    code: int


class Hook:
    """Counts the steps of this process and strikes at the chosen one."""

    def __init__(self, point: Point | None, told: int) -> None:
        self.point, self.told, self.count = point, told, 0
        self.counting = point is None or not point.at_work
        self.dice = random.Random(repr(point))
        self.whole = {name: getattr(os, name) for name in STEPS}
        for name in STEPS:
            setattr(os, name, self._wrapped(name))

    def _wrapped(self, name: str) -> Callable[..., Any]:
        real = self.whole[name]

        def step(*words: Any, **more: Any) -> Any:
            self.count += self.counting
            point = self.point
            if point is None or self.count != point.step:
                return real(*words, **more)
            if name == "write" and point.place == "amid":
                real(words[0], memoryview(words[1])[: self.dice.randrange(len(words[1]) + 1)])
            elif point.place == "after":
                found = real(*words, **more)
                self._strike(name)
                return found
            self._strike(name)
            return real(*words, **more)

        return step

    def _strike(self, name: str) -> None:
        assert self.point is not None
        self.whole["write"](self.told, f"at {name}\n".encode())
        os.kill(os.getpid(), getattr(signal, self.point.signal))

    def begin(self) -> None:
        """Say when new work begins, and count from there if the point asks for it."""
        phase = LiveObserver.phase

        def heard(observer: LiveObserver, name: str, total: int) -> None:
            self.counting = True
            self.whole["write"](self.told, b"begun\n")
            phase(observer, name, total)

        LiveObserver.phase = heard  # type: ignore[method-assign]

    def acknowledge(self) -> None:
        """Say every record whose `append` has returned: from then on it must never be missing."""
        append, write, told = Store.append, self.whole["write"], self.told

        def heard(store: Store, record: Any) -> None:
            append(store, record)
            write(told, f"stored {json.dumps(record.key)}\n".encode())

        Store.append = heard  # type: ignore[method-assign]


def attempt(out: Path, models: str, point: Point | None) -> tuple[int, list[str], float]:
    """One `bench run` in a process of its own; its exit status, what it told, its seconds."""
    ear, told = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(ear)
            with (out.parent / "said.txt").open("ab") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            hook = Hook(point, told)
            hook.acknowledge()
            hook.begin()
            code = bench(["run", "--models", models, *FLAGS, "--out", str(out)])
            hook.whole["write"](told, f"steps {hook.count}\n".encode())
        finally:
            os._exit(code)
    os.close(told)
    heard = b""
    if point is not None and point.seconds:
        if point.at_work:
            heard = _until(ear, b"begun")
        time.sleep(point.seconds)
        os.kill(child, getattr(signal, point.signal))  # not reaped yet, so the number is still its own
    while piece := os.read(ear, 65536):
        heard += piece
    os.close(ear)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, heard.decode().splitlines(), time.monotonic() - began


def _until(ear: int, word: bytes) -> bytes:
    """What is heard until a word comes, or the end."""
    heard = b""
    while word not in heard and (piece := os.read(ear, 65536)):
        heard += piece
    return heard


def outcome(out: Path) -> dict[str, Any]:
    """What must not depend on how often the grid was killed: figures to the last bit, side files, weights."""
    figures = {}
    for record in Store(out).records():
        name = f"{record.model} {record.method} {record.target} {record.phase} {record.protocol}"
        metrics = {m.name: repr(m.value) for m in record.metrics if not _of_the_machine(m)}
        matrices = [{**asdict(matrix), "seconds": 0} for matrix in record.matrices]
        figures[name] = repr((record.status, record.reason, metrics, matrices, record.values))
    weights = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "checkpoints").rglob("*"))
        if path.is_file()
    }
    return {"figures": figures, "weights": weights}


def _of_the_machine(metric: Metric) -> bool:
    """Times, rates and memory, which no two runs share."""
    return metric.unit in ("s", "token/s") or "memory" in metric.name


class Chaos:
    """Grids killed at `points` points in all, and what came of it."""

    def __init__(self, folder: Path, points: int, seed: int) -> None:
        self.folder, self.points, self.seed = folder, points, seed
        self.dice = random.Random(seed)
        self.struck: list[Struck] = []
        self.lost: list[str] = []
        self.twice: list[str] = []
        self.wrong: list[str] = []
        self.grids = 0
        self.models = f"path:{saved_with_tokenizer(folder / 'opt', 'opt')}"
        gc.freeze()

    def run(self) -> dict[str, Any]:
        """Kill until `points` blows have fallen, then finish; returns the log."""
        whole = self.folder / "whole"
        code, said, self.seconds = attempt(whole, self.models, None)
        assert code == 0, (self.folder / "said.txt").read_text()
        self.steps = next(int(line.split()[1]) for line in said if line.startswith("steps"))
        self.expected = outcome(whole)
        while len(self.struck) < self.points:
            self._grid(self.folder / f"grid-{self.grids}")
            self.grids += 1
            print(f"{len(self.struck)} points, {self.grids} grids, {len(self.wrong)} wrong", flush=True)
        return self.log()

    def _point(self) -> Point:
        name = "SIGKILL" if self.dice.random() < 0.75 else "SIGTERM"
        at_work = self.dice.random() < 0.85
        if self.dice.random() < 0.3:
            return Point(name, seconds=self.dice.uniform(0.001, 0.1 * self.seconds), at_work=at_work)
        place = self.dice.choice(("before", "after", "amid"))
        return Point(name, step=self.dice.randrange(1, self.steps // 6), place=place, at_work=at_work)

    def _grid(self, out: Path) -> None:
        stored: set[str] = set()
        while True:
            point = self._point() if len(self.struck) < self.points else None
            code, said, _ = attempt(out, self.models, point)
            stored |= {line[len("stored ") :] for line in said if line.startswith("stored ")}
            self._check(out, stored)
            if code == 0:
                break
            if point is None or code not in (-signal.SIGKILL, 130, -signal.SIGTERM):
                self.wrong.append(f"exit code {code} after {point}: {self._last_words()}")
                if point is None:
                    break
            function = next((line.split()[1] for line in said if line.startswith("at ")), "moment")
            self.struck.append(Struck(function, self._phase(out), code))
            if len(self.struck) % 10 == 0:
                print(f"{len(self.struck)} points, {self.grids} grids, {len(self.wrong)} wrong", flush=True)
        found = outcome(out)
        for part, expected in self.expected.items():
            names = {name for name in expected | found[part] if expected.get(name) != found[part].get(name)}
            self.wrong += [f"{part} differ: {name}" for name in sorted(names)]
        shutil.rmtree(out)

    def _check(self, out: Path, stored: set[str]) -> None:
        if not (out / "store.json").exists():
            self.lost += sorted(stored)
            return
        keys = Counter(json.dumps(record.key) for record in Store(out).history())
        self.lost += sorted(stored - set(keys))
        self.twice += [key for key, count in keys.items() if count > 1]

    def _phase(self, out: Path) -> str:
        try:
            cells = json.loads((out / "run.json").read_text())["cells"]
        except (OSError, ValueError):
            return "before the first cell"
        return next(
            (cell["phase"] or "start" for cell in cells if cell["state"] == "running"), "between cells"
        )

    def _last_words(self) -> str:
        return (self.folder / "said.txt").read_text()[-500:]

    def log(self) -> dict[str, Any]:
        """Figures of the whole, as kept in studies/chaos."""
        return {
            "seed": self.seed,
            "points": len(self.struck),
            "grids": self.grids,
            "records_of_a_grid": len(self.expected["figures"]),
            "weight_files_of_a_grid": len(self.expected["weights"]),
            "steps_of_a_grid": self.steps,
            "lost": len(self.lost),
            "duplicated": len(self.twice),
            "wrong": self.wrong,
            "by_signal": dict(Counter("SIGKILL" if hit.code == -9 else "SIGTERM" for hit in self.struck)),
            "by_step": dict(Counter(hit.function for hit in self.struck)),
            "by_phase": dict(Counter(hit.phase for hit in self.struck)),
        }


def warmed() -> None:
    """Import what a run needs, once, without starting a thread that a fork would lose."""
    import torch

    torch.set_num_threads(1)
    for name in ("bench.evaluate.perplexity", "bench.executors.local", "reports.pages", "reports.terminal"):
        importlib.import_module(name)


def main() -> int:
    """Exit code 1 where anything was lost, duplicated or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--log", type=Path)
    words = parser.parse_args()
    print(f"seed {words.seed}", flush=True)
    warmed()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Chaos(Path(folder), words.points, words.seed).run()
    log["wall_seconds"] = round(time.monotonic() - began)
    text = json.dumps(log, indent=1)
    print(text)
    if words.log:
        words.log.parent.mkdir(parents=True, exist_ok=True)
        words.log.write_text(text + "\n")
    return 1 if log["lost"] or log["duplicated"] or log["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
