"""The llm-compressor adapter, with a stub in its place; and with the real one where an interpreter is named."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fake_llmcompressor import STUB, in_process, interpreter_at
from safetensors.torch import load_file, save_file

from methods import registry
from methods.contract import MethodContract
from methods.contract.checks import digests, outcome, weights, zeros
from methods.contract.models import calibration, checkpoint
from methods.errors import NonFiniteError, OutsideError, UnsupportedTarget, UserError
from methods.external.llmcompressor import interpreter, worker
from methods.families import shape_of
from methods.interface import PruneReport, Run, Silent
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

_REAL = os.environ.get(interpreter.VARIABLE, "")


class TestSparseGPTByStub(MethodContract):
    method = "llmcompressor-sparsegpt"
    targets = ("50%", "2:4")
    exact = False

    @pytest.fixture(autouse=True)
    def _in_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        in_process(monkeypatch)


class TestMagnitudeByStub(MethodContract):
    method = "llmcompressor-magnitude"
    targets = ("50%",)
    families = ("llama",)
    exact = False

    @pytest.fixture(autouse=True)
    def _in_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        in_process(monkeypatch)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stub's interpreter, named in the environment; the folder that it lays tokens in."""
    monkeypatch.setenv(interpreter.VARIABLE, interpreter_at(tmp_path / "python"))
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setenv("STUB_SEEN", str(seen))
    return seen


def _prune(
    model: Path, out: Path, method: str = "llmcompressor-sparsegpt", target: str = "50%", **more: Any
) -> PruneReport:
    run = {"work": out / "work", "identity": "same", **more.pop("run", {})}
    source = CheckpointSource(model, dtype=more.pop("dtype", torch.float32))
    return registry.get(method, more).prune(
        source, calibration(), Target.parse(target), BlockFolder(out / "blocks"), Run(**run)
    )


def test_the_worker_sees_our_tokens_and_we_its_weights(tmp_path: Path, stub: Path) -> None:
    model = checkpoint(tmp_path / "model", "llama", dtype=torch.float16)
    threads = torch.get_num_threads()
    report = _prune(model, tmp_path, batch=3)
    (file,) = stub.iterdir()
    seen = load_file(file)
    assert torch.equal(seen["ids"], calibration().tokens)
    assert torch.equal(seen["mask"], torch.ones_like(seen["ids"]))
    assert seen["sizes"].tolist() == [3, 3, 1]
    assert int(seen["count"]) == 7 and int(seen["threads"]) == threads and int(seen["pid"]) != os.getpid()
    for (index, name), (dense, pruned) in weights(model, tmp_path).items():
        assert zeros(pruned) == dense.numel() // 2, f"{index} {name}"
        assert torch.equal(pruned, torch.where(pruned == 0, pruned, dense))
    assert report.outside is not None
    assert report.outside.versions["llmcompressor"] == "0.14.9"
    assert report.outside.versions["torch"] == torch.__version__
    assert report.outside.peak_memory >= report.outside.base_memory > 10_000_000
    assert set(report.seconds) == {
        "solve", "read", "write", "error", "outside_import", "outside_load", "outside_write",
    }  # fmt: skip
    assert report.seconds["outside_import"] > 0.1, "importing torch takes longer"
    assert report.seconds["solve"] < report.seconds["outside_import"]
    assert all(matrix.seconds > 0 and matrix.heldout_error for matrix in report.matrices)
    last = "model.layers.1.mlp.down_proj"
    assert report.warnings == (
        f"llm-compressor: {last}: Failed to invert hessian due to numerical instability",
    )
    assert not (tmp_path / "work" / "llmcompressor" / "model").exists()


def test_magnitude_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)
    monkeypatch.setenv("STUB_SEEN", str(tmp_path / "no such folder"))
    model = checkpoint(tmp_path / "model", "opt")
    report = _prune(model, tmp_path / "magnitude", "llmcompressor-magnitude", "37%")
    assert [m.removed for m in report.matrices] == [int(m.rows * m.columns * 0.37) for m in report.matrices]
    monkeypatch.delenv("STUB_SEEN")
    _prune(model, tmp_path / "wanda", "llmcompressor-wanda", "1:4")
    for _, pruned in weights(model, tmp_path / "wanda").values():
        assert set((pruned.reshape(-1, 4) == 0).sum(dim=1).tolist()) == {3}


