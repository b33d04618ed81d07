"""What says that a pruned model is broken, and where: pure functions over figures, no tensors.

Limits are set so that the healthy stores under studies/ raise none; each is far from what a sound method leaves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from bench.results.records import MatrixFigures

if TYPE_CHECKING:
    from bench.evaluate.perplexity import BlockChange

__all__ = ["Guard", "facts", "of_blocks", "of_loss", "of_matrices", "texts"]

BLOW_UP: Final = 10.0
"""Times the dense perplexity."""
ALL_LOST: Final = 1.0
"""Relative output error of a matrix of zeros: above it the output is worse than none."""
JUMP: Final = 10.0
"""Times the median of the same matrix in neighbouring blocks."""
JUMP_FLOOR: Final = 0.1
"""Relative output error below which no jump matters."""
NEIGHBOURS: Final = 3
"""Blocks to each side."""
OVERFIT: Final = 4.0
"""Times the calibration error: healthy stores stay below 2.3."""
OVERFIT_FLOOR: Final = 0.01
STILL: Final = 1e-3
"""Median over tokens of |output - input| / |input| of a block that does nothing."""
COLLAPSED: Final = 1e-3
"""Median over tokens of |output| / |input| of a block whose states vanish."""
SPOKEN: Final = 5
"""Sentences of one kind in a record's warnings, the worst first; all stand in its guards."""


@dataclass(frozen=True, slots=True)
class Guard:
    """One alarm. ``block`` is -1 and ``matrix`` empty where it is about the whole model or block."""

    kind: str
    value: float
    limit: float
    text: str
    block: int = -1
    matrix: str = ""

    @property
    def place(self) -> str:
        """``block 3 mlp.down_proj``; empty for the whole model."""
        return f"block {self.block} {self.matrix}".strip() if self.block >= 0 else ""


def of_matrices(
    matrices: Sequence[MatrixFigures], empty: Collection[tuple[int, str]] = ()
) -> tuple[Guard, ...]:
    """Alarms over a pruning's matrices; ``empty`` are those that are stored as zeros alone."""
    dead = {(m.block, m.name) for m in matrices if m.rows * m.columns == m.removed} | set(empty)
    return (
        *_dead(matrices, dead),
        *_lost(matrices, dead),
        *_jumps(matrices, dead),
        *_overfit(matrices),
        *_damped(matrices),
    )


def _dead(matrices: Sequence[MatrixFigures], dead: set[tuple[int, str]]) -> Iterable[Guard]:
    names: dict[int, list[str]] = {}
    for matrix in matrices:
        names.setdefault(matrix.block, []).append(matrix.name)
    for block, name in sorted(dead):
        names.setdefault(block, [name])
    for block, members in sorted(names.items()):
        gone = [name for name in members if (block, name) in dead]
        if len(gone) == len(members) > 1:
            yield Guard("dead-block", 1.0, 1.0, f"block {block} is dead: all its matrices are zero", block)
            continue
        for name in gone:
            yield Guard("dead-matrix", 1.0, 1.0, f"block {block} {name}: every weight is zero", block, name)


def _lost(matrices: Sequence[MatrixFigures], dead: set[tuple[int, str]]) -> Iterable[Guard]:
    """Matrices whose output is worse than no output at all, the worst first."""
    known = [(m.heldout_error, m) for m in matrices if m.heldout_error is not None]
    bad = [
        (math.inf if math.isnan(error) else error, m)
        for error, m in known
        if not error <= ALL_LOST and (m.block, m.name) not in dead
    ]
    for error, m in sorted(bad, key=lambda pair: -pair[0]):
        said = f"block {m.block} {m.name}: held-out output error {m.heldout_error:.3g} of its energy"
        yield Guard("output-lost", error, ALL_LOST, said, m.block, m.name)


def _jumps(matrices: Sequence[MatrixFigures], dead: set[tuple[int, str]]) -> Iterable[Guard]:
    """Matrices far above the same matrix in neighbouring blocks, the farthest first."""
    errors: dict[str, dict[int, float]] = {}
    for m in matrices:
        if m.heldout_error is not None and math.isfinite(m.heldout_error) and m.removed < m.rows * m.columns:
            errors.setdefault(m.name, {})[m.block] = m.heldout_error
    found = []
    for name, by_block in errors.items():
        for block, error in by_block.items():
            near = range(block - NEIGHBOURS, block + NEIGHBOURS + 1)
            around = [by_block[other] for other in near if other != block and other in by_block]
            if (block, name) in dead or len(around) < 2 or error < JUMP_FLOOR:
                continue
            usual = median(around)
            if error > JUMP * usual > 0:
                said = (
                    f"block {block} {name}: held-out error {error:.3g} jumps to {error / usual:.3g} times "
                    f"its neighbours' {usual:.3g}"
                )
                found.append(Guard("layer-error-jump", error / usual, JUMP, said, block, name))
    return sorted(found, key=lambda guard: -guard.value)


