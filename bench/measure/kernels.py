"""Products of one matrix in several formats, timed in turns and held against a float64 product at the very mask."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.measure.ceiling import Ceilings, cache_bytes
from bench.plan.kernels import BASELINE, Problem
from methods.kernels.formats import Bitmap, pack, unpack
from methods.kernels.prepared import BitmapProduct, DenseProduct
from methods.target import Target

__all__ = ["WARMUPS", "Measured", "Prepared", "make_weight", "prepare", "verdict"]

WARMUPS: Final = 1
_MOST_COPIES = 512
_CHUNK = 1 << 24
"""Weights held in float64 at once while the exact product is made."""

Call = Callable[[Tensor], Tensor]
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to multiply: a call for each copy of the matrix; x [batch, columns] to y [batch, rows]."""

    format: str
    calls: tuple[Call, ...]
    setup: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One format at one batch size. ``times`` float64 [repeats], s a product; see ``bench kernels`` for the rest.

    ``reference_times`` are those of torch's ``F.linear`` in the same turns, which no change of ours moves. The CPU times
    of both are this process's alone: other work on the machine hardly moves them.
    """

    format: str
    batch: int
    times: NDArray[np.float64]
    setup: float
    nbytes: int
    baseline: str
    baseline_times: NDArray[np.float64]
    own_times: NDArray[np.float64]
    reference_times: NDArray[np.float64]
    cpu_times: NDArray[np.float64]
    reference_cpu_times: NDArray[np.float64]
    error: float
    allowed: float
    roofline: float

    @property
    def median(self) -> float:
        """Median seconds of a product."""
        return float(np.median(self.times))

    @property
    def speedup(self) -> float:
        """Times as fast as the best dense product."""
        return float(np.median(self.baseline_times)) / self.median

    @property
    def verdict(self) -> str:
        """``wrong``, ``faster``, ``not faster``."""
        return verdict(self.times, self.baseline_times, self.error, self.allowed)


def verdict(times: NDArray[np.float64], baseline: NDArray[np.float64], error: float, allowed: float) -> str:
    """``faster`` only where three quarters of the products beat three quarters of the baseline's; ``wrong`` where the
    error is more than allowed, or not a number."""
    if not error <= allowed:
        return "wrong"
    return "faster" if float(np.quantile(times, 0.75)) < float(np.quantile(baseline, 0.25)) else "not faster"


class Prepared:
    """A problem's matrix in all its formats, in as many copies as keep it out of the caches."""

    def __init__(self, problem: Problem, formats: Sequence[str], batch: int) -> None:
        self.problem = problem
        torch.manual_seed(0)
        weight = make_weight(problem)
        self.dtype = torch.float32 if problem.dtype == "int8" else getattr(torch, problem.dtype)
        aim = Target.parse(problem.target)
        kind = getattr(torch, problem.dtype)
        packed, seconds = _timed(functools.partial(pack, weight, dtype=kind))
        self.nonzeros = packed.nonzeros
        dense, values, scales = _dense(packed, weight, self.dtype)
        del weight
        self.copies = max(1, min(_MOST_COPIES, math.ceil(2 * cache_bytes() / max(1, packed.nbytes))))
        self.x = torch.randn(batch, problem.columns).to(self.dtype)
        self.exact = _exact(self.x, dense)
        dense_bytes = values.nbytes + (0 if scales is None else scales.nbytes)
        weights = [dense if index == 0 else dense.clone() for index in range(self.copies)]
        held = (
            weights
            if scales is None
            else [values if not index else values.clone() for index in range(self.copies)]
        )
        self.baselines = {
            "F.linear": Candidate(BASELINE, tuple(map(_linear, weights)), 0.0, dense.nbytes),
            "W @ X.T": Candidate(BASELINE, tuple(map(_transposed, weights)), 0.0, dense.nbytes),
            "ours": Candidate(
                BASELINE, tuple(DenseProduct(copy, scales=scales) for copy in held), 0.0, dense_bytes
            ),
        }
        self.candidates: dict[str, Candidate] = {}
        if "bitmap" in formats:
            self.candidates["bitmap"] = self._packed("bitmap", packed, seconds)
        del packed
        if "nm" in formats:
            grouped, seconds = _timed(
                functools.partial(pack, dense, dtype=kind, keep=aim.keep, group=aim.group)
            )
            self.candidates["nm"] = self._packed("nm", grouped, seconds)
        if "csr" in formats:
            self.candidates["csr"] = self._csr(dense)

    def _packed(self, name: str, packed: Bitmap, seconds: float) -> Candidate:
        copies = [packed if index == 0 else _copied(packed) for index in range(self.copies)]
        return Candidate(name, tuple(map(BitmapProduct, copies)), seconds, packed.nbytes)

    def _csr(self, dense: Tensor) -> Candidate:
        def convert() -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls its CSR tensors beta, once a process
                wide = dense.to_sparse_csr()
            # int32 indices, which MKL takes as they are, make torch's product several times as fast
            indices = (wide.crow_indices().int(), wide.col_indices().int())
            return torch.sparse_csr_tensor(*indices, wide.values(), wide.shape, check_invariants=False)

        matrix, seconds = _timed(convert)
        parts = (matrix.crow_indices(), matrix.col_indices(), matrix.values())
        copies = [matrix if index == 0 else matrix.clone() for index in range(self.copies)]
        return Candidate("csr", tuple(map(_sparse, copies)), seconds, sum(part.nbytes for part in parts))

    @torch.inference_mode()
    def measure(self, formats: Sequence[str], batch: int, repeats: int, ceilings: Ceilings) -> list[Measured]:
        """Time ``formats`` and every dense product with ``batch`` inputs, ``repeats`` rounds in turns."""
        x = self.x[:batch].contiguous()
        ways = {
            **self.baselines,
            **{name: self.candidates[name] for name in formats if name in self.candidates},
        }
        errors = {name: self._error(way, x) for name, way in ways.items()}
        names = list(ways)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for turn in range(WARMUPS + repeats):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                calls = ways[name].calls
                began, busy = time.perf_counter(), time.process_time()
                for call in calls:
                    call(x)
                took = (time.perf_counter() - began) / len(calls), (time.process_time() - busy) / len(calls)
                if turn >= WARMUPS:
                    found[name].append(took)
        times, cpu = (
            {name: np.array([took[place] for took in values]) for name, values in found.items()}
            for place in (0, 1)
        )
        best = min(self.baselines, key=lambda name: float(np.median(times[name])))
        allowed = self._allowed(errors["F.linear"])
        measured = []
        for name in formats:
            way = best if name == BASELINE else name
            share = self._bound(ways[way], way, batch, ceilings) / float(np.median(times[way]))
            measured.append(
                Measured(
                    format=name,
                    batch=batch,
                    times=times[way],
                    setup=ways[way].setup,
                    nbytes=ways[way].nbytes,
                    baseline=best,
                    baseline_times=times[best],
                    own_times=times["ours"],
                    reference_times=times["F.linear"],
                    cpu_times=cpu[way],
                    reference_cpu_times=cpu["F.linear"],
                    error=errors[way],
                    allowed=allowed,
                    roofline=share,
                )
            )
        return measured

    def _error(self, way: Candidate, x: Tensor) -> float:
        exact = self.exact[: len(x)]
        size = float(exact.abs().max()) or 1.0
        return float((way.calls[0](x).double() - exact).abs().max()) / size

    def _allowed(self, plain: float) -> float:
        """Twice torch's own error, and what sums in another order, and an output rounded to its type, may add."""
        sums = torch.finfo(torch.float32).eps * math.sqrt(self.problem.columns)
        rounding = torch.finfo(self.dtype).eps if self.dtype != torch.float32 else 0.0
        return max(2 * plain, sums + rounding)

    def _bound(self, way: Candidate, name: str, batch: int, ceilings: Ceilings) -> float:
        """Least seconds by bytes moved and by operations on stored weights, at the ceilings."""
        problem = self.problem
        moved = way.nbytes + batch * (problem.rows + problem.columns) * self.x.element_size()
        weights = problem.rows * problem.columns if name in self.baselines else self.nonzeros
        return max(moved / ceilings.bandwidth, 2.0 * weights * batch / ceilings.rate)


