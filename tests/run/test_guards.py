"""Alarms on planted faults, named with block and matrix; silence on healthy models and on the committed studies."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_models import MemorySource, tiny
from torch import Tensor

from bench.evaluate.perplexity import score
from bench.results.records import MatrixFigures
from bench.results.segments import Store
from bench.run.guards import BLOW_UP, OVERFIT, facts, of_blocks, of_loss, of_matrices, texts
from methods.interface import Calibration, Matrix, MatrixReport, Run
from methods.layerwise.rule import Solution
from methods.moments import Moments, Statistic
from methods.stream.sink import BlockFolder
from methods.stream.walk import walk

STUDIES = Path(__file__).resolve().parents[2] / "studies"
TOKENS = torch.randint(3, 101, (6, 24), generator=torch.Generator().manual_seed(5))
NOISY, EMPTY = (1, "self_attn.q_proj"), 2


def figures(
    block: int, name: str = "fc1", error: float | None = 0.05, **changes: float | None
) -> MatrixFigures:
    fields = {"rows": 8, "columns": 8, "removed": 32, "calibration_error": 0.04, **changes}
    return MatrixFigures(block=block, name=name, heldout_error=error, **fields)  # type: ignore[arg-type]


def planted(
    index: int, matrix: Matrix, weight: Tensor, moments: Moments | None, stored: torch.dtype
) -> Solution:
    """A tenth of the weights go; one matrix is replaced by noise, one block by zeros."""
    mask = weight.abs() < weight.abs().quantile(0.1)
    if index == EMPTY:
        mask = torch.ones_like(mask)
    if (index, matrix.name) == NOISY:
        return Solution(3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), mask)
    return Solution(weight.masked_fill(mask, 0), mask)


def test_a_noisy_matrix_and_an_empty_block_are_named(tmp_path: Path) -> None:
    _, source = tiny("opt", num_hidden_layers=5)
    report = walk(
        source,
        Calibration(TOKENS[:3], TOKENS[3:]),
        planted,
        BlockFolder(tmp_path),
        Run(),
        needs=Statistic.GRAM,
    )
    found = of_matrices([as_figures(matrix) for matrix in report.matrices])
    kinds = {(guard.kind, guard.block, guard.matrix) for guard in found}
    assert ("layer-error-jump", *NOISY) in kinds
    assert ("output-lost", *NOISY) in kinds
    assert ("dead-block", EMPTY, "") in kinds
    assert {(block, name) for _, block, name in kinds} == {NOISY, (EMPTY, "")}
    assert f"block {EMPTY} is dead: all its matrices are zero" in texts(found)


def as_figures(matrix: MatrixReport) -> MatrixFigures:
    return MatrixFigures(**{name: getattr(matrix, name) for name in MatrixReport.__slots__})


def scored(family: str, changes: dict[str, float]) -> tuple[tuple[str, int], ...]:
    """Kinds and blocks of alarms on a tiny model some of whose tensors are filled with a value."""
    model, source = tiny(family)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for part, value in changes.items():
        for name in [name for name in state if part in name]:
            state[name] = torch.full_like(state[name], value)
    scores = score(MemorySource(source.config, state), TOKENS, Run())
    return tuple((guard.kind, guard.block) for guard in of_blocks(scores.blocks))


def test_a_block_that_does_nothing_and_one_that_is_not_finite() -> None:
    assert scored("llama", {}) == scored("opt", {}) == scored("bloom", {}) == ()
    dead = {"layers.1.self_attn.o_proj": 0.0, "layers.1.mlp.down_proj": 0.0}
    assert scored("llama", dead) == (("dead-block", 1),)
    assert scored("opt", {"layers.2.fc2.weight": math.nan}) == (("non-finite", 2),)


def test_loss() -> None:
    assert of_loss(3.0, 2048, 2.9) == of_loss(3.0, 2048) == ()
    assert [guard.kind for guard in of_loss(math.nan, 2048, 3.0)] == ["loss"]
    blown = of_loss(6.0, 2048, 3.0)
    assert [(guard.kind, guard.limit) for guard in blown] == [("perplexity-blow-up", BLOW_UP)]
    assert blown[0].value == pytest.approx(math.exp(3.0))
    assert [guard.kind for guard in of_loss(math.inf, 2048, 3.0)] == ["loss", "perplexity-blow-up"]


def test_overfit_damping_and_dead_matrices() -> None:
    matrices = [
        figures(0),
        figures(1, error=0.5, calibration_error=0.1),
        figures(2, escalations=2, damping=1.0),
        figures(3, removed=64, error=1.0),
        figures(3, "fc2"),
    ]
    found = {(guard.kind, guard.block, guard.matrix): guard for guard in of_matrices(matrices)}
    assert found["overfit", 1, "fc1"].value == pytest.approx(5.0)
    assert found["overfit", 1, "fc1"].limit == OVERFIT
    assert found["damping", 2, "fc1"].value == 2
    assert ("dead-matrix", 3, "fc1") in found
    assert ("dead-matrix", 0, "fc1") in {(g.kind, g.block, g.matrix) for g in of_matrices([], {(0, "fc1")})}


def test_warnings_are_the_worst_few_and_facts_are_all() -> None:
    found = of_matrices([figures(block, error=2.0 + block, calibration_error=None) for block in range(9)])
    said = texts(found)
    assert said[0] == "block 8 fc1: held-out output error 10 of its energy"
    assert said[5] == "output-lost: 4 more of the kind"
    assert len(facts(found)) == 9
    assert set(facts(found)[0]) == {"kind", "block", "matrix", "value", "limit"}
    assert of_matrices([figures(0, error=math.nan)])[0].kind == "output-lost"


def test_the_committed_studies_raise_no_alarm_over_matrices() -> None:
    seen = 0
    for folder in sorted(path.parent for path in STUDIES.glob("*/store.json")):
        for record in Store(folder).records():
            if record.phase == "prune" and record.status == "done" and record.matrices:
                assert of_matrices(record.matrices) == (), (folder.name, record.model, record.method)
                seen += 1
    assert seen > 150
