"""What recovery takes, in closed form from a model's sizes, for plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from methods.families import family_of, sizes
from methods.interface import ModelShape
from methods.recover.training import MICRO_TOKENS, VALIDATIONS

__all__ = ["Cost", "cost", "trainable"]

_WIDE = 4  # bytes: training is in float32
_EFFORT = 3  # a forward and a backward pass of about twice its work


@dataclass(frozen=True, slots=True)
class Cost:
    """Peak ``memory`` in bytes, bytes of ``state`` that lie on disk meanwhile, ``flops`` of training."""

    memory: int
    state: int
    flops: float


def trainable(shape: ModelShape, rank: int | None) -> int:
    """Numbers that train: two factors of ``rank`` a matrix (LoRA), or with None matrices, norms and biases."""
    family = family_of(shape)
    total = 0
    for index in range(shape.blocks):
        matrices = family.matrices(shape, index)
        if rank is not None:
            total += sum(rank * (matrix.rows + matrix.columns) for matrix in matrices)
            continue
        total += sum(matrix.size for matrix in matrices)
        total += sum(size[0] for size in family.block_tensors(shape, index).values() if len(size) == 1)
    return total


def cost(shape: ModelShape, kind: str, values: Mapping[str, Any], length: int, heldout: int) -> Cost:
    """Needs of recovery ``kind`` (parameters ``values`` as ``full.steps``) on windows of ``length`` tokens.

    In memory: the model, what trains with its gradient, two moments and the best step's copy, masks, and in LoRA
    the masked sums of every matrix, which the backward pass reads; activations and logits of ``MICRO_TOKENS``.
    On disk: what trains with moments and best, twice while it is replaced. Layers selected away are counted too.
    ``heldout``: tokens that the best step is chosen on.
    """
    rank = values.get(f"{kind}.rank")
    steps, batch = int(values[f"{kind}.steps"]), int(values[f"{kind}.batch"])
    trained = trainable(shape, None if rank is None else int(rank))
    prunable = sizes.prunable(shape)
    micro = max(length, min(MICRO_TOKENS, batch * length))
    # measured on the packaged models; BLOOM's attention alone keeps its probabilities
    wide, fed = (18, 4) if shape.gated else (12, 3)
    kept = wide * shape.width + fed * shape.feedforward
    kept = shape.blocks * (kept + (3 * shape.heads * length if shape.family == "bloom" else 0))
    activations = micro * (kept + 4 * shape.vocabulary)
    products = 2 * prunable if rank is not None else 0
    memory = _WIDE * (sizes.parameters(shape) + 4 * trained + products + activations) + prunable
    forward = sizes.flops_per_token(shape, length)
    tokens = _EFFORT * steps * batch * length + (VALIDATIONS + 1) * heldout
    return Cost(memory, 2 * 4 * _WIDE * trained, float(tokens) * forward)