def prepare(problem: Problem) -> Prepared:
    """The problem in all formats that it wants, for its largest batch."""
    formats = tuple(dict.fromkeys(row.format for row in problem.wanted))
    return Prepared(problem, formats, max(row.batch for row in problem.wanted))


def make_weight(problem: Problem) -> Tensor:
    """A normal matrix float32 [rows, columns] with exactly as many zeros as the target says, anywhere or N:M."""
    aim = Target.parse(problem.target)
    weight = torch.randn(problem.rows, problem.columns)
    for block in weight.split(max(1, _CHUNK // problem.columns)):
        if aim.group:
            groups = block.view(-1, aim.group)
            zeros = torch.rand_like(groups).argsort(1)[:, : aim.group - aim.keep]
            groups.scatter_(1, zeros, 0.0)
        else:
            block.masked_fill_(torch.rand_like(block) < float(aim.amount), 0.0)
    if not aim.group:
        flat = weight.view(-1)
        surplus = int(aim.amount * weight.numel()) - int((flat == 0).sum())
        places = (flat != 0 if surplus > 0 else flat == 0).nonzero()[: abs(surplus), 0]
        flat[places] = 0.0 if surplus > 0 else 1.0
    return weight


def _dense(packed: Bitmap, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """The matrix that is stored, as torch multiplies it; its values as ours does, with their scales."""
    if packed.scales is None:
        plain = weight.to(dtype)
        return plain, plain, None
    dense = unpack(packed)
    values = torch.round(dense / packed.scales[:, None]).to(torch.int8)
    return dense, values, packed.scales


def _copied(packed: Bitmap) -> Bitmap:
    parts: dict[str, Any] = {name: part.clone() for name, part in packed.parts().items()}
    whole: dict[str, Any] = {"offsets": None, "scales": None, **parts}
    return Bitmap(**whole, columns=packed.columns, keep=packed.keep, group=packed.group)


def _exact(x: Tensor, dense: Tensor) -> Tensor:
    wide = x.double()
    rows = max(1, _CHUNK // max(1, dense.shape[1]))
    return torch.cat([wide @ part.double().T for part in dense.split(rows)], dim=1)


def _timed(make: Callable[[], _Made]) -> tuple[_Made, float]:
    began = time.perf_counter()
    made = make()
    return made, time.perf_counter() - began


def _linear(weight: Tensor) -> Call:
    return lambda x: torch.nn.functional.linear(x, weight)


def _transposed(weight: Tensor) -> Call:
    return lambda x: (weight @ x.T).T


def _sparse(matrix: Tensor) -> Call:
    # the product with a vector is another routine, and faster
    return lambda x: (matrix @ x[0])[None] if len(x) == 1 else (matrix @ x.T).T
