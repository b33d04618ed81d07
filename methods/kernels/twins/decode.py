"""What a decode step does between its products, in plain torch: the native operators are tested against this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ACTIVATIONS", "activate", "add_norm", "attend"]

ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
}


def add_norm(
    hidden: Tensor,
    update: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    divisor: int,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    """``hidden + update`` [width], and (x - mean) / sqrt(Σ (x - mean)² / divisor + eps) · weight + bias of it.

    The mean is 0 unless ``centred``.
    """
    total = hidden if update is None else hidden + update
    apart = total - total.mean() if centred else total
    normed = apart * torch.rsqrt(apart.square().sum() / divisor + eps)
    normed = normed if weight is None else normed * weight
    return total, normed if bias is None else normed + bias


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    position: int,
    *,
    scale: float,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of the token at ``position``: ``query`` [heads, dim], ``key`` and ``value`` [kv_heads, dim].

    Key and value are written into ``keys`` and ``values`` [kv_heads, capacity, dim] in their dtype, then
    softmax(scale · Q Kᵀ + bias) V over all positions up to this one is returned, float32 [heads, dim]. ``cos`` and
    ``sin`` [dim] turn query and key (arXiv 2104.09864), ``bias`` is [heads, position + 1].
    """
    if cos is not None and sin is not None:
        query, key = (x * cos + _half_turned(x) * sin for x in (query, key))
    keys[:, position], values[:, position] = key.to(keys.dtype), value.to(values.dtype)
    group = query.shape[0] // key.shape[0]
    seen_keys, seen = (x[:, : position + 1].float().repeat_interleave(group, 0) for x in (keys, values))
    scores = scale * torch.einsum("hd,htd->ht", query.float(), seen_keys)
    scores = scores if bias is None else scores + bias
    return torch.einsum("ht,htd->hd", scores.softmax(-1), seen)


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def activate(x: Tensor, kind: str, *, gated: bool) -> Tensor:
    """f(x) [width], or f(x[:width]) · x[width:] where ``gated``; ``kind`` is one of ``ACTIVATIONS``."""
    function = ACTIVATIONS[kind]
    if not gated:
        return function(x)
    gate, up = x.chunk(2)
    return function(gate) * up
