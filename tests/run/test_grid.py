"""The grid on tiny models, in this process: records, reruns, failures, saved checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved_models import saved_with_tokenizer

from bench.executors.local import Outcome, execute
from bench.plan.cells import Cell, expand
from bench.plan.settings import gather
from bench.results.records import Record
from bench.results.segments import Store
from bench.results.values import load_values
from methods.errors import PruneBenchError, UserError


@pytest.fixture(autouse=True)
def _no_texts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


class Watcher:
    """A grid observer that remembers; ``interrupt_at`` raises KeyboardInterrupt at that many steps."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.steps = 0
        self.interrupt_at = interrupt_at

    def plan(self, cells: Sequence[Cell]) -> None:
        self.events.append(("plan", str(len(cells)), ""))

    def cell(self, index: int, cell: Cell) -> None:
        self.events.append(("cell", cell.name, ""))

    def phase(self, name: str, total: int) -> None:
        self.events.append(("phase", name, str(total)))

    def step(self, done: int, note: str = "") -> None:
        self.steps += 1
        if self.interrupt_at is not None and self.steps >= self.interrupt_at:
            raise KeyboardInterrupt

    def warning(self, text: str) -> None:
        self.events.append(("warning", text, ""))

    def cached(self, index: int, cell: Cell) -> None:
        self.events.append(("cached", cell.name, ""))

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None:
        self.events.append((status, cell.name, summary))

    def close(self) -> None:
        self.events.append(("close", "", ""))


def _run(
    out: Path, *models: Path, watcher: Watcher | None = None, force: bool = False, **flags: Any
) -> Outcome:
    settings = gather(
        {
            "models": ",".join(f"path:{model}" for model in models),
            "protocol": "nano",
            "samples": "6",
            "windows": "5",
            "threads": "1",
            **flags,
        }
    )
    return execute(expand(settings), out, watcher or Watcher(), force=force, save=settings.saved)