def test_what_decides_the_result_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)
    model = checkpoint(tmp_path / "model", "opt")
    _prune(model, tmp_path, target="3:4", percdamp=0.5, blocksize=6, run={"seed": 4})
    job = json.loads((tmp_path / "work" / "llmcompressor" / "job.json").read_text())
    assert job["mask"] == "1:4", "its N counts what goes"
    assert (job["percdamp"], job["blocksize"], job["seed"], job["batch"]) == (0.5, 8, 4, 1)
    assert job["blocks"][1]["fc2"] == "model.decoder.layers.1.fc2"


def test_a_crash_is_told_by_its_last_line(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_BEHAVIOUR", "crash")
    with pytest.raises(OutsideError) as caught:
        _prune(checkpoint(tmp_path / "model", "llama"), tmp_path)
    assert str(caught.value) == (
        "llm-compressor ended with code 1 after load: "
        "ValueError: cannot prune model.layers.0.self_attn.q_proj?[31m today"
    )


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("exec sleep 600", "gave no sign of life for 1 s and was ended"),
        ("exec >&- sleep 600", "said no more after start and did not end"),
        ("kill -9 $$", "was ended by SIGKILL after start, perhaps for want of memory"),
        ("kill -15 $$", "was ended by SIGTERM after start"),
        ("printf 'one\\ntwo\\rthree\\n\\n' >&2; exit 5", "ended with code 5 after start: three"),
        ('echo not json; echo "[1]"; exit 0', "ended with code 0 after start"),
        ("""echo '{"phase": "done"}'; exit 0""", "ended well and left no whole result; run again"),
    ],
)
def test_however_a_worker_ends_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, said: str
) -> None:
    shell = f'case "$1" in *worker.py) echo $$ > "{tmp_path}/pid"; {behaviour};; esac'
    monkeypatch.setenv(interpreter.VARIABLE, interpreter_at(tmp_path / "python", shell))
    with pytest.raises(OutsideError) as caught:
        _prune(checkpoint(tmp_path / "model", "llama"), tmp_path, silence=1)
    assert str(caught.value) == f"llm-compressor {said}"
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.update(fc1=tensors["fc1"] * math.nan), "block 1 fc1"),
        (
            lambda tensors: tensors.update(fc1=tensors["fc1"].T.contiguous()),
            r"gave block 1 fc1 as \[20, 36\]",
        ),
        (lambda tensors: tensors.pop("fc1"), "lacks block 1 fc1"),
    ],
)
def test_a_result_that_cannot_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str
) -> None:
    in_process(monkeypatch)
    write = worker._write

    def damaged(model: Any, job: Any, out: Path) -> dict[str, str]:
        found = write(model, job, out)
        path = out / "block-00001.safetensors"
        tensors = load_file(path)
        damage(tensors)
        save_file(tensors, path)
        return {**found, path.name: hashlib.sha256(path.read_bytes()).hexdigest()}

    monkeypatch.setattr(worker, "_write", damaged)
    with pytest.raises((OutsideError, NonFiniteError), match=said):
        _prune(checkpoint(tmp_path / "model", "opt"), tmp_path)


class _Impatient(Silent):
    def step(self, done: int, note: str = "") -> None:
        raise KeyboardInterrupt


def test_an_interrupt_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = f'case "$1" in *worker.py) echo $$ > "{tmp_path}/pid"; echo \'{{"matrix": "q"}}\'; exec sleep 600;; esac'
    monkeypatch.setenv(interpreter.VARIABLE, interpreter_at(tmp_path / "python", shell))
    with pytest.raises(KeyboardInterrupt):
        _prune(checkpoint(tmp_path / "model", "llama"), tmp_path, run={"observer": _Impatient()})
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_the_worker_ends_with_its_standard_input() -> None:
    command = [sys.executable, str(worker.__file__), "no job"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"phase": "start"}
        assert process.wait(timeout=60) == 1, "there is no such job"
    fifo = [sys.executable, "-c", f"{_WAITING}"]
    with subprocess.Popen(fifo, stdin=subprocess.PIPE) as process:
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(timeout=60) == 3