def _overfit(matrices: Sequence[MatrixFigures]) -> Iterable[Guard]:
    """Matrices fitted to the calibration text: the error on held-out text is many times the one on it."""
    found = []
    for m in matrices:
        seen, new = m.calibration_error, m.heldout_error
        if not seen or new is None or not new >= OVERFIT_FLOOR or not math.isfinite(new / seen):
            continue
        if new / seen > OVERFIT:
            said = (
                f"block {m.block} {m.name}: held-out error {new:.3g} is {new / seen:.3g} times that on "
                "calibration text; draw more samples"
            )
            found.append(Guard("overfit", new / seen, OVERFIT, said, m.block, m.name))
    return sorted(found, key=lambda guard: -guard.value)


def _damped(matrices: Sequence[MatrixFigures]) -> Iterable[Guard]:
    for m in sorted(matrices, key=lambda matrix: -matrix.escalations):
        if m.escalations:
            said = f"block {m.block} {m.name}: the Hessian needed damping {m.damping or 0:g} of its mean diagonal"
            yield Guard("damping", m.escalations, 0, said, m.block, m.name)


def of_blocks(states: Sequence[BlockChange]) -> tuple[Guard, ...]:
    """Alarms over what the blocks do to the states that pass them; behind a state that is not finite nothing is judged."""
    found: list[Guard] = []
    for block, passed in enumerate(states):
        if not math.isfinite(passed.norm):
            said = f"block {block}: its output is not finite"
            return (*found, Guard("non-finite", passed.norm, 0, said, block))
        if passed.norm < COLLAPSED:
            said = f"block {block}: its output's norm is {passed.norm:.2g} of its input's"
            found.append(Guard("collapsed-block", passed.norm, COLLAPSED, said, block))
        elif passed.change is not None and passed.change < STILL:
            said = f"block {block} is dead: its output equals its input to {passed.change:.2g}"
            found.append(Guard("dead-block", passed.change, STILL, said, block))
    return tuple(found)


def of_loss(loss: float, vocabulary: int, dense: float | None = None) -> tuple[Guard, ...]:
    """Alarms over a mean loss, nat/token: no number, worse than guessing every token with equal chance, or a
    perplexity many times the dense model's (``dense`` is its loss, where it is known).
    """
    if math.isnan(loss):
        said = "the loss is NaN: the model's outputs are not finite"
        return (Guard("loss", loss, 0, said),)
    guessing = math.log(vocabulary)
    found: list[Guard] = []
    if loss > guessing:
        said = f"loss {loss:.2f} nat/token is above that of uniform guessing ({guessing:.2f})"
        found.append(Guard("loss", loss, guessing, said))
    if dense is not None and loss - dense > math.log(BLOW_UP):
        ratio = math.exp(min(loss - dense, 700.0))
        said = f"perplexity is {ratio:.3g} times the dense model's"
        found.append(Guard("perplexity-blow-up", ratio, BLOW_UP, said))
    return tuple(found)


def texts(guards: Iterable[Guard]) -> tuple[str, ...]:
    """The alarms as a record's warnings: the worst few of each kind, and how many more there are."""
    kinds: dict[str, list[Guard]] = {}
    for guard in guards:
        kinds.setdefault(guard.kind, []).append(guard)
    found: list[str] = []
    for kind, members in kinds.items():
        found += [guard.text for guard in members[:SPOKEN]]
        if len(members) > SPOKEN:
            found.append(f"{kind}: {len(members) - SPOKEN} more of the kind")
    return tuple(found)


def facts(guards: Iterable[Guard]) -> list[Mapping[str, Any]]:
    """The alarms as a record keeps them: kind, block, matrix, value, limit."""
    return [
        {
            "kind": guard.kind,
            "block": guard.block if guard.block >= 0 else None,
            "matrix": guard.matrix,
            "value": guard.value,
            "limit": guard.limit,
        }
        for guard in guards
    ]
