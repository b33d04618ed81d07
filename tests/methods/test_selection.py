"""`--layers`: its grammar, and what it does to every layer-wise method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_methods import add_to_catalogue
from saved_models import saved

from methods import registry
from methods.errors import UserError
from methods.families import family_of, shape_of
from methods.interface import Calibration, Matrix, PruneReport, Run
from methods.registry import get
from methods.selection import EVERYTHING, Selection
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

_MATRICES = tuple(Matrix(name, 4, 4) for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"))


def _chosen(text: str, blocks: int = 6) -> list[str]:
    return [f"{index}.{matrix.name}" for index, matrix in Selection.parse(text).of(_MATRICES, blocks)]


def _blocks(text: str, blocks: int = 6) -> list[int]:
    return sorted({int(name.partition(".")[0]) for name in _chosen(text, blocks)})


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("blocks=2", [2]),
        ("blocks=1-3", [1, 2, 3]),
        ("blocks=4-9", [4, 5]),
        ("blocks=0|3-4", [0, 3, 4]),
        ("first=2", [0, 1]),
        ("last=1", [5]),
        ("first=1,last=2", [0, 4, 5]),
        ("first=1, blocks=3", [0, 3]),
        ("first=99", [0, 1, 2, 3, 4, 5]),
        ("blocks=1-3,invert", [0, 4, 5]),
    ],
)
def test_blocks(text: str, blocks: list[int]) -> None:
    assert _blocks(text) == blocks
    assert len(_chosen(text)) == 3 * len(blocks)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("only=mlp", ["mlp.up_proj"]),
        ("only=q_proj|mlp", ["self_attn.q_proj", "mlp.up_proj"]),
        ("except=o_proj", ["self_attn.q_proj", "mlp.up_proj"]),
        ("only=self_attn,except=o_proj", ["self_attn.q_proj"]),
        ("only=mlp,invert", ["self_attn.q_proj", "self_attn.o_proj"]),
    ],
)
def test_names(text: str, names: list[str]) -> None:
    assert _chosen(text, 1) == [f"0.{name}" for name in names]


def test_clauses_hold_together_and_invert_turns_the_whole() -> None:
    """SparseGPT's `--minlayer 1 --maxlayer 3 --prune_only up --invert`."""
    assert _chosen("blocks=1-2,only=up", 3) == ["1.mlp.up_proj", "2.mlp.up_proj"]
    left = _chosen("blocks=1-2,only=up,invert", 3)
    assert len(left) == 7 and "0.mlp.up_proj" in left and "1.mlp.up_proj" not in left


