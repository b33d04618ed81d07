"""Greedy decoding at batch 1 with a static key-value cache: one loop for dense, packed and sliced models."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.inference.cache import BlockCache, caches
from methods.inference.served import Served
from methods.inference.step import token_step
from methods.interface import Arguments

__all__ = ["Session", "forced_logits"]


class Session:
    """One text being decoded: caches for ``capacity`` tokens, and the tables that positions need."""

    def __init__(self, model: Served, capacity: int) -> None:
        """Raises ValueError for a capacity above the model's positions."""
        shape = model.shape
        if not 1 <= capacity <= shape.positions:
            raise ValueError(
                f"a capacity of {capacity} tokens: pass 1 to {shape.positions}, the model's context"
            )
        self.model, self.capacity = model, capacity
        self.caches: tuple[BlockCache, ...] = caches(
            shape.blocks, shape.kv_heads, capacity, shape.head_dim, dtype=model.dtype, device=model.device
        )
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        self._whole = model.family.arguments(model.config, None, 1, capacity, like)
        self._stages = model.family.stages(model.config)
        self._step = token_step(model, self.caches, self._whole)
        self.length = 0

    def feed(self, tokens: Tensor) -> Tensor:
        """Logits [vocabulary] behind the last of ``tokens`` int64 [1, count], which follow those fed before.

        Several at once are taken at the start only (the prefill), afterwards one by one.
        """
        model, begin = self.model, self.length
        end = begin + tokens.shape[1]
        if end > self.capacity:
            raise ValueError(
                f"a session of {self.capacity} tokens holds {begin}: {tokens.shape[1]} more do not fit"
            )
        hidden = model.family.embed(model.outer, model.config, tokens, None, begin)
        if self._step is not None and tokens.shape[1] == 1:
            hidden = self._step.run(hidden, begin)
        else:
            hidden = self._by_stages(hidden, begin, end)
        self.length = end
        logits: Tensor = model.head(model.family.finish(model.outer, model.config, hidden[:, -1:]))
        return logits[0, 0]

    def _by_stages(self, hidden: Tensor, begin: int, end: int) -> Tensor:
        """All blocks by the stages of their family."""
        bias, cos, sin = (
            None if self._whole.bias is None else self._whole.bias[..., begin:end, :end],
            None if self._whole.cos is None else self._whole.cos[:, begin:end],
            None if self._whole.sin is None else self._whole.sin[:, begin:end],
        )
        for block, cache in zip(self.model.blocks, self.caches, strict=True):
            arguments = Arguments(bias, cos, sin, cache)
            carry: tuple[Tensor, ...] = (hidden,)
            for stage in self._stages:
                carry = stage.advance(block, carry, stage.inputs(block, carry, arguments), arguments)
            hidden = carry[0]
        return hidden


@torch.inference_mode()
def forced_logits(model: Served, prompt: Tensor, tokens: Tensor) -> Tensor:
    """Logits float32 [count, vocabulary] on the host from which each of ``tokens`` [count] would be chosen after
    ``prompt`` [1, length] and those of them before it."""
    session = Session(model, prompt.shape[1] + len(tokens) - 1)
    fed = (prompt, *tokens[:-1].view(-1, 1, 1))
    return torch.stack([session.feed(part.to(model.device)).float().cpu() for part in fed])
