"""Full recovery: every weight that stayed, and all norms and biases of the blocks, train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.interface import Run
from methods.recover.masked import Places, hold
from methods.recover.training import Training

__all__ = ["Full"]


@dataclass(frozen=True, slots=True)
class Full:
    """Trains the pruned matrices under their masks, and norms and biases. Embeddings and head stay.

    ``steps`` are those of all stages together. ``lr``: peak rate; ``batch``: windows a step; ``warmup``: share of
    the steps over which the rate rises.
    """

    steps: int = 300
    lr: float = 1e-4
    batch: int = 8
    warmup: float = 0.05
    name: str = "full"

    @property
    def training(self) -> Training:
        """The loop's settings."""
        return Training(self.steps, self.lr, self.batch, self.warmup)

    def missing(self) -> str | None:
        """Nothing is needed beside torch and transformers."""
        return None

    def attach(self, model: nn.Module, places: Places, run: Run, key: str) -> _Everything:
        """Let the places train."""
        return _Everything(model, places)


class _Everything:
    def __init__(self, model: nn.Module, places: Places) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        for name in (*places.matrices, *places.vectors):
            parameter = model.get_parameter(name)
            parameter.requires_grad_(True)
            mask = places.matrices.get(name)
            if mask is not None:
                hold(parameter, mask)
            self.parameters[name] = parameter

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained tensor by full name, float32."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                yield name, parameter.detach()
