"""Keys and values of earlier tokens, in memory of fixed size."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BlockCache", "caches"]


class BlockCache:
    """One block's keys and values [1, heads, capacity, head_dim]; ``length`` tokens are in it."""

    __slots__ = ("capacity", "keys", "length", "values")

    def __init__(
        self, heads: int, capacity: int, head_dim: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keys = torch.zeros(1, heads, capacity, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.capacity = capacity
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.values.nbytes

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Views of all keys and values so far, the new ones [1, heads, tokens, head_dim] included.

        Raises ValueError where they do not fit in, or where several follow earlier ones: those would need a mask.
        """
        begin, tokens = self.length, key.shape[2]
        end = begin + tokens
        if end > self.capacity:
            raise ValueError(f"a cache of {self.capacity} tokens holds {begin}: {tokens} more do not fit")
        if begin and tokens > 1:
            raise ValueError(f"{tokens} tokens after {begin} cached ones: go on one token at a time")
        self.keys[:, :, begin:end] = key
        self.values[:, :, begin:end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def caches(
    blocks: int, heads: int, capacity: int, head_dim: int, *, dtype: torch.dtype, device: torch.device
) -> tuple[BlockCache, ...]:
    """An empty cache for every block."""
    return tuple(BlockCache(heads, capacity, head_dim, dtype=dtype, device=device) for _ in range(blocks))