_WAITING = """
import time, threading
from methods.external.llmcompressor import worker
threading.Thread(target=worker._end_with_parent, daemon=True).start()
time.sleep(60)
"""

_CHILD = """
import sys
from pathlib import Path
from test_llmcompressor import _prune
_prune(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_the_worker_ends_with_a_killed_parent(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_BEHAVIOUR", "hang")
    model = checkpoint(tmp_path / "model", "llama")
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parents[1], here.parents[2])))
    command = [sys.executable, "-c", _CHILD, str(model), str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as parent:
        files = _wait(lambda: list(stub.glob("*.safetensors")))
        time.sleep(0.2)  # the file is whole
        os.kill(parent.pid, signal.SIGKILL)
    worker = int(load_file(files[0])["pid"])
    _wait(lambda: not psutil.pid_exists(worker))


def _wait(condition: Any) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited for a minute")


def test_a_whole_result_is_used_again_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setenv("STUB_SEEN", str(seen))
    model = checkpoint(tmp_path / "model", "llama")
    first = _prune(model, tmp_path)
    kept = digests(tmp_path / "blocks")

    def again(**run: Any) -> tuple[PruneReport, int]:
        (tmp_path / "work" / "state.json").unlink()  # as if killed while its result was read
        report = _prune(model, tmp_path, run=run)
        assert digests(tmp_path / "blocks") == kept
        return report, len(list(seen.iterdir()))

    report, runs = again()
    assert (
        runs == 1 and outcome(report) == outcome(first) and report.seconds["solve"] == first.seconds["solve"]
    )
    out = tmp_path / "work" / "llmcompressor" / "out"
    torn = out / "block-00001.safetensors"
    torn.write_bytes(torn.read_bytes()[:-4])
    assert again()[1] == 2
    (out / "block-00000.safetensors").unlink()
    assert again()[1] == 3
    said = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps({**said, "files": {}}))
    assert again()[1] == 4
    (out / "result.json").write_text("{")
    assert again()[1] == 5
    assert again(identity="another")[1] == 6
    assert again(identity="another", seed=1)[1] == 7


def test_without_an_interpreter_it_is_refused_and_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (
        "make one: python3 -m venv llmc && llmc/bin/pip install 'llmcompressor==0.14.*' 'transformers<=5.17', "
        "then set BENCH_LLMCOMPRESSOR_PYTHON=llmc/bin/python"
    )
    shape = shape_of(CheckpointSource(checkpoint(tmp_path / "model", "opt")).config)

    def reason(**parameters: Any) -> str | None:
        return registry.get("llmcompressor-wanda", parameters).refuse(shape, Target.parse("50%"))

    monkeypatch.delenv(interpreter.VARIABLE, raising=False)
    none = f"llm-compressor needs a Python environment of its own and none is named; {recipe}"
    assert reason() == none
    with pytest.raises(UnsupportedTarget, match="needs a Python environment of its own"):
        _prune(tmp_path / "model", tmp_path)
    with pytest.raises(UserError) as caught:
        registry.outside("llmcompressor-wanda", {})
    assert str(caught.value) == none
    monkeypatch.setenv(interpreter.VARIABLE, "/no/such/python")
    assert reason() == f"BENCH_LLMCOMPRESSOR_PYTHON is '/no/such/python', which is no program; {recipe}"
    with pytest.raises(
        UserError, match="python is '/nowhere', which is no program; make one: python3 -m venv"
    ):
        reason(python="/nowhere")
    empty = interpreter_at(tmp_path / "empty", stub=tmp_path)
    assert reason(python=empty) == f"'{_short(empty)}' has no llm-compressor; {recipe}"
    old = tmp_path / "old" / "llmcompressor-0.9.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: llmcompressor\nVersion: 0.9.1\n")
    older = interpreter_at(tmp_path / "older", stub=old.parent)
    assert reason(python=older) == f"'{_short(older)}' has llm-compressor 0.9.1, this needs 0.14.*; {recipe}"
    silent = interpreter_at(tmp_path / "silent", "exit 7")
    said = reason(python=silent)
    assert said is not None and said.startswith(f"'{_short(silent)}' does not run as a Python (")


def _short(path: str) -> str:
    return path if len(path) <= 60 else path[:59] + "…"


def test_refusals(tmp_path: Path, stub: Path) -> None:
    shape = shape_of(CheckpointSource(checkpoint(tmp_path / "model", "opt")).config)

    def reason(method: str, target: str) -> str:
        return str(registry.get(method, {}).refuse(shape, Target.parse(target)))

    assert reason("llmcompressor-sparsegpt", "2:4") == "None"
    assert "no N:M patterns such as 2:4; use a share" in reason("llmcompressor-magnitude", "2:4")
    assert reason("llmcompressor-wanda", "3:7") == (
        "3:7 needs widths divisible by 7; self_attn.q_proj has 20 input columns"
    )
    assert "cannot reach slice25%" in reason("llmcompressor-wanda", "slice25%")
    assert "without +4bit" in reason("llmcompressor-sparsegpt", "50%+4bit")
    with pytest.raises(UserError, match="computes in float32 only, not in bfloat16; add --dtype float32"):
        _prune(tmp_path / "model", tmp_path, dtype=torch.bfloat16)


def test_the_interpreter_is_no_part_of_a_record(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = registry.recorded("llmcompressor-wanda", {"batch": 2, "python": "/here", "silence": 9})
    assert everywhere == {"batch": 2}
    assert registry.outside("llmcompressor-wanda", {"batch": 2})["llmcompressor"] == "0.14.9"
    assert registry.outside("sparsegpt", {}) == {}


def test_secrets_and_our_own_packages_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    given = interpreter.environment(3)
    assert not {"HF_TOKEN", "WANDB_API_KEY", "PYTHONPATH"} & set(given)
    assert given["OMP_NUM_THREADS"] == "3" and given["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.slow
@pytest.mark.skipif(not _REAL, reason=f"needs an environment with llm-compressor: set {interpreter.VARIABLE}")
@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_the_real_one_agrees_with_the_published_code(tmp_path: Path, family: str) -> None:
    """On the same tokens its SparseGPT is the published one, which our reference mode follows to the letter."""
    model = checkpoint(tmp_path / "model", family)
    theirs = _prune(model, tmp_path / "theirs")
    registry.get("sparsegpt", {"reference": True}).prune(
        CheckpointSource(model),
        calibration(),
        Target.parse("50%"),
        BlockFolder(tmp_path / "ours" / "blocks"),
        Run(schedule="blockwise"),
    )
    ours = weights(model, tmp_path / "ours")
    for place, (_, pruned) in weights(model, tmp_path / "theirs").items():
        same = (pruned == 0) == (ours[place][1] == 0)
        assert float(same.double().mean()) > 0.99, place
        assert torch.allclose(pruned[same], ours[place][1][same], atol=1e-3), place
    assert theirs.outside is not None and theirs.outside.versions["llmcompressor"].startswith("0.14.")


@pytest.mark.slow
@pytest.mark.skipif(not _REAL, reason=f"needs an environment with llm-compressor: set {interpreter.VARIABLE}")
def test_the_real_magnitude_and_wanda_do_what_they_say(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", "llama")
    _prune(model, tmp_path / "magnitude", "llmcompressor-magnitude", "37%")
    for place, (dense, pruned) in weights(model, tmp_path / "magnitude").items():
        count = int(0.37 * dense.numel())
        expected = dense.abs().flatten().argsort()[:count]
        assert set((pruned == 0).flatten().nonzero()[:, 0].tolist()) == set(expected.tolist()), place
        assert torch.equal(pruned, torch.where(pruned == 0, 0, dense))
    _prune(model, tmp_path / "wanda", "llmcompressor-wanda", "37%")
    for place, (dense, pruned) in weights(model, tmp_path / "wanda").items():
        assert set((pruned == 0).sum(dim=1).tolist()) == {int(0.37 * dense.shape[1])}, place
        assert torch.equal(pruned, torch.where(pruned == 0, 0, dense))
