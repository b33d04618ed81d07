"""Recovered cells in the grid: their records, what a rerun skips, resumed runs, saved folders, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import saved_with_tokenizer

from bench.executors.local import Outcome, execute
from bench.plan.cells import Cell, expand
from bench.plan.observer import GridObserver
from bench.plan.settings import gather
from bench.plan.stored import stored
from bench.results.records import Record
from bench.results.segments import Store
from bench.run.sources import prune_sources
from methods.errors import UserError
from methods.interface import Silent
from methods.stream.source import CheckpointSource
from reports.comparison import compare
from reports.load import current


@pytest.fixture(autouse=True)
def _no_texts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


class _Watcher(Silent, GridObserver):
    """Counts phases; may interrupt at a step of one."""

    def __init__(self, interrupt_at: tuple[str, int] | None = None) -> None:
        super().__init__()
        self.name, self.seen, self.interrupt_at = "", [], interrupt_at  # type: ignore[var-annotated]

    def phase(self, name: str, total: int) -> None:
        self.name = name
        self.seen.append(name)

    def step(self, done: int, note: str = "") -> None:
        begun = "recover" in self.seen or self.name == "prune"  # not while the dense model is scored
        if begun and (self.name, done) == self.interrupt_at:
            raise KeyboardInterrupt

    def plan(self, cells: Any) -> None: ...
    def cell(self, index: int, cell: Cell) -> None: ...
    def cached(self, index: int, cell: Cell) -> None: ...
    def done(self, index: int, cell: Cell, status: str, summary: str) -> None: ...
    def close(self) -> None: ...


SET = ("lora.steps=6", "lora.batch=2", "lora.lr=0.01", "full.steps=6", "full.batch=2", "full.lr=0.01")


def _settings(model: Path, **flags: Any) -> Any:
    given = {
        "models": f"path:{model}",
        "methods": "magnitude",
        "protocol": "nano",
        "samples": "6",
        "windows": "4",
        "threads": "1",
        "sparsity": "0.6",
        "assignments": SET,
        "recover": "none,lora,full",
        **flags,
    }
    return gather({name: value for name, value in given.items() if value is not None})


def _run(out: Path, model: Path, watcher: _Watcher | None = None, **flags: Any) -> Outcome:
    settings = _settings(model, **flags)
    return execute(expand(settings), out, watcher or _Watcher(), save=settings.saved)


def _records(out: Path, phase: str) -> dict[str, Record]:
    return {str(r.parameters.get("recovery", r.method)): r for r in Store(out).records() if r.phase == phase}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_with_tokenizer(tmp_path_factory.mktemp("models") / "opt", "opt", max_position_embeddings=64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert _run(out, model, gradual="1,2", save=True) == Outcome(done=6)
    return out


def test_one_run_compares_them_with_their_cost(whole: Path, model: Path) -> None:
    prunes, scores = _records(whole, "prune"), _records(whole, "perplexity")
    names = ["dense", "magnitude", "lora", "2xlora", "full", "2xfull"]
    assert list(prunes) == list(scores) == names
    assert len({r.subject for r in prunes.values()}) == len({r.cell for r in prunes.values()}) == 6
    shot = prunes["magnitude"]
    assert shot.metric("recover_time") is None and "recovery" not in shot.parameters and shot.seed is None
    for name in names[2:]:
        record = prunes[name]
        assert record.seed == 0 and record.calibration == "kjv:6xcontext"
        assert record.parameters["recovery"] == name and record.parameters[f"{name[-4:]}.steps"] == 6
        assert (record.parameters["schedule"], record.parameters["hessian_dtype"]) == (
            "sequential",
            "float32",
        )
        assert record.metric("weights_removed") == shot.metric("weights_removed")
        assert record.metric("recover_steps") == 6 and record.metric("recover_tokens") == 6 * 2 * 64
        assert record.metric("recover_time") == record.seconds["recover"] > 0
        assert record.metric("prune_time") == pytest.approx(
            sum(record.seconds.get(phase, 0.0) for phase in ("allocate", "forward", "moments", "solve"))
        )
        assert (record.metric("heldout_error") or 0) > 0
        facts = record.provenance["recovery"]
        assert len(facts["targets"]) == len(facts["best_steps"]) == (2 if name[0] == "2" else 1)
        assert (record.metric("peak_memory") or 0) > 0
        before, after = record.metric("heldout_nll_pruned"), record.metric("heldout_nll_recovered")
        assert before is not None and after is not None and after <= before
        assert (scores[name].metric("perplexity") or 0) < (scores["magnitude"].metric("perplexity") or 0)


def test_a_saved_model_is_the_recovered_one(whole: Path, model: Path) -> None:
    folders = {folder.name.split("_")[-2]: folder for folder in (whole / "checkpoints").iterdir()}
    assert set(folders) == {"60pct", "lora", "2xlora", "full", "2xfull"}
    shot, trained = (CheckpointSource(folders[name]) for name in ("60pct", "full"))
    final = "model.decoder.final_layer_norm.weight"
    assert not torch.equal(shot.raw_outer(final), trained.raw_outer(final))
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folders["full"], dtype=torch.float32).state_dict()
    assert torch.equal(loaded[final], trained.raw_outer(final))
    assert int((loaded["model.decoder.layers.0.fc1.weight"] == 0).sum()) == 576


def test_a_rerun_computes_nothing(whole: Path, model: Path) -> None:
    watcher = _Watcher()
    assert _run(whole, model, watcher, gradual="1,2", save=True) == Outcome(cached=6)
    assert watcher.seen == []
    plan = expand(_settings(model, gradual="1,2", layers="first=1"))
    assert stored(plan.cells, whole) == {plan.cells[0]}  # layers are no less a part of what was asked for
    plan = expand(_settings(model, gradual="1,2"))
    assert stored(plan.cells, whole) == frozenset(plan.cells)


@pytest.mark.parametrize("at", [("prune", 2), ("recover", 0), ("recover", 3), ("perplexity", 1)], ids=str)
def test_an_interrupted_grid_ends_the_same(
    tmp_path: Path, model: Path, whole: Path, at: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("methods.recover.training._SAVE_EVERY", -1.0)
    flags: dict[str, Any] = {"recover": "full", "gradual": "2", "assignments": SET[3:]}
    assert _run(tmp_path, model, _Watcher(at), **flags).interrupted
    resumed = _run(tmp_path, model, **flags)
    assert resumed.done + resumed.cached == 2
    got, wanted = _records(tmp_path, "perplexity")["2xfull"], _records(whole, "perplexity")["2xfull"]
    assert got.metric("perplexity") == wanted.metric("perplexity")
    assert not (tmp_path / "work").exists() or not any((tmp_path / "work").iterdir())
    record = _records(tmp_path, "prune")["2xfull"]
    went_on = "went on with a killed run: peak memory was not measured whole"
    if at[0] != "perplexity":
        assert record.metric("peak_memory") is None
        assert any(went_on in text or "of a killed run" in text for text in record.warnings)


def test_recovered_results_stay_out_of_the_one_shot_ranking(whole: Path) -> None:
    groups = compare(current(Store(whole).records())).groups
    assert [group.key.recovered for group in groups] == [False, True]
    assert [row.name for row in groups[0].rows] == ["dense", "magnitude"]
    assert sorted(row.name for row in groups[1].rows) == [
        "dense",
        *(f"magnitude with {name}" for name in ("2xfull", "2xlora", "full", "lora")),
    ]


def test_refused_with_a_reason(tmp_path: Path, model: Path) -> None:
    flags = {"methods": "sparsegpt", "bits": "4", "recover": "full"}
    assert _run(tmp_path, model, **{**flags, "assignments": ("full.steps=6",)}).refused == 1
    assert _run(tmp_path, model, **{**flags, "assignments": ("full.steps=6",)}).refused == 1
    refused = [record for record in Store(tmp_path).records() if record.status == "refused"]
    assert len(refused) == 1 and refused[0].parameters["recovery"] == "full"
    assert refused[0].reason == (
        "--recover full would move weights off their 4-bit grids; ask for 60% without +4bit, or for --recover none"
    )


def test_divergence_fails_the_cell_and_names_the_rate(tmp_path: Path, model: Path) -> None:
    outcome = _run(
        tmp_path, model, recover="full", assignments=("full.steps=6", "full.lr=1e30", "full.warmup=0")
    )
    assert outcome.failed == 1
    (failed,) = [record for record in Store(tmp_path).records() if record.status == "failed"]
    assert "lower full.lr, which is 1e+30" in failed.reason


def test_only_recovered_cells_depend_on_recovery_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.run import sources
    from methods import registry

    assert not any("recover" in name for name in registry.source_modules("sparsegpt"))
    assert "methods.recover" in registry.source_modules("sparsegpt", "4xfull")
    shot, full, lora = (
        prune_sources("sparsegpt"),
        prune_sources("sparsegpt", "full"),
        prune_sources("sparsegpt", "lora"),
    )
    assert len({shot, full, lora}) == 3
    assert prune_sources("sparsegpt", "4xfull") == full  # the number of stages is the subject's
    version = sources.metadata.version
    monkeypatch.setattr(sources.metadata, "version", lambda name: "0" if name == "peft" else version(name))
    assert prune_sources("sparsegpt", "lora") != lora
    assert (prune_sources("sparsegpt"), prune_sources("sparsegpt", "full")) == (shot, full)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"recover": "lorra"}, "--recover 'lorra' is unknown; use none, lora, full; did you mean 'lora'?"),
        (
            {"recover": "4xfull"},
            "--recover '4xfull' is no recovery; use none, lora or full; --gradual 4 spreads one over 4 stages",
        ),
        (
            {"recover": "none", "gradual": "4"},
            "--gradual 4 has nothing to do between its stages; add --recover lora or --recover full",
        ),
        ({"gradual": "0"}, "--gradual has '0'; give numbers of stages, 1 (one pruning) to 100"),
        ({"gradual": "two"}, "--gradual has 'two'; give numbers of stages, 1 (one pruning) to 100"),
        (
            {"recover": "lora", "methods": "dense", "assignments": None},
            "--recover lora trains pruned models, and --methods has only dense; add a method, or leave --recover out",
        ),
        ({"recover": "lora"}, "--set full.batch is for a recovery not run; add --recover full"),
        ({"assignments": ("lora.rank=0",)}, "lora.rank is 0; it must be at least 1 and at most 65536"),
        ({"assignments": ("lora.lr=-1",)}, "lora.lr is -1.0; it must be at least 1e-09"),
        (
            {"assignments": ("full.lr=nan",)},
            "full.lr is 'nan'; it must be a finite number, as in --set full.lr=0.0001",
        ),
        (
            {"assignments": ("lora.rnk=2",)},
            "lora has no parameter 'rnk'; it has: rank, alpha, steps, lr, batch, warmup; did you mean 'rank'?",
        ),
    ],
)
def test_wrong_commands(model: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        expand(_settings(model, **flags))
    assert str(caught.value) == message


def test_cells_are_named_and_ordered(model: Path) -> None:
    plan = expand(_settings(model, methods="sparsegpt", gradual="1,4", layers="first=1"))
    short = [cell.name.removeprefix(f"path:{model} ") for cell in plan.cells]
    assert short == [
        "dense",
        "sparsegpt 60% first=1 seed 0",
        "sparsegpt 60% first=1 with lora seed 0",
        "sparsegpt 60% first=1 with 4xlora seed 0",
        "sparsegpt 60% first=1 with full seed 0",
        "sparsegpt 60% first=1 with 4xfull seed 0",
    ]
    one = plan.cells[1]
    assert not any(name.startswith(("lora.", "full.")) for name, _ in one.parameters)
    assert {name for name, _ in plan.cells[2].parameters if "." in name} == {
        f"lora.{name}" for name in ("rank", "alpha", "steps", "lr", "batch", "warmup")
    }
