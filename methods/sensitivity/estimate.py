"""What an estimator of sensitivity gives, and the text that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.interface import BlockSource, Matrix, Run
from methods.sensitivity.fisher import fisher
from methods.sensitivity.hutchinson import hutchinson
from methods.sensitivity.inputs import inputs

__all__ = ["ESTIMATORS", "LENGTH", "Sensitivity", "estimate", "probe_windows"]

LENGTH = 256
"""Tokens of a probe's window, fewer where the calibration windows are shorter."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """``run(source, tokens [probes, windows, length], run)`` gives traces per weight [probes, blocks * matrices].

    ``unit`` is theirs. ``sign`` says what the sign of a trace means, and is kept beside the figures; those of
    ``positive`` ones are never negative.
    """

    run: Callable[[BlockSource, Tensor, Run], Tensor]
    unit: str
    sign: str
    positive: bool


ESTIMATORS: Mapping[str, Estimator] = {
    "fisher": Estimator(
        fisher, "nat", "never negative: the Gauss-Newton matrix is positive semi-definite", positive=True
    ),
    "hutchinson": Estimator(
        hutchinson,
        "nat",
        "as estimated: the Hessian is indefinite, and a trace may be negative",
        positive=False,
    ),
    "inputs": Estimator(inputs, "1", "never negative: a sum of squares", positive=True),
}


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One matrix's trace over its number of weights, probe by probe, in its estimator's unit."""

    block: int
    name: str
    weights: int
    probes: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the probes: what matrices are ranked by."""
        return math.fsum(self.probes) / len(self.probes)

    @property
    def error(self) -> float | None:
        """Standard error of the mean over the probes; None for a single probe."""
        count = len(self.probes)
        if count < 2:
            return None
        return math.sqrt(math.fsum((probe - self.mean) ** 2 for probe in self.probes) / (count - 1) / count)


def probe_windows(tokens: Tensor, probes: int, windows: int = 16) -> Tensor:
    """The text of every probe, int64 [probes, windows, length], cut out of windows [windows, length] of tokens.

    Every window is cut into pieces of 256 tokens (or is one piece, where it is shorter); a probe takes the
    next ``windows`` of them, and goes on from the first where the text is used up: then probes share text,
    and their standard error holds the estimator's noise but not all of the text's. No probe holds a piece twice.
    """
    length = min(LENGTH, tokens.shape[1])
    count = tokens.shape[1] // length
    pieces = torch.cat([tokens[:, number * length : (number + 1) * length] for number in range(count)])
    windows = min(windows, len(pieces))
    return pieces[torch.arange(probes * windows) % len(pieces)].view(probes, windows, length)


def estimate(source: BlockSource, tokens: Tensor, estimator: str, run: Run) -> tuple[Sensitivity, ...]:
    """Sensitivities of every matrix, blocks in order, from ``tokens`` [probes, windows, length].

    Raises NonFiniteError where a trace is none, CheckpointError, MachineError.
    """
    matrices: tuple[Matrix, ...] = source.family.matrices(source.shape)
    traces = ESTIMATORS[estimator].run(source, tokens, run).double().cpu()
    found = []
    for index in range(source.shape.blocks):
        for number, matrix in enumerate(matrices):
            probes = tuple(traces[:, index * len(matrices) + number].tolist())
            if not all(math.isfinite(probe) for probe in probes):
                raise NonFiniteError(
                    f"block {index} {matrix.name}: its sensitivity is NaN or infinite; "
                    "check the checkpoint, or use another calibration text"
                )
            found.append(Sensitivity(index, matrix.name, matrix.size, probes))
    return tuple(found)
