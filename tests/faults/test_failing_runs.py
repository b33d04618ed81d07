"""Runs on broken models, full disks and damaged stores, through the real command: one clear line, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import saved_with_tokenizer

from bench.cli.main import main
from bench.results.segments import Store

_FLAGS = (
    "--methods",
    "magnitude",
    "--protocol",
    "nano",
    "--windows",
    "4",
    "--samples",
    "4",
    "--device",
    "cpu",
)


def _run(capsys: pytest.CaptureFixture[str], out: Path, model: Path, *more: str) -> tuple[int, str, str]:
    words = ["run", "--models", f"path:{model}", *_FLAGS, "--threads", "1", "--out", str(out), *more]
    code = main(words)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return int(code or 0), printed.out, printed.err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_with_tokenizer(tmp_path / "model", "opt")


def _reasons(out: Path) -> set[str]:
    return {record.reason for record in Store(out).records() if record.status == "failed"}


def test_truncated_weights(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, _ = _run(capsys, tmp_path / "out", model)
    assert code == 1
    (reason,) = _reasons(tmp_path / "out")
    assert "model.safetensors" in reason and "\n" not in reason


def test_weights_that_are_no_safetensors(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 64)
    assert _run(capsys, tmp_path / "out", model)[0] == 1
    assert any("model.safetensors" in reason for reason in _reasons(tmp_path / "out"))


def test_weights_that_do_not_match_the_config(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "ffn_dim": 44}))
    assert _run(capsys, tmp_path / "out", model)[0] == 1
    assert any("fc1" in reason for reason in _reasons(tmp_path / "out"))


def test_nan_weights(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.decoder.layers.2.fc1.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert _run(capsys, tmp_path / "out", model)[0] == 1
    assert any("block 2 fc1" in reason and "NaN" in reason for reason in _reasons(tmp_path / "out"))
    dense = next(record for record in Store(tmp_path / "out").records() if record.phase == "perplexity")
    assert dense.warnings, "a dense model with NaN is reported, with a warning"


def test_missing_tokenizer(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in model.glob("*token*"):
        path.unlink()
    assert _run(capsys, tmp_path / "out", model)[0] == 1
    assert any("tokenizer" in reason for reason in _reasons(tmp_path / "out"))


def test_pickled_weights_are_refused(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    code, _, error = _run(capsys, tmp_path / "out", model)
    assert code in (1, 2)
    said = error + " ".join(_reasons(tmp_path / "out") if (tmp_path / "out" / "records").exists() else ())
    assert "safetensors" in said


def test_code_beside_the_model_is_not_run(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    code, _, error = _run(capsys, tmp_path / "out", model)
    assert code in (1, 2) and not (tmp_path / "ran").exists()
    assert "auto_map" in error + "".join(
        _reasons(tmp_path / "out") if (tmp_path / "out" / "records").exists() else ()
    )


def test_a_torn_store_is_set_aside_and_filled_again(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _run(capsys, out, model)[0] == 0
    before = {record.key for record in Store(out).records()}
    (segment,) = (out / "records").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes()[:-40])
    assert _run(capsys, out, model)[0] == 0
    store = Store(out)
    assert {record.key for record in store.records()} == before
    assert store.torn, "the torn line is reported, not dropped"


def test_a_full_disk_loses_nothing(tmp_path: Path, model: Path) -> None:
    """A limit on file size stands for a full disk: writes fail with an error of the system."""
    out = tmp_path / "out"
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from bench.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    words = ["run", "--models", f"path:{model}", *_FLAGS, "--threads", "1", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    failed = subprocess.run(
        [sys.executable, "-c", script, "6000", *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "error:" in failed.stderr or "failed" in failed.stderr
    whole = subprocess.run(
        [sys.executable, "-m", "bench", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert whole.returncode == 0, whole.stderr
    assert {record.status for record in Store(out).records() if record.phase == "perplexity"} == {"done"}


def test_unreachable_hub_fails_in_one_line_and_the_grid_goes_on(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    words = [
        "run",
        "--models",
        f"bloom-560m,path:{model}",
        *_FLAGS,
        "--threads",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 1
    capsys.readouterr()
    (reason,) = _reasons(tmp_path / "out")
    assert "bench pull bloom-560m" in reason and "path:" in reason
    done = [record for record in Store(tmp_path / "out").records() if record.status == "done"]
    assert {record.method for record in done} == {"dense", "magnitude"}