def _records(out: Path) -> dict[tuple[str, str, str], Record]:
    return {(r.method, r.target, r.phase): r for r in Store(out).records()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_with_tokenizer(tmp_path_factory.mktemp("models") / "opt", "opt")


def test_a_grid_leaves_one_record_per_phase(tmp_path: Path, model: Path) -> None:
    outcome = _run(tmp_path, model, methods="magnitude,sparsegpt", pattern="unstructured,2:4")
    assert outcome == Outcome(done=5)
    records = _records(tmp_path)
    assert len(records) == len(Store(tmp_path).history()) == 10
    dense = records["dense", "0%", "perplexity"]
    for method in ("magnitude", "sparsegpt"):
        for target in ("50%", "2:4"):
            pruned, scored = records[method, target, "prune"], records[method, target, "perplexity"]
            assert pruned.cell == scored.cell and pruned.subject != scored.subject
            assert pruned.metric("sparsity") == 0.5
            assert pruned.metric("weights_removed") == sum(m.removed for m in pruned.matrices)
            nonzero, parameters = pruned.metric("parameters_nonzero"), pruned.metric("parameters")
            assert nonzero is not None and parameters is not None
            assert nonzero == records["dense", "0%", "prune"].metric("parameters_nonzero") - pruned.metric(
                "weights_removed"
            )  # type: ignore[operator]
            assert scored.metric("kl_to_dense") > 0  # type: ignore[operator]
            assert (pruned.seed, bool(pruned.calibration)) == (
                (0, True) if method == "sparsegpt" else (None, False)
            )
            values = load_values(tmp_path, scored.values)
            assert values["nll"].shape == (5,)
            assert scored.metric("nll") == pytest.approx(float(values["nll"].mean()))
            assert scored.provenance["model"]["files"]  # type: ignore[index,call-overload]
    assert dense.metric("kl_to_dense") is None
    assert math.isclose(dense.metric("perplexity") or 0, math.exp(dense.metric("nll") or 0))
    assert not (tmp_path / "work" / "dense").exists()
    assert not any((tmp_path / "work").glob("*/blocks"))
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "finished"


def test_grids_and_selections_are_in_the_records(tmp_path: Path, model: Path) -> None:
    layers = {"layers": "only=fc,except=fc2", "sparsity": "0.5,0"}
    outcome = _run(tmp_path, model, methods="magnitude,sparsegpt", bits="none,4", **layers)
    assert outcome == Outcome(done=5, refused=2)
    records = _records(tmp_path)
    assert records["magnitude", "50%+4bit", "prune"].reason == (
        "magnitude does not quantise; ask for 50% without +4bit"
    )
    joint, alone, plain = (records["sparsegpt", t, "prune"] for t in ("50%+4bit", "0%+4bit", "50%"))
    assert joint.parameters["layers"] == "only=fc,except=fc2" and joint.parameters["grid"] == "minmax"
    assert "grid" not in plain.parameters and "layers" not in records["dense", "0%", "prune"].parameters
    weights = plain.metric("weights_selected")
    assert weights == 3 * 24 * 40  # fc1 of every block
    assert (joint.metric("sparsity_selected"), alone.metric("sparsity_selected")) == (0.5, 0.0)
    removed, prunable = joint.metric("weights_removed"), joint.metric("weights_prunable")
    assert removed == weights / 2 and joint.metric("sparsity") == removed / prunable  # type: ignore[operator]
    dense = records["dense", "0%", "prune"]
    assert dense.metric("sparsity_selected") is None and plain.metric("bits_per_quantised_weight") is None
    # 24 levels of 4 bits fill 3 words a row, 40 zero points 5; a scale of 4 bytes a row, a shape of 16
    packed = 3 * (40 * 3 * 4 + 5 * 4 + 40 * 4 + 16)
    for record in (joint, alone):
        assert record.metric("weights_quantised") == weights
        assert record.metric("bits_per_quantised_weight") == 8 * packed / weights
        assert record.metric("bytes_quantised") == dense.metric("bytes") - 4 * weights + packed  # type: ignore[operator]
        assert record.metric("parameters") == dense.metric("parameters")
        assert record.metric("bytes") == dense.metric("bytes")
    assert len({record.subject for record in Store(tmp_path).records()}) == len(Store(tmp_path).records())
    assert records["sparsegpt", "0%+4bit", "perplexity"].metric("kl_to_dense") > 0  # type: ignore[operator]


def test_another_selection_is_another_cell(tmp_path: Path, model: Path) -> None:
    for layers in ("", "only=fc1", "first=1"):
        assert _run(tmp_path, model, methods="magnitude", layers=layers).done == (1 if layers else 2)
    found = [r for r in Store(tmp_path).records() if r.phase == "prune" and r.method == "magnitude"]
    assert len({r.subject for r in found}) == 3
    assert sorted(str(r.parameters.get("layers")) for r in found) == ["None", "first=1", "only=fc1"]


def test_a_rerun_does_nothing_again(tmp_path: Path, model: Path) -> None:
    _run(tmp_path, model, methods="sparsegpt")
    before = Store(tmp_path).history()
    watcher = Watcher()
    assert _run(tmp_path, model, methods="sparsegpt", watcher=watcher) == Outcome(cached=2)
    assert Store(tmp_path).history() == before
    assert not [event for event in watcher.events if event[0] == "phase"]
    assert _run(tmp_path, model, methods="sparsegpt", force=True) == Outcome(done=2)
    assert len(Store(tmp_path).history()) == 2 * len(before)
    again = _records(tmp_path)["sparsegpt", "50%", "perplexity"]
    first = next(record for record in before if record.key == again.key)
    assert again.metric("perplexity") == first.metric("perplexity")


def test_other_evaluation_windows_repeat_no_record_of_the_prune(tmp_path: Path, model: Path) -> None:
    _run(tmp_path, model, methods="magnitude")
    assert _run(tmp_path, model, methods="magnitude", windows="3") == Outcome(done=2)
    phases = [record.phase for record in Store(tmp_path).history()]
    assert sorted(phases) == ["perplexity"] * 4 + ["prune"] * 2
    protocols = {record.protocol for record in Store(tmp_path).records() if record.phase == "perplexity"}
    assert len(protocols) == 2


def test_what_changes_figures_changes_the_cell(tmp_path: Path, model: Path) -> None:
    """Another seed, damping, schedule, text, dtype or checkpoint is another cell; another thread count is not."""
    cells = set()
    for flags in (
        {},
        {"seeds": "1"},
        {"assignments": ("sparsegpt.percdamp=0.1",)},
        {"schedule": "blockwise"},
        {"samples": "7"},
        {"dtype": "bfloat16"},
        {"hessian_dtype": "float64"},
    ):
        _run(tmp_path, model, methods="sparsegpt", **flags)
        cells |= {r.cell for r in Store(tmp_path).records() if r.method == "sparsegpt"}
    assert len(cells) == 7
    _run(tmp_path, model, methods="sparsegpt", threads="2")
    assert len({r.cell for r in Store(tmp_path).records() if r.method == "sparsegpt"}) == 7


def test_dense_and_magnitude_run_once_for_all_seeds(tmp_path: Path, model: Path) -> None:
    outcome = _run(tmp_path, model, methods="magnitude,sparsegpt", seeds="0,1,2")
    assert outcome == Outcome(done=5)


def test_failed_and_refused_cells_become_records_and_the_grid_goes_on(tmp_path: Path, model: Path) -> None:
    broken = saved_with_tokenizer(tmp_path / "broken", "llama")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    out = tmp_path / "out"
    outcome = _run(out, broken, model, methods="magnitude", pattern="unstructured,5:16")
    assert outcome == Outcome(done=2, refused=2, failed=2)
    by_status: dict[str, list[Record]] = {}
    for record in Store(out).records():
        by_status.setdefault(record.status, []).append(record)
    assert len(by_status["refused"]) == 2 and len(by_status["failed"]) == 2
    assert {record.reason for record in by_status["refused"]} == {
        "5:16 needs widths divisible by 16; self_attn.q_proj has 24 input columns"
    }
    for record in by_status["failed"]:
        assert "model.safetensors" in record.reason and "\n" not in record.reason
    assert _run(out, broken, model, methods="magnitude", pattern="unstructured,5:16").failed == 2
    assert len(by_status["failed"]) == sum(r.status == "failed" for r in Store(out).history()), (
        "no duplicates"
    )


def test_an_unexpected_error_fails_one_cell_and_keeps_its_traceback(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.layerwise.magnitude import Magnitude

    def explode(self: Magnitude, problem: object) -> None:
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setattr(Magnitude, "solve", explode)
    assert _run(tmp_path, model, methods="magnitude,sparsegpt") == Outcome(done=2, failed=1)
    record = next(r for r in Store(tmp_path).records() if r.status == "failed")
    assert record.reason.startswith("RuntimeError: boom second line; traceback in ")
    assert "boom" in Path(record.reason.rpartition(" ")[2]).read_text()


@pytest.mark.parametrize("at", [1, 4, 9, 14, 19])
def test_interrupted_grid_goes_on_and_ends_the_same(tmp_path: Path, model: Path, at: int) -> None:
    flags: dict[str, Any] = {"methods": "sparsegpt", "pattern": "unstructured,2:4", "save": True}
    assert _run(tmp_path / "whole", model, **flags) == Outcome(done=3)
    outcome = _run(tmp_path / "parts", model, watcher=Watcher(interrupt_at=at), **flags)
    assert outcome.interrupted
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["state"] == "interrupted"
    resumed = _run(tmp_path / "parts", model, **flags)
    assert resumed.done + resumed.cached == 3 and not resumed.failed
    assert _figures(tmp_path / "parts") == _figures(tmp_path / "whole")
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")


def _figures(out: Path) -> dict[tuple[str, str, str], Any]:
    history = Store(out).history()
    assert len(history) == len({record.key for record in history}), "no record twice"
    return {
        (r.method, r.target, r.phase): (r.metric("perplexity"), r.metric("heldout_error")) for r in history
    }


def _weights(out: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "checkpoints").rglob("*.safetensors"))
    }


