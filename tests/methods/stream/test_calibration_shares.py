"""Calibration windows shared out over workers: the sums of one walk to rounding, whatever the shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import saved
from torch import Tensor

from methods.errors import NonFiniteError
from methods.interface import Block, Calibration, Matrix, PruneReport, Run
from methods.layerwise.rule import Solution
from methods.moments import Gram, Moments, Statistic
from methods.registry import get
from methods.stream.errors import OutputErrors
from methods.stream.shares import Share, cut
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.stream.walk import walk
from methods.target import Target

EVERYTHING = Statistic.GRAM | Statistic.NORMS | Statistic.MEANS | Statistic.VARIANCES
FAMILIES = ("opt", "bloom", "llama")


def _calibration(windows: int = 13, heldout: int = 3, length: int = 16) -> Calibration:
    tokens = torch.randint(3, 101, (windows + heldout, length), generator=torch.Generator().manual_seed(5))
    return Calibration(tokens[:windows], tokens[windows:])


def _run(workers: Sequence[Any] = (), **settings: Any) -> Run:
    return Run(**{"batch_tokens": 48, "workers": workers, **settings})


def _shares(model: Path, count: int, dtype: torch.dtype = torch.float32, **settings: Any) -> list[Share]:
    return [Share(CheckpointSource(model, dtype=dtype), _run(**settings)) for _ in range(count)]


def _sums(
    model: Path, out: Path, workers: int, calibration: Calibration, **settings: Any
) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """Every stage's Gram matrix and counts, in a walk that changes no weight."""
    found = {}

    def seen(
        index: int, matrix: Matrix, weight: Tensor, moments: Moments | None, stored: torch.dtype
    ) -> Solution:
        assert moments is not None
        found[f"{index} {matrix.name}"] = (moments.gram.matrix.clone(), moments.counts)
        found[f"{index} {matrix.name} norms"] = (moments.norms, moments.counts)
        found[f"{index} {matrix.name} variances"] = (moments.variances, moments.counts)
        return Solution(weight, torch.zeros_like(weight, dtype=torch.bool))

    run = _run(_shares(model, workers, **settings), **settings)
    walk(CheckpointSource(model), calibration, seen, BlockFolder(out), run, needs=EVERYTHING)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("workers", [1, 3])
def test_hessians_are_those_of_one_walk_to_rounding(
    tmp_path: Path, family: str, schedule: str, dtype: torch.dtype, workers: int
) -> None:
    model = saved(tmp_path / "model", family)
    settings: dict[str, Any] = {"schedule": schedule, "hessian_dtype": dtype}
    alone = _sums(model, tmp_path / "alone", 0, _calibration(), **settings)
    shared = _sums(model, tmp_path / "shared", workers, _calibration(), **settings)
    # the windows' states differ in the last bit too, where they are passed in other batches
    close = {"rtol": 1e-5, "atol": 1e-4}
    assert shared.keys() == alone.keys()
    for name, (matrix, counts) in alone.items():
        torch.testing.assert_close(shared[name][0], matrix, **close)
        assert shared[name][1] == counts == (13, 13 * 16)