@pytest.mark.parametrize(
    "text",
    ["blocks=0-3|8", "only=mlp|q_proj,except=up", "first=2,last=1", "blocks=3", "only=mlp,invert", ""],
)
def test_the_spelling_is_canonical(text: str) -> None:
    selection = Selection.parse(text)
    assert str(selection) == text and Selection.parse(str(selection)) == selection
    assert bool(selection) == bool(text)
    words = [part for part in text.split(",") if part]
    assert str(Selection.parse(" , ".join(reversed(words)))) == text if words else selection == EVERYTHING


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bloks=0-3", r"'bloks=0-3', which is no clause; use blocks=0-3, first=N.*did you mean 'blocks'\?"),
        ("mlp", "'mlp', which is no clause"),
        ("only", "'only', which is no clause"),
        ("only=", "only= is no part of a matrix's name; write only=mlp"),
        ("only=mlp|", "only= is no part"),
        ("only=*", r"only=\* is no part"),
        ("blocks=3-1", "blocks=3-1 runs backwards; write blocks=1-3"),
        ("blocks=a", "blocks=a is no range"),
        ("blocks=-1", "blocks=-1 is no range"),
        ("first=0", "first=0 is no number of blocks; write first=2"),
        ("last=two", "last=two is no number"),
        ("first=1|2", r"first=1\|2 is no number"),
        ("only=a,only=b", r"has only twice; separate alternatives by \|"),
        ("invert=true", "'invert=true', which is no clause"),
        (",", "'', which is no clause"),
    ],
)
def test_what_is_no_selection(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Selection.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("blocks=6", "--layers blocks=6 is not in this model: it has blocks 0-5 with self_attn.q_proj"),
        ("blocks=0|7-9", "--layers blocks=7-9 is not in this model"),
        ("only=fc1", "--layers only=fc1 matches no matrix of this model: it has blocks 0-5 with self_attn"),
        ("only=mlp|fc1", "only=fc1 matches no matrix"),
        ("except=fc1", "except=fc1 matches no matrix"),
        ("except=proj", "--layers except=proj leaves no matrix of this model"),
        ("first=6,invert", "--layers first=6,invert leaves no matrix"),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(text: str, said: str) -> None:
    reason = Selection.parse(text).refuse(_MATRICES, 6)
    assert said in str(reason)
    assert "mlp.up_proj" in str(reason)


def test_what_matches_is_not_refused() -> None:
    for text in ("", "blocks=0-99", "only=mlp", "first=9", "except=mlp,last=1"):
        assert Selection.parse(text).refuse(_MATRICES, 6) is None


_METHODS = (
    "magnitude",
    "magnitude@global",
    "wanda",
    "ria",
    "sparsegpt",
    "sparsegpt@owl",
    "magnitude@levels",
    "wanda+dsnot",
)


def _calibration() -> Calibration:
    tokens = torch.randint(3, 101, (8, 16), generator=torch.Generator().manual_seed(5))
    return Calibration(tokens[:6], tokens[6:])


def _prune(model: Path, out: Path, method: str, target: str, layers: str, **run: Any) -> PruneReport:
    source = CheckpointSource(model)
    pruner = get(method, {}, layers)
    assert pruner.refuse(source.shape, Target.parse(target)) is None
    return pruner.prune(source, _calibration(), Target.parse(target), BlockFolder(out), Run(**run))


@pytest.mark.parametrize("method", _METHODS)
def test_unselected_matrices_stay_bit_for_bit_and_the_share_is_of_the_others(
    tmp_path: Path, method: str
) -> None:
    model = saved(tmp_path / "model", "llama", dtype=torch.float16)
    layers = "blocks=1-2,except=k_proj|down"
    report = _prune(model, tmp_path / "blocks", method, "50%", layers)
    dense, pruned = CheckpointSource(model), CheckpointSource(model, overlay=tmp_path / "blocks")
    selected = {
        (index, matrix.name): matrix.size
        for index, matrix in Selection.parse(layers).of(
            dense.family.matrices(dense.shape), dense.shape.blocks
        )
    }
    removed = {(matrix.block, matrix.name): matrix.removed for matrix in report.matrices}
    assert len(removed) == 21 and len(selected) == 10
    for index in range(3):
        before, after = dense.raw_block(index), pruned.raw_block(index)
        for name, tensor in before.items():
            key = (index, name.removesuffix(".weight"))
            if key not in selected:
                assert torch.equal(tensor, after[name]), name
                assert removed.get(key, 0) == 0
            else:
                assert int((after[name] == 0).sum()) >= removed[key] > 0
    total = sum(removed.values())
    assert abs(total - sum(selected.values()) / 2) <= (0 if "global" in method else len(selected) / 2)
    kept = [matrix for matrix in report.matrices if (matrix.block, matrix.name) not in selected]
    assert all(matrix.heldout_error == 0 and matrix.damping is None for matrix in kept)


@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
@pytest.mark.parametrize("target", ["2:4", "0%+3bit"])
def test_selection_goes_with_patterns_grids_and_schedules(tmp_path: Path, schedule: str, target: str) -> None:
    model = saved(tmp_path / "model", "opt")
    report = _prune(model, tmp_path / "blocks", "sparsegpt", target, "only=fc", schedule=schedule)
    dense, pruned = CheckpointSource(model), CheckpointSource(model, overlay=tmp_path / "blocks")
    for matrix in report.matrices:
        name = f"{matrix.name}.weight"
        before, after = (source.raw_block(matrix.block)[name] for source in (dense, pruned))
        assert torch.equal(before, after) == ("fc" not in matrix.name)
        assert matrix.calibration_error is not None
        assert (matrix.calibration_error == 0) == ("fc" not in matrix.name)
        assert (matrix.name in pruned.grids(matrix.block)) == ("fc" in matrix.name and "bit" in target)


def test_one_block_alone_is_pruned_as_in_the_whole_model(tmp_path: Path) -> None:
    """The first block sees the same inputs, so it comes out with the same bits."""
    model = saved(tmp_path / "model", "bloom")
    for layers in ("", "first=1"):
        _prune(model, tmp_path / f"blocks{layers}", "sparsegpt", "50%", layers)
    whole, part = (
        CheckpointSource(model, overlay=tmp_path / f"blocks{layers}").raw_block(0)
        for layers in ("", "first=1")
    )
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


def test_a_killed_selection_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")

    class Stop(BlockFolder):
        def put(self, index: int, block: Any) -> None:
            if index == 2:
                raise KeyboardInterrupt
            super().put(index, block)

    pruner = get("sparsegpt", {}, "only=mlp")
    target = Target.parse("50%+4bit")
    for folder, sink in (("a", BlockFolder), ("b", Stop), ("b", BlockFolder)):
        run = Run(work=tmp_path / folder / "work", identity="same")
        try:
            report = pruner.prune(
                CheckpointSource(model), _calibration(), target, sink(tmp_path / folder / "blocks"), run
            )
        except KeyboardInterrupt:
            continue
    assert report.resumed_blocks == 2
    for path in sorted((tmp_path / "a" / "blocks").glob("block-*")):
        assert path.read_bytes() == (tmp_path / "b" / "blocks" / path.name).read_bytes()


def test_refusals_name_what_there_is() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 3}
    from tiny_models import CONFIGS

    shape = shape_of({**CONFIGS["llama"], **config})
    target = Target.parse("50%")
    reason = get("magnitude", {}, "only=fc1").refuse(shape, target)
    names = ", ".join(matrix.name for matrix in family_of(shape).matrices(shape))
    assert reason == f"--layers only=fc1 matches no matrix of this model: it has blocks 0-2 with {names}"
    # widths matter only where something is pruned
    assert "16" in str(get("magnitude", {}, "").refuse(shape, Target.parse("5:16")))
    wide = shape_of({**CONFIGS["llama"], **config, "intermediate_size": 48})
    assert get("magnitude", {}, "").refuse(wide, Target.parse("5:16")) is not None
    assert get("magnitude", {}, "only=down_proj").refuse(wide, Target.parse("5:16")) is None


def test_an_allocation_that_spreads_over_everything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    add_to_catalogue(monkeypatch)
    from tiny_models import CONFIGS

    shape = shape_of({"model_type": "opt", **CONFIGS["opt"]})
    try:
        assert get("magnitude@skewed", {}).refuse(shape, Target.parse("50%")) is None
        reason = get("magnitude@skewed", {}, "only=fc1").refuse(shape, Target.parse("50%"))
    finally:
        registry._table.cache_clear()
    assert reason == "@skewed spreads its budget over every matrix; leave out --layers only=fc1"
