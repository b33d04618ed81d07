"""The modifiers' parameters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class WandaPruningModifier:
    targets: list[str]
    sparsity: float
    mask_structure: str


@dataclass
class SparseGPTModifier(WandaPruningModifier):
    block_size: int
    dampening_frac: float


@dataclass
class MagnitudePruningModifier:
    targets: list[str]
    init_sparsity: float
    final_sparsity: float
    start: float
    end: float

    @property
    def sparsity(self) -> float:
        return self.final_sparsity
