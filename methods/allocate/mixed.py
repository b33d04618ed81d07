"""Mixed sparsity: what the loss feels most keeps most (arXiv 2310.09499, "one-shot sensitivity-aware mixed sparsity")."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import methods.sensitivity
from methods.allocate.shares import MOST, clipped, counts, linear_shares, patterns, shifted
from methods.errors import UserError, shown
from methods.interface import BlockSource, Calibration, Matrix, ModelShape, Run
from methods.layerwise.rule import Budget, Budgets
from methods.layerwise.select import round_half_up
from methods.sensitivity.estimate import ESTIMATORS, Sensitivity, estimate, probe_windows
from methods.sensitivity.files import Key, Stored, find, load, save
from methods.stream.text import text_hash
from methods.target import Target

__all__ = ["Mixed"]


@dataclass(frozen=True, slots=True)
class Mixed:
    """Shares linear in the rank of a matrix's sensitivity, from p + α (least) to p - α (most).

    The units ranked are matrices, or blocks (``level`` layer; a block's sensitivity is the sum of its
    matrices'). One offset then moves all shares, clipped to [0, 0.95], such that as many weights go as under
    uniform shares, to the last one; ``paper_literal`` leaves the shares as they are: their plain mean is p,
    whatever the matrices' sizes. An N:M target gives every unit an n of its own with the same M, as near the
    budget as the order of the units allows. ``file`` holds sensitivities, or a folder of such files; without
    it they are estimated on the calibration text (``estimator``, ``probes`` of ``windows`` windows).
    """

    alpha: float = 0.1
    level: str = "matrix"
    estimator: str = "fisher"
    probes: int = 8
    windows: int = 16
    file: str = ""
    paper_literal: bool = False
    name: str = "mixed"
    needs_calibration: bool = True
    patterns: bool = True

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """The reason this target leaves nothing to allocate, or None."""
        if self.file and not _there(self.file):
            return f"mixed.file '{shown(self.file)}' does not exist; give a file of sensitivities, or leave it out"
        if target.kind == "nm":
            if 0 < Fraction(str(self.alpha)) * target.group < Fraction(1, 2):
                least = Fraction(1, 2 * target.group)
                return (
                    f"{target} with mixed.alpha={self.alpha:g} moves no matrix away from {target}; "
                    f"use --set mixed.alpha={float(least):g} or more, or a wider pattern such as 4:8"
                )
        elif target.amount > MOST:
            return (
                f"@mixed leaves every matrix {float(1 - MOST):.0%} of its weights and cannot reach {target}"
            )
        return None

    def __call__(
        self, source: BlockSource, calibration: Calibration | None, target: Target, run: Run
    ) -> Mapping[tuple[int, str], Budget]:
        """One budget per (block, matrix name). Raises UserError, NonFiniteError, CheckpointError, MachineError."""
        if calibration is None or not len(calibration.tokens):
            raise UserError("@mixed needs calibration windows to estimate sensitivities on")
        budgets = Budgets()
        stored, budgets.earlier = self._sensitivities(source, calibration, run)
        matrices = source.family.matrices(source.shape)
        budgets.update(self.budgets(stored.matrices, matrices, target, run))
        return budgets

    def budgets(
        self, sensitivities: tuple[Sensitivity, ...], matrices: tuple[Matrix, ...], target: Target, run: Run
    ) -> dict[tuple[int, str], Budget]:
        """Budgets from the sensitivities of every block's ``matrices``, in that order."""
        keys = [(found.block, found.name) for found in sensitivities]
        sizes = [found.weights for found in sensitivities]
        width = len(matrices) if self.level == "layer" else 1
        units = range(0, len(keys), width)
        felt = [math.fsum(found.mean for found in sensitivities[unit : unit + width]) for unit in units]
        shares = linear_shares(felt, target.amount, Fraction(str(self.alpha)))
        total = sum(sizes)
        if target.kind == "nm":
            group = target.group
            within = [sum(sizes[unit : unit + width]) for unit in units]
            if self.paper_literal:
                gone = [
                    round_half_up(group * min(clipped(share), Fraction(group - 1, group))) for share in shares
                ]
            else:
                gone = patterns(within, shares, group, target.amount * total)
            found = [Budget(keep=group - n, group=group) for n in gone for _ in range(width)]
        else:
            wanted = sum(round_half_up(target.amount * size) for size in sizes)
            spread = [share for share in shares for _ in range(width)]
            if self.paper_literal:
                removed = [
                    round_half_up(clipped(share) * size) for share, size in zip(spread, sizes, strict=True)
                ]
            else:
                removed = counts(sizes, shifted(sizes, spread, target.amount * total), wanted)
            found = [Budget(remove=count) for count in removed]
        repeated = [matrix for _ in range(len(keys) // len(matrices)) for matrix in matrices]
        reached = sum(budget.count(matrix) for budget, matrix in zip(found, repeated, strict=True))
        self._tell_gap(target, reached, total, run)
        return dict(zip(keys, found, strict=True))

    def _tell_gap(self, target: Target, reached: int, total: int, run: Run) -> None:
        gap = Fraction(reached, total) - target.amount
        if target.kind == "nm" and gap:
            near = "" if self.paper_literal else f", the nearest that n:{target.group} reaches in this order"
            run.observer.warning(
                f"@mixed: {reached} of {total} weights go, {float(gap):+.4%} beside {target}'s share{near}"
            )
        elif self.paper_literal and abs(gap) > Fraction(1, 10_000):
            run.observer.warning(
                f"@mixed with paper_literal: {float(Fraction(reached, total)):.2%} of the weights go, not {target}, "
                "since shares are averaged without regard to sizes"
            )

    def _sensitivities(self, source: BlockSource, calibration: Calibration, run: Run) -> tuple[Stored, float]:
        """The sensitivities, and the seconds that another cell of this run spent on them."""
        tokens = probe_windows(calibration.tokens, self.probes, self.windows)
        _, windows, length = tokens.shape
        key = Key(
            model=run.model,
            dtype=str(source.dtype).removeprefix("torch."),
            estimator=self.estimator,
            probes=self.probes,
            windows=windows,
            length=length,
            text=text_hash(tokens.cpu().numpy()),
            seed=run.seed,
        )
        if self.file:
            given = find(Path(self.file), key, source)
            run.observer.warning(
                f"@mixed: sensitivities from a file took {given.seconds:.1f} s, which the time to prune leaves out"
            )
            return given, 0.0
        path = _shared_path(run, key, source) if run.model else None
        if path is not None and path.exists():
            with contextlib.suppress(UserError):  # damaged: computed again, and written over
                shared = load(path, source)
                if shared.key == key:
                    return shared, shared.seconds
        began = time.perf_counter()
        found = estimate(source, tokens, self.estimator, run)
        stored = Stored(key, ESTIMATORS[self.estimator].sign, time.perf_counter() - began, found)
        if path is not None:
            save(path, stored)
        return stored, 0.0


def _there(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # no file can have such a name
        return False


def _shared_path(run: Run, key: Key, source: BlockSource) -> Path | None:
    """Where a run's cells share sensitivities: named by their key, the device and the code that makes them."""
    if run.shared is None:
        return None
    name = hashlib.sha256(f"{key}/{source.device.type}".encode())
    for path in sorted(Path(methods.sensitivity.__file__).parent.glob("*.py")):
        name.update(path.read_bytes())
    return run.shared / "sensitivities" / f"{key.estimator}-{name.hexdigest()[:16]}.json"
