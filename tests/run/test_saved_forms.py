"""`--save-as`: every form in its folder with its bytes in a record, refusals on record, only what is missing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import saved_with_tokenizer

from bench.executors.local import Outcome, execute
from bench.plan.cells import Cell, expand
from bench.plan.observer import GridObserver
from bench.plan.resources import estimate
from bench.plan.settings import gather
from bench.plan.stored import stored
from bench.results.records import Record
from bench.results.segments import Store
from bench.run.subject import Subject
from methods.errors import UserError
from methods.interface import Silent


@pytest.fixture(autouse=True)
def _no_texts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


class _Watcher(Silent, GridObserver):
    """Remembers phases and warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[str] = []

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)

    def plan(self, cells: Any) -> None: ...
    def cell(self, index: int, cell: Cell) -> None: ...
    def cached(self, index: int, cell: Cell) -> None: ...
    def done(self, index: int, cell: Cell, status: str, summary: str) -> None: ...
    def close(self) -> None: ...


def _given(model: str, **flags: Any) -> dict[str, Any]:
    return {
        "models": model,
        "protocol": "nano",
        "samples": "4",
        "windows": "3",
        "threads": "1",
        **flags,
    }


def _run(out: Path, model: Path | str, watcher: _Watcher | None = None, **flags: Any) -> Outcome:
    settings = gather(_given(model if isinstance(model, str) else f"path:{model}", **flags))
    plan = expand(settings)
    return execute(plan, out, watcher or _Watcher(), force=settings.force, save=settings.saved)


def _saves(out: Path) -> dict[tuple[str, str, str], Record]:
    return {(r.method, r.target, r.protocol): r for r in Store(out).records() if r.phase == "save"}


def _folders(out: Path) -> set[str]:
    """Names of saved folders without the digest of their cell, and their kind of weights."""
    found = set()
    for folder in (out / "checkpoints").iterdir():
        head, _, tail = folder.name.partition("_")[2].rpartition("_")
        weights = sorted({path.name.partition(".")[0] for path in folder.glob("*.safetensors")})
        found.add(f"{head}{tail[8:]}: {','.join(weights)}")
    return found


def _bytes(out: Path, record: Record) -> int:
    """What the weights' files of a saved form take now."""
    folder = out / "checkpoints" / str(record.provenance["saved"]["folder"])  # type: ignore[index,call-overload]
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_with_tokenizer(
        tmp_path_factory.mktemp("models") / "llama", "llama", dtype=torch.bfloat16, num_hidden_layers=2
    )


_FORMS = {"methods": "sparsegpt", "pattern": "2:4", "bits": "4", "save_as": "dense,bitmap,quantised"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BENCH_DATA_DIR", raising=False)
        out = tmp_path_factory.mktemp("whole")
        assert _run(out, model, **_FORMS) == Outcome(done=2)
    return out


def _files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted((out / "checkpoints").rglob("*"))
        if path.is_file()
    }


def test_every_form_has_its_folder_and_its_bytes_on_record(whole: Path, model: Path) -> None:
    target = "2of4+4bit"
    assert _folders(whole) == {
        f"sparsegpt_{target}: model",
        f"sparsegpt_{target}-bitmap: bitmap",
        f"sparsegpt_{target}-quantised: model",
    }
    saves = _saves(whole)
    prune = next(r for r in Store(whole).records() if r.phase == "prune" and r.method == "sparsegpt")
    bounds = {"dense": "bytes", "bitmap": "bytes_bitmap", "quantised": "bytes_quantised"}
    settings = gather(_given(f"path:{model}", **_FORMS))
    cell = expand(settings).cells[-1]
    foretold = estimate(cell, saved=settings.saved)
    assert foretold.disk_bytes - foretold.saved_bytes == estimate(cell).disk_bytes
    payload = 0
    for form, bound in bounds.items():
        record = saves["sparsegpt", "2:4+4bit", f"save/{form}"]
        assert record.status == "done" and record.cell == prune.cell
        assert [metric.name for metric in record.metrics] == [f"saved_bytes_{form}"]
        size = record.metric(f"saved_bytes_{form}")
        assert size == _bytes(whole, record)
        least = prune.metric(bound)
        # all that a file holds beside its tensors is a header
        headers = sum(
            8 + int.from_bytes(content[:8], "little")
            for name, content in _files(whole).items()
            if name.split("/")[1] == record.provenance["saved"]["folder"] and name.endswith(".safetensors")  # type: ignore[index,call-overload]
        )
        assert size is not None and least is not None and size == least + headers
        payload += int(least)
    assert payload <= foretold.saved_bytes <= 1.1 * payload
    assert len({record.subject for record in saves.values()}) == 3


