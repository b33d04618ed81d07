"""What sensitivities take, in closed form from a model's sizes, for plans. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from methods.interface import ModelShape

__all__ = ["Cost", "cost"]

_WIDE = 4  # bytes: all is computed in float32
_ROWS = 64  # tokens whose distributions fisher holds at once


@dataclass(frozen=True, slots=True)
class Cost:
    """Peak ``memory`` and ``spilt`` hidden states (beyond the budget) in bytes, and ``flops``."""

    memory: int
    spilt: int
    flops: float


def cost(shape: ModelShape, estimator: str, probes: int, windows: int, length: int, budget: int) -> Cost:
    """Needs of ``estimate`` with ``probes`` probes of ``windows`` windows, and ``budget`` bytes for hidden states.

    fisher: two forward and one backward pass through each block, which is held with its gradients. hutchinson:
    the whole model with gradients, probes and products, and every activation twice. inputs: a forward pass, in
    less memory than pruning takes. A multiply-add is two FLOPs.
    """
    from methods.families.sizes import block_parameters, flops_per_token, parameters, prunable

    tokens = probes * windows * length
    head = shape.vocabulary * shape.embedding_width
    block_flops = flops_per_token(shape, length) - 2 * head
    if estimator == "inputs":
        return Cost(0, 0, float(tokens * block_flops))
    inside = 12 * shape.width + 4 * shape.feedforward + 2 * shape.heads * length
    if estimator == "hutchinson":
        kept = 3 * shape.blocks * length * inside + 6 * length * shape.vocabulary
        memory = _WIDE * (parameters(shape) + 5 * prunable(shape) + kept)
        return Cost(memory, 0, 9.0 * tokens * flops_per_token(shape, length))
    each = (shape.blocks + 1) * windows * length * shape.width * _WIDE
    states = each * max(1, min(probes, budget // each))
    spilt = states if states > budget else 0
    held = 3 * block_parameters(shape) + head + length * inside + 6 * _ROWS * shape.vocabulary
    return Cost(_WIDE * held + states - spilt, spilt, tokens * (4.0 * block_flops + 4.0 * head))