def test_saved_checkpoint_loads_anywhere_and_has_the_zeros(tmp_path: Path, model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _run(tmp_path, model, methods="sparsegpt", pattern="2:4", save=True)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    weight = loaded.model.decoder.layers[1].fc1.weight
    assert bool(((weight == 0).view(weight.shape[0], -1, 4).sum(-1) == 2).all())
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(
        stored["model.decoder.embed_tokens.weight"],
        load_file(model / "model.safetensors")["model.decoder.embed_tokens.weight"],
    )
    again = _run(tmp_path / "reload", folder, methods="dense")
    assert again.done == 1
    scored = _records(tmp_path)["sparsegpt", "2:4", "perplexity"].metric("perplexity")
    assert _records(tmp_path / "reload")["dense", "0%", "perplexity"].metric("perplexity") == scored


def test_a_saved_model_is_not_pruned_again_for_another_evaluation(tmp_path: Path, model: Path) -> None:
    _run(tmp_path, model, methods="sparsegpt", save=True)
    watcher = Watcher()
    _run(tmp_path, model, methods="sparsegpt", windows="3", watcher=watcher)
    assert ("phase", "prune", "3") not in watcher.events
    _run(tmp_path / "fresh", model, methods="sparsegpt", windows="3")
    other = next(
        r for r in Store(tmp_path).records() if "windows=3" in r.protocol and r.method == "sparsegpt"
    )
    fresh = _records(tmp_path / "fresh")["sparsegpt", "50%", "perplexity"]
    assert other.metric("perplexity") == fresh.metric("perplexity")
    assert other.metric("kl_to_dense") == fresh.metric("kl_to_dense")


def test_two_runs_on_one_folder(tmp_path: Path, model: Path) -> None:
    from bench.run.live import held

    with (
        held(tmp_path),
        pytest.raises(UserError, match=r"is in use by process \d+ on .*choose another --out"),
    ):
        _run(tmp_path, model, methods="magnitude")


def test_missing_text_is_refused_with_one_line(tmp_path: Path, model: Path) -> None:
    (tmp_path / "data").mkdir()
    outcome = _run(tmp_path / "out", model, methods="magnitude", text="wikitext2", data_dir=tmp_path / "data")
    assert outcome == Outcome(refused=2)
    for record in Store(tmp_path / "out").records():
        assert "wikitext2" in record.reason and "\n" not in record.reason


def test_a_store_that_cannot_be_written_stops_the_grid(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    real = os.fsync

    def full(handle: int) -> None:
        if "records" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PruneBenchError, match="No space left on device"):
        _run(tmp_path, model, methods="magnitude")
    monkeypatch.undo()
    assert _run(tmp_path, model, methods="magnitude") == Outcome(done=2)