def test_with_equal_batches_float64_sums_differ_by_their_order_alone(tmp_path: Path) -> None:
    """One window a batch: every state has the same bits, and what is left is the order of float64 additions."""
    model = saved(tmp_path / "model", "llama")
    settings: dict[str, Any] = {"hessian_dtype": torch.float64, "batch_tokens": 16}
    alone = _sums(model, tmp_path / "alone", 0, _calibration(), **settings)
    shared = _sums(model, tmp_path / "shared", 2, _calibration(), **settings)
    for name, (matrix, _) in alone.items():
        torch.testing.assert_close(shared[name][0], matrix, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("windows", [1, 2])
def test_a_worker_without_windows_adds_nothing(tmp_path: Path, windows: int) -> None:
    model = saved(tmp_path / "model", "opt")
    alone = _sums(model, tmp_path / "alone", 0, _calibration(windows, heldout=1), batch_tokens=16)
    shared = _sums(model, tmp_path / "shared", 3, _calibration(windows, heldout=1), batch_tokens=16)
    for name, (matrix, counts) in alone.items():
        torch.testing.assert_close(shared[name][0], matrix, rtol=1e-5, atol=1e-5)
        assert shared[name][1] == counts


@pytest.mark.parametrize("drawn", [0, 1, 5, 64, 128])
@pytest.mark.parametrize("heldout", [0, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_window_is_in_one_share(drawn: int, heldout: int, workers: int) -> None:
    shares = cut(drawn, heldout, workers)
    assert len(shares) == workers
    assert [window for share in shares for window in range(drawn)[share]] == list(range(drawn))
    work = [2.5 * heldout + shares[0].stop, *(share.stop - share.start for share in shares[1:])]
    if drawn >= 2.5 * heldout * workers:
        assert max(work) - min(work) <= 2


@pytest.mark.parametrize("columns", [1, 143, 144, 145, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absorbed_sums_are_the_sum(columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(columns)
    first, second = (torch.randn(2, 7, columns, generator=generator) for _ in range(2))
    whole, left, right = (Moments(EVERYTHING, columns, dtype, torch.device("cpu"), "x") for _ in range(3))
    for inputs in (first, second):
        whole.add(inputs)
    left.add(first)
    right.add(second)
    assert torch.equal(left.gram.matrix, left.gram.matrix.T)
    assert torch.equal(right.gram.matrix, right.gram.matrix.T)
    left.absorb(right.pieces(), right.counts)
    assert left.counts == whole.counts == (4, 28)
    torch.testing.assert_close(left.gram.matrix, whole.gram.matrix, rtol=1e-5, atol=1e-4)
    assert torch.equal(left.gram.matrix, left.gram.matrix.T)
    torch.testing.assert_close(left.variances, whole.variances)
    torch.testing.assert_close(left.norms, whole.norms)


def test_pieces_of_another_width_are_refused() -> None:
    ours, theirs = (Gram(columns, torch.float32, torch.device("cpu")) for columns in (300, 200))
    with pytest.raises((ValueError, RuntimeError)):
        ours.absorb(theirs.pieces(), 1, 1)


class _Killed(Exception):
    pass


class _DyingSink(BlockFolder):
    def __init__(self, folder: Path, survive: int) -> None:
        super().__init__(folder)
        self.survive = survive

    def put(self, index: int, block: Block) -> None:
        super().put(index, block)
        if index == self.survive:
            raise _Killed


def _prune(model: Path, out: Path, workers: int, sink: BlockFolder | None = None, **run: Any) -> PruneReport:
    settings = {"work": out / "work", "identity": "same", **run}
    return get("sparsegpt", {}).prune(
        CheckpointSource(model),
        _calibration(),
        Target.parse("50%"),
        sink or BlockFolder(out / "blocks"),
        _run(_shares(model, workers), **settings),
    )


def _blocks(out: Path) -> Iterator[bytes]:
    for path in sorted((out / "blocks").glob("block-*")):
        yield path.read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
@pytest.mark.parametrize("survive", [0, 1, 2])
def test_a_killed_walk_goes_on_with_new_workers_to_the_same_bits(
    tmp_path: Path, family: str, schedule: str, survive: int
) -> None:
    model = saved(tmp_path / "model", family)
    whole = _prune(model, tmp_path / "whole", 2, schedule=schedule)
    out = tmp_path / "killed"
    with pytest.raises(_Killed):
        _prune(model, out, 2, _DyingSink(out / "blocks", survive), schedule=schedule)
    report = _prune(model, out, 2, schedule=schedule)
    assert report.resumed_blocks == survive
    assert list(_blocks(out)) == list(_blocks(tmp_path / "whole"))
    assert [m.heldout_error for m in report.matrices] == [m.heldout_error for m in whole.matrices]


@pytest.mark.parametrize("damage", ["torn", "cut", "gone"])
def test_damaged_states_of_a_worker_begin_the_walk_anew(tmp_path: Path, damage: str) -> None:
    """As those of the leader do: the same bits, from the first block."""
    model = saved(tmp_path / "model", "opt")
    whole = tmp_path / "whole"
    _prune(model, whole, 2)
    with pytest.raises(_Killed):
        _prune(model, tmp_path, 2, _DyingSink(tmp_path / "blocks", 1))
    kept = tmp_path / "work" / "hidden-00001-2.safetensors"
    if damage == "gone":
        kept.unlink()
    else:
        kept.write_bytes(b"torn" if damage == "torn" else kept.read_bytes()[:-8])
    assert _prune(model, tmp_path, 2).resumed_blocks == 0
    assert list(_blocks(tmp_path)) == list(_blocks(whole))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prune_with_workers_is_as_good_as_one_without(tmp_path: Path, family: str) -> None:
    """Masks may differ where a last bit decides; exact counts and errors show no more than that."""
    model = saved(tmp_path / "model", family)
    alone = _prune(model, tmp_path / "alone", 0, hessian_dtype=torch.float64)
    shared = _prune(model, tmp_path / "shared", 2, hessian_dtype=torch.float64)
    assert [m.removed for m in shared.matrices] == [m.removed for m in alone.matrices]
    for ours, theirs in zip(shared.matrices, alone.matrices, strict=True):
        assert ours.heldout_error == pytest.approx(theirs.heldout_error, rel=0.02)
        assert ours.dead_columns == theirs.dead_columns


def test_what_a_worker_alone_sees_is_found(tmp_path: Path) -> None:
    """Infinity in a worker's windows only: the sum tells it, and the block is named."""
    model = saved(tmp_path / "model", "opt")

    class Broken(Share):
        def embed(self) -> None:
            super().embed()
            self._states.hidden.put(slice(None), torch.full_like(self.states(), float("inf")))

    worker = Broken(CheckpointSource(model), _run())
    with pytest.raises(NonFiniteError, match="block 0"):
        get("sparsegpt", {}).prune(
            CheckpointSource(model),
            _calibration(),
            Target.parse("50%"),
            BlockFolder(tmp_path / "blocks"),
            _run([worker]),
        )


def test_only_selected_matrices_are_gathered_and_handed_on(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")

    gathered: list[tuple[int, ...]] = []
    replaced: list[str] = []

    class Counted(Share):
        def gather(self, stages: tuple[int, ...], *, dense: bool) -> None:
            gathered.append(stages)
            super().gather(stages, dense=dense)

        def replace(self, weights: Block) -> None:
            replaced.extend(weights)
            super().replace(weights)

    worker = Counted(CheckpointSource(model), _run())
    get("sparsegpt", {}, "blocks=1,only=o_proj").prune(
        CheckpointSource(model),
        _calibration(),
        Target.parse("50%"),
        BlockFolder(tmp_path / "blocks"),
        _run([worker]),
    )
    assert gathered == [(1,)]
    assert replaced == ["self_attn.o_proj.weight"]


def test_workers_go_on_while_held_out_errors_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path / "model", "opt")
    calls: list[str] = []

    class Told(Share):
        def __getattribute__(self, name: str) -> Any:
            if name in ("enter", "gather", "sums", "replace", "leave"):
                calls.append(name)
            return super().__getattribute__(name)

    relative = OutputErrors.relative

    def measured(errors: OutputErrors) -> Any:
        calls.append("errors")
        return relative(errors)

    monkeypatch.setattr(OutputErrors, "relative", measured)
    get("sparsegpt", {}).prune(
        CheckpointSource(model),
        _calibration(),
        Target.parse("50%"),
        BlockFolder(tmp_path / "blocks"),
        _run([Told(CheckpointSource(model), _run())]),
    )
    solved = ["sums", "replace"]
    block = ["enter", "gather", *(3 * [*solved, "gather", "errors"]), *solved]
    assert calls == 2 * [*block, "leave", "errors"] + [*block, "errors"]
