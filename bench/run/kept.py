"""What a phase took of memory, against what was allowed and foretold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.measure.memory import PeakMemory
from bench.models.cache import readable_size
from bench.plan.machine import batch_tokens
from bench.plan.memory import least_terms, prune_terms
from bench.plan.work import sizes_of

if TYPE_CHECKING:
    from bench.plan.cells import Cell

__all__ = ["Kept", "kept_within", "terms_of"]


@dataclass(frozen=True, slots=True)
class Kept:
    """For a record: budget, predicted and measured peak and base in bytes, placement; and a warning where it was exceeded."""

    facts: dict[str, Any]
    warnings: tuple[str, ...]


def kept_within(cell: Cell, phase: str, memory: PeakMemory) -> Kept:
    """What to record of a phase's memory."""
    placement = cell.placement
    predicted = dict(placement.predicted).get(phase)
    facts = {
        "budget": placement.budget or None,
        "predicted": predicted,
        "peak": memory.peak,
        "base": memory.base,
        "hidden_budget": cell.hidden_budget,
        "device_states": placement.device_states,
        "prefetch": placement.prefetch,
        "batch_tokens": placement.batch_tokens or batch_tokens(cell.device),
    }
    if not placement.budget or memory.peak <= placement.budget:
        return Kept(facts, ())
    foretold = f" ({readable_size(predicted)} were predicted)" if predicted is not None else ""
    said = (
        f"{phase} took {readable_size(memory.peak)} of memory, more than the {readable_size(placement.budget)} of "
        f"--memory-budget{foretold}"
    )
    return Kept(facts, (said,))


def terms_of(cell: Cell) -> dict[str, dict[str, int]]:
    """Bytes that the prune is counted to hold, and the least that streaming holds, by what they are."""
    config, shape = sizes_of(cell.model)
    return {"terms": prune_terms(cell, config, shape), "least": least_terms(cell, shape)}