def test_a_rerun_writes_only_what_is_missing(tmp_path: Path, model: Path, whole: Path) -> None:
    steps: list[tuple[str, set[str]]] = [
        ("dense", {"prune", "perplexity"}),
        ("dense,bitmap", set()),  # from the dense copy
        ("dense,bitmap,quantised", {"prune"}),  # grids are left by pruning alone
    ]
    for forms, phases in steps:
        watcher = _Watcher()
        _run(tmp_path, model, watcher, **{**_FORMS, "save_as": forms})
        assert {"prune", "perplexity"} & {*watcher.phases} == phases and "save" in watcher.phases
    assert _files(tmp_path) == _files(whole)
    history = Store(tmp_path).history()
    assert len({record.key for record in history}) == len(history) == 7
    assert _run(tmp_path, model, **_FORMS) == Outcome(cached=2)
    (gone,) = (tmp_path / "checkpoints").glob("*-bitmap")
    for path in gone.iterdir():
        path.unlink()
    gone.rmdir()
    watcher = _Watcher()
    assert _run(tmp_path, model, watcher, **_FORMS) == Outcome(cached=1, done=1)
    assert watcher.phases == ["save"]
    assert _files(tmp_path) == _files(whole)


def test_bitmaps_alone_spare_a_second_prune(tmp_path: Path, model: Path, whole: Path) -> None:
    flags = {**_FORMS, "save_as": "bitmap"}
    _run(tmp_path, model, **flags)
    assert _folders(tmp_path) == {"sparsegpt_2of4+4bit-bitmap: bitmap"}
    watcher = _Watcher()
    _run(tmp_path, model, watcher, **{**flags, "windows": "2"})
    assert "prune" not in watcher.phases
    _run(tmp_path, model, watcher, **{**flags, "save_as": "dense"})
    assert "prune" not in watcher.phases
    dense = {
        name: content
        for name, content in _files(whole).items()
        if "4bit_" in name and "-" not in Path(name).parts[1][-12:]
    }
    assert dense and all(_files(tmp_path)[name] == content for name, content in dense.items())


