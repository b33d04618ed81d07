"""What `bench kernels` would measure, and what it will not take."""

from __future__ import annotations

from typing import Any

import pytest

from bench.models.registry import entries
from bench.plan.kernels import MOST_BYTES, KernelSettings, Problem, Row, gather, needs, problems
from bench.run.kernels import without_memory
from methods.errors import UserError


def _plan(**flags: Any) -> list[Problem]:
    return list(problems(gather({"shapes": "64x48,8x4096", "threads": "1", **flags})))


def test_every_combination_stands_once_smaller_matrices_first() -> None:
    found = _plan(batch="1,4,1", sparsity="0.5,0.6", pattern="unstructured,2:4", format="nm,bitmap,dense")
    assert [(problem.shape, problem.target) for problem in found] == [
        *(("64x48", "50%"), ("64x48", "60%"), ("64x48", "2:4")),
        *(("8x4096", "50%"), ("8x4096", "60%"), ("8x4096", "2:4")),
    ]
    assert [(row.format, row.batch) for row in found[0].wanted] == [
        *(("bitmap", 1), ("dense", 1), ("bitmap", 4), ("dense", 4))
    ]
    assert [row.format for row in found[2].wanted] == ["nm", "bitmap", "dense"] * 2
    assert (found[2].pattern, found[2].sparsity) == ("2:4", 0.5)
    assert (found[1].pattern, found[1].sparsity) == ("unstructured", 0.6)


def test_formats_that_cannot_be_are_refused_where_they_were_asked_for() -> None:
    asked = _plan(dtype="bfloat16", format="csr,dense")[0]
    assert asked.refused == (("csr", "torch has no CSR product in bfloat16 on CPUs"),)
    assert {row.format for row in asked.wanted} == {"dense"}
    assert _plan(dtype="bfloat16")[0].refused == ()
    uneven = _plan(shapes="8x6", pattern="2:4", format="nm,bitmap")[0]
    assert dict(uneven.refused)["nm"] == "4 does not divide 6 columns" and not uneven.wanted


def test_default_shapes_are_those_of_registered_models_up_to_a_gibibyte() -> None:
    found = set(gather({}).shapes)
    assert {(576, 1536), (11008, 4096), (4096, 11008), (768, 3072)} <= found
    assert len(found) > 40 and all(4 * rows * columns <= MOST_BYTES for rows, columns in found)
    assert any(4 * entry.config.get("hidden_size", 0) ** 2 * 4 > MOST_BYTES for entry in entries())
    assert set(gather({"models": "nano-llama"}).shapes) == {(192, 192), (64, 192), (512, 192), (192, 512)}


def test_needs_grow_with_the_matrix_and_too_large_ones_are_refused() -> None:
    settings = gather({"shapes": "4096x4096", "threads": "1"})
    small, large = (
        Problem(rows, 4096, "float32", "50%", (Row("bitmap", 1), Row("csr", 1))) for rows in (4096, 65536)
    )
    assert needs(small, settings).memory < needs(large, settings).memory
    assert needs(large, settings).memory > 3 * large.dense_bytes
    assert needs(small, settings).seconds < needs(large, settings).seconds
    assert without_memory(small, settings, 1 << 40) == small
    refused = without_memory(large, settings, 1 << 30)
    assert not refused.wanted and [name for name, _ in refused.refused] == ["bitmap", "csr"]
    assert "GiB of memory, 1.0 GiB are free" in refused.refused[0][1]


def test_defaults() -> None:
    assert gather({"shapes": "8x8", "threads": "1"}) == KernelSettings(shapes=((8, 8),))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"shapes": "10x"},
            "shape '10x' is none; write rows x columns (outputs x inputs) such as 11008x4096",
        ),
        ({"shapes": "8x0"}, "shape '8x0' holds 0 weights; use 1 to"),
        ({"shapes": "8x8,,8x4"}, "--shapes"),
        ({"batch": "0"}, "--batch is '0'; use whole numbers from 1 to 65536"),
        ({"sparsity": "0"}, "--sparsity 0 leaves nothing out"),
        ({"sparsity": "1.5"}, "sparsity '1.5' is not a share"),
        ({"pattern": "4:2"}, "pattern '4:2' keeps 4 of every 2"),
        ({"pattern": "2:4", "sparsity": "0.5"}, "leave --sparsity out, or write --pattern unstructured,2:4"),
        (
            {"format": "bitmaps"},
            "--format 'bitmaps' is unknown; use bitmap, nm, csr, dense; did you mean 'bitmap'?",
        ),
        ({"dtype": "float64"}, "--dtype 'float64' is unknown; use float32, bfloat16, float16, int8"),
        ({"threads": "0"}, "--threads is '0'; use whole numbers from 1 to 4096"),
        ({"repeats": "2"}, "--repeats is '2'; use whole numbers from 3 to 10000"),
        ({"models": "opt-125m"}, "--shapes and --models exclude each other"),
    ],
    ids=str,
)
def test_what_is_none_is_named(flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        gather({"shapes": "8x8", **flags})
    assert message in str(caught.value) and "\n" not in str(caught.value)
