"""Sliced cells in the grid: figures in their records, saved folders, resumed runs, decoding; beside sparsity at equal sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved_models import saved_with_tokenizer

from bench.executors.local import Outcome, execute
from bench.plan.cells import Cell, expand
from bench.plan.observer import GridObserver
from bench.plan.settings import gather
from bench.results.records import Record
from bench.results.segments import Store
from methods.families import sizes
from methods.interface import Silent
from methods.stream.source import CheckpointSource


@pytest.fixture(autouse=True)
def _no_texts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


class _Watcher(Silent, GridObserver):
    """Counts prunes; may interrupt at a step of a phase, once a prune has begun."""

    def __init__(self, interrupt_at: tuple[str, int] | None = None) -> None:
        super().__init__()
        self.name, self.prunes, self.interrupt_at = "", 0, interrupt_at

    def phase(self, name: str, total: int) -> None:
        self.name = name
        self.prunes += name == "prune"

    def step(self, done: int, note: str = "") -> None:
        if self.prunes and (self.name, done) == self.interrupt_at:
            raise KeyboardInterrupt

    def plan(self, cells: Any) -> None: ...
    def cell(self, index: int, cell: Cell) -> None: ...
    def cached(self, index: int, cell: Cell) -> None: ...
    def done(self, index: int, cell: Cell, status: str, summary: str) -> None: ...
    def close(self) -> None: ...


def _run(out: Path, model: Path, watcher: _Watcher | None = None, **flags: Any) -> Outcome:
    given = {
        "models": f"path:{model}",
        "protocol": "nano",
        "samples": "6",
        "windows": "5",
        "threads": "1",
        **flags,
    }
    settings = gather(given)
    return execute(expand(settings), out, watcher or _Watcher(), save=settings.saved)


def _records(out: Path) -> dict[tuple[str, str, str], Record]:
    return {(r.method, r.target, r.phase): r for r in Store(out).records()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_with_tokenizer(tmp_path_factory.mktemp("models") / "bloom", "bloom", seq_length=200)


def test_records_state_weights_parameters_and_bytes_as_achieved(tmp_path: Path, model: Path) -> None:
    outcome = _run(
        tmp_path,
        model,
        methods="slicegpt,magnitude",
        slicing="0,0.4",
        sparsity="0.5",
        fewer_params="0.2",
        fewer_bytes="0.3",
        assignments=("slicegpt.slice_head=true",),
    )
    assert outcome == Outcome(done=8)
    records = _records(tmp_path)
    dense = records["dense", "0%", "prune"]
    for target in ("slice0%", "slice40%", "params-20%", "bytes-30%"):
        cut = records["slicegpt", target, "prune"]
        assert cut.metric("weights_removed") == sum(matrix.removed for matrix in cut.matrices)
        assert cut.metric("weights_prunable") == dense.metric("weights_prunable")
        assert cut.metric("bytes") == 4 * (cut.metric("parameters") or 0)
        assert cut.metric("bytes_bitmap") is None
        assert cut.parameters["hessian_dtype"] == "float32" and cut.parameters["slice_head"] is True
    assert records["slicegpt", "slice0%", "prune"].metric("weights_removed") == 0
    assert any("made the model larger" in text for text in records["slicegpt", "slice0%", "prune"].warnings)
    for method, count, size in (
        ("slicegpt", "parameters", "bytes"),
        ("magnitude", "parameters_nonzero", "bytes_bitmap"),
    ):
        fewer = records[method, "params-20%", "prune"].metric(count)
        assert fewer is not None and fewer <= 0.8 * (dense.metric("parameters") or 0)
        smaller = records[method, "bytes-30%", "prune"].metric(size)
        assert smaller is not None and smaller <= 0.7 * (dense.metric("bytes") or 0)
    whole = records["dense", "0%", "perplexity"].metric("perplexity")
    turned = records["slicegpt", "slice0%", "perplexity"]
    assert turned.metric("perplexity") == pytest.approx(whole, abs=1e-3)
    assert (turned.metric("kl_to_dense") or 0) < 1e-6 and turned.metric("top1_flip_rate") == 0
    assert (records["slicegpt", "slice40%", "perplexity"].metric("kl_to_dense") or 0) > 0.01
    flops = [records["slicegpt", t, "prune"].metric("flops_per_token") or 0 for t in ("slice0%", "slice40%")]
    assert flops[0] > (dense.metric("flops_per_token") or 0) > flops[1]


def test_a_sliced_model_decodes(tmp_path: Path, model: Path) -> None:
    assert _run(tmp_path, model, methods="slicegpt", slicing="0.4", evaluations="decode") == Outcome(done=2)
    assert (_records(tmp_path)["slicegpt", "slice40%", "decode"].metric("decode_tokens_per_second") or 0) > 0


def test_a_saved_sliced_model_is_a_model(tmp_path: Path, model: Path) -> None:
    """Perplexity after a reload is what it was; another evaluation cuts nothing again; what was cut is not cut twice."""
    _run(tmp_path, model, methods="slicegpt", save=True)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert "slice25pct" in folder.name
    cut = _records(tmp_path)["slicegpt", "slice25%", "prune"]
    assert cut.metric("parameters") == sizes.parameters(CheckpointSource(folder).shape)
    assert _run(tmp_path / "reload", folder, methods="slicegpt,magnitude", fewer_params="0.1") == Outcome(
        done=1, refused=2
    )
    again = _records(tmp_path / "reload")
    scored = _records(tmp_path)["slicegpt", "slice25%", "perplexity"].metric("perplexity")
    assert again["dense", "0%", "perplexity"].metric("perplexity") == scored
    assert again["dense", "0%", "prune"].metric("parameters") == cut.metric("parameters")
    assert "is sliced already" in again["slicegpt", "params-10%", "prune"].reason
    watcher = _Watcher()
    assert _run(tmp_path, model, watcher, methods="slicegpt", windows="3").done == 2
    assert watcher.prunes == 0
    assert _run(tmp_path, model, methods="slicegpt", windows="3") == Outcome(cached=2)


_SAVED: dict[str, Any] = {
    "methods": "slicegpt",
    "slicing": "0.4",
    "save": True,
    "assignments": ("slicegpt.orientation=random", "slicegpt.slice_head=true"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert _run(out, model, **_SAVED) == Outcome(done=2)
    return out


@pytest.mark.parametrize(
    "at", [("prune", 0), ("prune", 1), ("prune", 3), ("save", 1), ("perplexity", 2)], ids=str
)
def test_an_interrupted_grid_goes_on_and_ends_the_same(
    tmp_path: Path, model: Path, whole: Path, at: tuple[str, int]
) -> None:
    assert _run(tmp_path, model, _Watcher(at), **_SAVED).interrupted
    resumed = _run(tmp_path, model, **_SAVED)
    assert resumed.done + resumed.cached == 2
    assert _state(tmp_path) == _state(whole)


def _state(out: Path) -> tuple[dict[Any, Any], dict[str, bytes]]:
    figures = {key: (r.metric("perplexity"), r.metric("heldout_error")) for key, r in _records(out).items()}
    files = sorted(path for path in (out / "checkpoints").rglob("*") if path.is_file())
    return figures, {str(path.relative_to(out)): path.read_bytes() for path in files}