@pytest.mark.parametrize("at", range(1, 5))
def test_killed_while_saving_nothing_half_counts(
    tmp_path: Path, model: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    import methods.checkpoints.dense as writing

    real, calls = writing.write_tensors, 0

    def dies(path: Path, *more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        real(path, *more)

    monkeypatch.setattr(writing, "write_tensors", dies)
    outcome = _run(tmp_path, model, **_FORMS)
    assert outcome.interrupted == (at <= 3)
    done = {record.protocol.partition("/")[2] for record in _saves(tmp_path).values()}
    there = {
        name.partition(":")[0].rpartition("-")[2] for name in _folders(tmp_path) if not name.startswith(".")
    }
    assert len(done) == min(at - 1, 3)
    monkeypatch.undo()
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)
    assert not _run(tmp_path, model, **_FORMS).interrupted
    assert _files(tmp_path) == _files(whole)
    assert not list((tmp_path / "checkpoints").glob(".*")) and there


def test_forms_that_a_cell_has_no_model_for_are_refused_and_the_rest_goes_on(
    tmp_path: Path, model: Path
) -> None:
    flags = {
        "methods": "sparsegpt,slicegpt",
        "sparsity": "0.5",
        "slicing": "0.3",
        "bits": "none,4",
        "save_as": "bitmap,quantised",
    }
    watcher = _Watcher()
    outcome = _run(tmp_path, model, watcher, **flags)
    assert outcome.done == 4 and outcome.failed == 0
    saves = _saves(tmp_path)
    status = {key: record.status for key, record in saves.items()}
    assert status == {
        ("sparsegpt", "50%", "save/bitmap"): "done",
        ("sparsegpt", "50%", "save/quantised"): "refused",
        ("sparsegpt", "50%+4bit", "save/bitmap"): "done",
        ("sparsegpt", "50%+4bit", "save/quantised"): "done",
        ("slicegpt", "slice30%", "save/sliced"): "done",
        ("slicegpt", "slice30%", "save/bitmap"): "refused",
        ("slicegpt", "slice30%", "save/quantised"): "refused",
    }
    assert saves["sparsegpt", "50%", "save/quantised"].reason == (
        "--save-as quantised: 50% puts no weight on a grid; join a grid by --bits, as in 50%+4bit"
    )
    reason = saves["slicegpt", "slice30%", "save/bitmap"].reason
    assert "slicegpt changes the model's shapes" in reason and "kept once" in reason and "\n" not in reason
    assert sum("not saved" in text for text in watcher.warnings) == 3
    assert "slicegpt_slice30pct: model" in _folders(tmp_path) and len(_folders(tmp_path)) == 4
    before = len(Store(tmp_path).history())
    again = _Watcher()
    assert _run(tmp_path, model, again, **flags) == Outcome(cached=4, refused=outcome.refused)
    assert len(Store(tmp_path).history()) == before
    assert not again.warnings


def test_grids_that_the_form_cannot_hold_refuse_the_form_only(tmp_path: Path, model: Path) -> None:
    flags = {
        **_FORMS,
        "sparsity": "0.5",
        "pattern": "unstructured",
        "assignments": ("sparsegpt.groupsize=10",),
    }
    assert _run(tmp_path, model, **flags) == Outcome(done=2)
    saves = _saves(tmp_path)
    assert saves["sparsegpt", "50%+4bit", "save/quantised"].status == "refused"
    assert "do not divide its" in saves["sparsegpt", "50%+4bit", "save/quantised"].reason
    assert saves["sparsegpt", "50%+4bit", "save/bitmap"].status == "done"
    assert _run(tmp_path, model, **flags) == Outcome(cached=2)


def test_the_plan_knows_what_is_saved(whole: Path, model: Path) -> None:
    for forms, count in (("dense,bitmap", 2), ("quantised", 2)):
        settings = gather(_given(f"path:{model}", **{**_FORMS, "save_as": forms}))
        assert len(stored(expand(settings).cells, whole, settings.saved)) == count
    settings = gather(_given(f"path:{model}", methods="sparsegpt", pattern="2:4", save_as="bitmap"))
    assert {cell.method for cell in stored(expand(settings).cells, whole, settings.saved)} == {"dense"}


@pytest.mark.parametrize(
    ("flags", "forms"),
    [
        ({}, ()),
        ({"save": True}, ("dense",)),
        ({"save_as": "bitmap"}, ("bitmap",)),
        ({"save": True, "save_as": "Bitmap, dense,bitmap"}, ("bitmap", "dense")),
        ({"save_as": "quantised", "bits": "4"}, ("quantised",)),
    ],
    ids=str,
)
def test_save_as_implies_save(flags: dict[str, Any], forms: tuple[str, ...]) -> None:
    assert gather(flags).saved == forms


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"save_as": "bitmaps"},
            "--save-as 'bitmaps' is unknown; use dense, bitmap, quantised.*bitmap.*; sliced models are always kept",
        ),
        (
            {"save_as": "quantised"},
            "--bits joins no grid to any target; add --bits 4, or leave quantised out",
        ),
        ({"save_as": "dense,quantised", "bits": "none"}, "--bits joins no grid"),
    ],
)
def test_wrong_forms_are_told_in_one_line(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        gather(flags)
    assert "\n" not in str(caught.value)


def _through_transformers(folder: Path, tokens: torch.Tensor) -> float:
    """Perplexity of the windows by plain transformers, in float32."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = loaded(tokens).logits[:, :-1].double().log_softmax(-1)
    return float((-found.gather(-1, tokens[:, 1:, None])).mean().exp())


@pytest.mark.parametrize("name", ["nano-opt", "nano-bloom", "nano-llama"])
def test_perplexity_after_reload_is_what_it_was(tmp_path: Path, name: str) -> None:
    """Every form of the packaged models: by our loader to the last bit, by plain transformers to rounding."""
    import methods.slicing  # noqa: F401 - makes sliced models known to transformers
    from bench.models.load import resolve

    out = tmp_path / "out"
    short = {"length": "64"}  # of calibration windows
    assert _run(out, name, **_FORMS, **short) == Outcome(done=2)
    sliced = {"methods": "slicegpt", "slicing": "0.2", "save": True, **short}
    assert _run(out, name, **sliced) == Outcome(done=1, cached=1)
    records = Store(out).records()
    scored = {(r.method, r.target): r.metric("perplexity") for r in records if r.phase == "perplexity"}
    cell = expand(gather(_given(name, **sliced))).cells[-1]
    tokens = torch.from_numpy(Subject(resolve(name)).evaluation(cell.evaluation, "").tokens)
    plain = {}
    for (method, target, protocol), record in _saves(out).items():
        folder = out / "checkpoints" / str(record.provenance["saved"]["folder"])  # type: ignore[index,call-overload]
        before = scored[method, target]
        form = protocol.removeprefix("save/")
        if form != "quantised":
            again = tmp_path / form
            assert _run(again, folder, methods="dense") == Outcome(done=1)
            (found,) = (r for r in Store(again).records() if r.phase == "perplexity")
            assert found.metric("perplexity") == before
        if form != "bitmap":
            plain[form] = _through_transformers(folder, tokens)
            assert plain[form] == pytest.approx(before, rel=1e-5)
    assert set(plain) == {"dense", "quantised", "sliced"} and plain["quantised"] == plain["dense"]
