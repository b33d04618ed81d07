"""Mixed sparsity through the harness: spellings, what cells share, what a rerun looks at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saved_models import saved_with_tokenizer

from bench.executors.local import Outcome, execute
from bench.plan.cells import Plan, expand
from bench.plan.settings import gather
from bench.results.records import Record
from bench.results.segments import Store
from methods.errors import UserError

FEW = ("mixed.probes=2", "mixed.windows=2")


@pytest.fixture(autouse=True)
def _no_texts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


class Quiet:
    """A grid observer that looks away."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_with_tokenizer(tmp_path_factory.mktemp("models") / "llama", "llama")


def plan(model: Path, methods: str, *sets: str, **flags: Any) -> Plan:
    few = {"protocol": "nano", "samples": "6", "windows": "3", "threads": "1"}
    asked = {"models": f"path:{model}", "methods": methods, "assignments": (*FEW, *sets), **few, **flags}
    return expand(gather(asked))


def run(out: Path, made: Plan) -> Outcome:
    return execute(made, out, Quiet(), force=False)  # type: ignore[arg-type]


def pruned(out: Path) -> list[Record]:
    return [record for record in Store(out).records() if record.phase == "prune" and record.method != "dense"]


def test_mixed_is_sparsegpt_with_the_allocation_and_isc(model: Path) -> None:
    short = plan(model, "mixed").cells[-1]
    assert short.method == "sparsegpt@mixed"
    assert dict(short.parameters)["saliency"] == "isc"
    assert dict(short.parameters)["mixed.alpha"] == 0.1
    spelled = plan(model, "sparsegpt@mixed", "sparsegpt.saliency=isc").cells[-1]
    assert spelled == short
    both = plan(model, "mixed,sparsegpt@mixed").cells[1:]
    assert [dict(cell.parameters)["saliency"] for cell in both] == ["isc", "obs"]


def test_cells_of_a_seed_share_one_estimate(tmp_path: Path, model: Path) -> None:
    made = plan(model, "mixed,magnitude@mixed", sparsity="0.5,0.7")
    more = plan(model, "magnitude@mixed", seeds="1")
    assert run(tmp_path, made) == Outcome(done=5)
    assert run(tmp_path, more) == Outcome(done=1, cached=1)
    files = sorted((tmp_path / "sensitivities").iterdir())
    keys = [json.loads(file.read_text())["key"] for file in files]
    assert sorted(key["seed"] for key in keys) == [0, 1]
    assert {key["model"] for key in keys} == {pruned(tmp_path)[0].provenance["model"]["revision"]}  # type: ignore[index,call-overload]
    seconds = {key["seed"]: json.loads(f.read_text())["seconds"] for key, f in zip(keys, files, strict=True)}
    for record in pruned(tmp_path):
        assert record.seed is not None
        assert record.seconds["allocate"] >= seconds[record.seed], "every cell bears the whole cost"
        assert record.metric("prune_time") >= seconds[record.seed]  # type: ignore[operator]
        share = 0.5 if record.target == "50%" else 0.7
        assert record.metric("sparsity") == pytest.approx(share, abs=1e-3)
        assert len({m.removed / (m.rows * m.columns) for m in record.matrices}) > 5
    assert len({record.cell for record in pruned(tmp_path)}) == 5


def test_a_file_counts_by_its_content(tmp_path: Path, model: Path) -> None:
    run(tmp_path / "a", plan(model, "mixed"))
    (file,) = (tmp_path / "a" / "sensitivities").iterdir()
    made = plan(model, "mixed", f"mixed.file={file}")
    assert run(tmp_path / "b", made) == Outcome(done=2)
    (ours,), (theirs,) = pruned(tmp_path / "a"), pruned(tmp_path / "b")
    assert [m.removed for m in ours.matrices] == [m.removed for m in theirs.matrices]
    assert any("sensitivities from a file" in warning for warning in theirs.warnings)
    assert not (tmp_path / "b" / "sensitivities").exists()
    assert run(tmp_path / "b", made) == Outcome(cached=2)
    value = json.loads(file.read_text())
    for entry in value["matrices"]:
        entry["probes"] = [1 / (1 + probe) for probe in entry["probes"]]
    file.write_text(json.dumps(value))
    assert run(tmp_path / "b", made) == Outcome(done=1, cached=1)
    assert len(pruned(tmp_path / "b")) == 2
    other = plan(model, "mixed", f"mixed.file={file}", seeds="0,1")
    assert run(tmp_path / "b", other) == Outcome(failed=1, cached=2), "another seed's cell fails alone"
    (failed,) = [record for record in Store(tmp_path / "b").records() if record.status == "failed"]
    assert failed.seed == 1 and "seed 0 (here 1)" in failed.reason


def test_a_missing_file_is_refused_in_the_plan(model: Path) -> None:
    (refusal,) = plan(model, "mixed", "mixed.file=/no/such").refusals
    assert refusal.reason == (
        "mixed.file '/no/such' does not exist; give a file of sensitivities, or leave it out"
    )


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("mixed.alpha=0.6", "mixed.alpha is 0.6; it must be at least 0 and at most 0.5"),
        ("mixed.estimator=fischer", "mixed.estimator is 'fischer'; .* did you mean 'fisher'"),
        ("mixed.level=block", "mixed.level is 'block'; it must be one of matrix, layer"),
        ("mixed.probes=0", "mixed.probes is 0; it must be at least 1"),
        ("sparsegpt.saliency=isq", "sparsegpt.saliency is 'isq'; it must be one of obs, isc, isc-literal"),
    ],
)
def test_wrong_parameters_get_one_line(model: Path, wrong: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        plan(model, "mixed", wrong)
