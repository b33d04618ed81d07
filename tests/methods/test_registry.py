"""How methods are spelled, looked up, and put together from rule, allocation and refinements."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fake_methods import Rotate, Skewed
from tiny_models import tiny
from torch import Tensor

from methods import registry
from methods.errors import UserError
from methods.interface import Calibration, PruneReport, Run
from methods.layerwise.magnitude import Magnitude
from methods.layerwise.pruner import LayerwisePruner, layerwise
from methods.layerwise.rule import Problem, Rule, Solution, Statistic
from methods.layerwise.sparsegpt import SparseGPT
from methods.spelling import Spelling, parse
from methods.stream.sink import BlockFolder
from methods.target import Target


@dataclass(frozen=True)
class Loses(Rotate):
    name: str = "loses"

    def __call__(self, problem: Problem, mask: Tensor) -> Tensor:
        return torch.zeros_like(mask)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sparsegpt", Spelling("sparsegpt")),
        (" SparseGPT ", Spelling("sparsegpt")),
        ("magnitude@global", Spelling("magnitude", "global")),
        ("magnitude@uniform", Spelling("magnitude", "uniform")),
        ("wanda+dsnot", Spelling("wanda", "", ("dsnot",))),
        ("wanda@owl+dsnot+more", Spelling("wanda", "owl", ("dsnot", "more"))),
        ("dense", Spelling("dense")),
    ],
)
def test_spellings(text: str, parts: Spelling) -> None:
    assert parse(text) == parts
    assert str(parts) == text.strip().lower()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@global", "rule[@allocation][+refinement]"),
        ("magnitude@", "rule[@allocation][+refinement]"),
        ("magnitude+", "rule[@allocation][+refinement]"),
        ("magnitude@a@b", "rule[@allocation][+refinement]"),
        ("magnitude+a@b", "rule[@allocation][+refinement]"),
        ("magnitude global", "rule[@allocation][+refinement]"),
        ("magnitude\n", ""),
        ("2:4", "rule[@allocation][+refinement]"),
        ("", "rule[@allocation][+refinement]"),
        ("dense@global", "write dense"),
        ("dense+dsnot", "write dense"),
        ("magnitude+a+b+a", "names 'a' twice; once is enough"),
    ],
)
def test_wrong_spellings(text: str, said: str) -> None:
    if not said:
        assert parse(text) == Spelling("magnitude")
        return
    with pytest.raises(UserError) as caught:
        parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sparsgpt", "method 'sparsgpt' is unknown; did you mean 'sparsegpt'?"),
        ("qqq", "method 'qqq' is unknown; known: magnitude, sparsegpt"),
        ("magnitude@globl", "allocation 'globl' is unknown; did you mean 'global'?"),
        ("magnitude@zzz", "allocation 'zzz' is unknown; known: uniform, global"),
        ("magnitude+rotat", "refinement 'rotat' is unknown; did you mean 'rotate'?"),
        (
            "rotate",
            "method 'rotate' is unknown; it is a refinement: write it behind +, as in magnitude+rotate",
        ),
        (
            "global",
            "method 'global' is unknown; it is an allocation: write it behind @, as in magnitude@global",
        ),
        ("sparsegpt@rotate", "it is a refinement: write it behind +"),
        ("sparsegpt+global", "it is an allocation: write it behind @"),
        ("sparsegpt+magnitude", "it is a method: write --methods magnitude"),
        (
            "skewed@global",
            "skewed is short for sparsegpt@skewed; write sparsegpt@global for another allocation",
        ),
        ("skewed@uniform", "write sparsegpt@uniform for another allocation"),
        ("turned+rotate", "names 'rotate' twice"),
    ],
)
@pytest.mark.usefixtures("fake_methods")
def test_unknown_names_say_where_to_go(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.spelling(text)
    assert said in str(caught.value)


@pytest.mark.usefixtures("fake_methods")
def test_shorthands_are_spelled_out_with_their_defaults() -> None:
    assert str(registry.spelling("skewed")) == "sparsegpt@skewed"
    assert str(registry.spelling("skewed+rotate")) == "sparsegpt@skewed+rotate"
    assert str(registry.spelling("turned@global")) == "magnitude@global+rotate"
    assert str(registry.spelling("sparsegpt@uniform")) == "sparsegpt"
    short = {key: value.default for key, value in registry.declared("skewed").items()}
    plain = {key: value.default for key, value in registry.declared("sparsegpt@skewed").items()}
    assert short == {**plain, "blocksize": 32, "skewed.lean": 0.5}
    assert plain["skewed.lean"] == 0.0 and "percdamp" in plain


@pytest.mark.usefixtures("fake_methods")
def test_parameters_reach_rule_allocation_and_refinements() -> None:
    pruner = registry.get("skewed+rotate", {"percdamp": 0.5, "rotate.by": 3, "rotate.lambda": 0.25})
    assert isinstance(pruner, LayerwisePruner)
    assert pruner.rule == SparseGPT(percdamp=0.5, blocksize=32)
    assert pruner.allocation == Skewed(0.5)
    assert pruner.refinements == (Rotate(3, 0.25),)
    assert registry.get("magnitude", {}).rule == Magnitude()  # type: ignore[attr-defined]
    assert set(registry.parameters_of("rotate")) == {"by", "lambda"}
    with pytest.raises(UserError, match=r"parameter of sparsegpt@skewed 'skewed\.leen' is unknown; did you"):
        registry.get("sparsegpt@skewed", {"skewed.leen": 1})
    with pytest.raises(UserError, match="method 'nothing' is unknown"):
        registry.parameters_of("nothing")


@pytest.mark.usefixtures("fake_methods")
def test_sources_name_every_part() -> None:
    found = registry.source_modules("skewed+rotate")
    assert {"fake_methods", "methods.layerwise.sparsegpt", "methods.kernels"} <= set(found)
    assert "methods.allocate.global_" in registry.source_modules("magnitude@global")
    assert "methods.allocate.uniform" in registry.source_modules("magnitude")


def test_the_catalogue_holds_together() -> None:
    """Every factory takes its declared defaults, and says what the entry says."""
    names = [
        *registry.names(),
        *registry.allocations(),
        *registry.refinements(),
    ]
    assert len(names) == len(set(names)), "rules, allocations and refinements share --set"
    for name in registry.names():
        entry = registry.method(name)
        pruner = registry.get(name, {key: value.default for key, value in entry.parameters.items()})
        assert pruner.needs_calibration == entry.calibrated
        assert entry.summary and entry.paper
    for name, allocation in registry.allocations().items():
        assert registry.get(f"magnitude@{name}", {}).needs_calibration == allocation.calibrated
    for name, refinement in registry.refinements().items():
        assert registry.get(f"magnitude+{name}", {}).needs_calibration == refinement.calibrated
    for short in registry.shorthands():
        assert registry.get(short, {}) is not None
        assert set(registry.shorthands()[short].parameters) <= set(registry.declared(short))


def _prune(pruner: LayerwisePruner, out: Path, target: str = "50%") -> tuple[PruneReport, dict[str, Tensor]]:
    _, source = tiny("llama")
    tokens = torch.randint(0, 101, (6, 16), generator=torch.Generator().manual_seed(0))
    sink = BlockFolder(out)
    report = pruner.prune(source, Calibration(tokens[:4], tokens[4:]), Target.parse(target), sink, Run())
    from safetensors.torch import load_file

    return report, load_file(min(out.glob("block-*")))


def test_a_refined_mask_is_swept_from_the_dense_weight(tmp_path: Path) -> None:
    """The first matrix of all sees equal inputs in every run, so its mask can be foreseen."""
    _, plain = _prune(layerwise(SparseGPT()), tmp_path / "plain")
    _, kept = _prune(layerwise(SparseGPT(), refine=[Rotate(0)]), tmp_path / "kept")
    _, turned = _prune(layerwise(SparseGPT(), refine=[Rotate(1), Rotate(2)]), tmp_path / "turned")
    name = "self_attn.q_proj.weight"
    assert torch.equal(plain[name], kept[name]), "an unchanged mask gives the unrefined result, bit for bit"
    assert torch.equal(turned[name] == 0, (plain[name] == 0).roll(3, dims=1))
    _, source = tiny("llama")
    dense = source.block(0)[name]
    alive = turned[name] != 0
    assert not torch.equal(turned[name][alive], dense[alive]), "the update follows the refined mask"
    _, still = _prune(layerwise(Magnitude(), refine=[Rotate(1)]), tmp_path / "still")
    alive = still[name] != 0
    assert torch.equal(still[name][alive], dense[alive])


def test_an_update_of_another_rule(tmp_path: Path) -> None:
    _, plain = _prune(layerwise(Magnitude()), tmp_path / "plain")
    _, swept = _prune(layerwise(Wide(), SparseGPT().update), tmp_path / "swept")
    name = "self_attn.q_proj.weight"
    assert torch.equal(plain[name] == 0, swept[name] == 0)
    assert not torch.equal(plain[name], swept[name])


@dataclass(frozen=True)
class Wide:
    """Magnitude that asks for what another rule's update reads, and spoils the weight it is given."""

    name: str = "wide"
    needs: Statistic = Statistic.GRAM

    def solve(self, problem: Problem) -> Solution:
        solved = Magnitude().solve(problem)
        problem.weight.zero_()
        return solved


