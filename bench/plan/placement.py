"""Where a cell's work lies in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["AS_IT_COMES", "Placement"]


@dataclass(frozen=True, slots=True)
class Placement:
    """How a cell keeps within memory; of all this only ``batch_tokens`` can change a figure, by rounding.

    ``budget``: bytes that ``--memory-budget`` allows, 0 where none is set; ``predicted``: the peak in bytes by phase;
    ``device_states``: whether hidden states may lie on a GPU, not on the host (how many may lie in memory at all
    is the cell's ``hidden_budget``); ``prefetch``: whether a GPU's next block is copied to the host's memory ahead;
    ``batch_tokens``: tokens of a forward batch, 0 for what the device likes best.
    """

    budget: int = 0
    predicted: tuple[tuple[str, int], ...] = ()
    device_states: bool = True
    prefetch: bool = True
    batch_tokens: int = 0


AS_IT_COMES: Final = Placement()
"""Nothing is set against memory: states within the cell's budget for them, blocks read ahead."""