def test_a_refinement_needs_an_update_and_keeps_counts(tmp_path: Path) -> None:
    rule: Rule = Wide()
    with pytest.raises(
        UserError, match=r"method 'wide' has no update for a fixed mask, so '\+rotate' cannot"
    ):
        layerwise(rule, refine=[Rotate()])
    with pytest.raises(UserError, match="refinement 'loses' changed how many weights of block 0 self_attn"):
        _prune(layerwise(Magnitude(), refine=[Loses()]), tmp_path)
    with pytest.raises(UserError, match="may only exchange them"):
        _prune(layerwise(Magnitude(), refine=[Rotate(1)]), tmp_path, target="2:4")


def test_nothing_is_gathered_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.moments import gram

    def refuse(self: object, inputs: Tensor) -> None:
        raise AssertionError("nobody asked for the Gram matrix")

    pruner = layerwise(Magnitude(), refine=[Rotate()])
    assert pruner.needs == Statistic.MEANS and pruner.needs_calibration
    monkeypatch.setattr(gram.Gram, "add", refuse)
    report, _ = _prune(pruner, tmp_path)
    assert all(matrix.calibration_error is None for matrix in report.matrices)
    assert all(matrix.heldout_error is not None for matrix in report.matrices)


def test_patterns_are_refused_by_plain_allocations_only() -> None:
    _, source = tiny("llama")
    refused = layerwise(Magnitude(), allocate=Skewed()).refuse(source.shape, Target.parse("2:4"))
    assert refused == "2:4 fixes the share of every matrix, which leaves nothing to @skewed"
    able = dataclasses.replace(Skewed(), patterns=True)
    assert layerwise(Magnitude(), allocate=able).refuse(source.shape, Target.parse("2:4")) is None
