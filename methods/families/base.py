"""Pieces that the three families share, all pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from methods.errors import CheckpointError
from methods.interface import Arguments, Block, Matrix, OuterTensors, Stage

__all__ = [
    "ACTIVATIONS",
    "ServedBlock",
    "attention",
    "causal_bias",
    "layer_norm",
    "linear",
    "linear_tensors",
    "merge_heads",
    "norm_tensors",
    "padding",
    "run_block",
    "split_heads",
    "token_rows",
]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _squared_relu(x: Tensor) -> Tensor:
    return functional.relu(x).square()


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "mish": functional.mish,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "relu2": _squared_relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
"""Activations by the names that configs use, each equal to transformers' function of that name."""


class ServedBlock(Block):
    """A block whose linears are computed otherwise than from dense tensors in it."""

    def linear(self, name: str, x: Tensor) -> Tensor:
        """``x Wᵀ + b`` of the linear ``name``; those of one stage are asked for in their order, with the same ``x``."""
        raise NotImplementedError


def linear(block: Block, name: str, x: Tensor) -> Tensor:
    """``x Wᵀ + b`` with the block's ``name.weight`` [rows, columns] and ``name.bias`` [rows], if any."""
    if isinstance(block, ServedBlock):
        return block.linear(name, x)
    return functional.linear(x, block[f"{name}.weight"], block.get(f"{name}.bias"))


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension; without weight and bias where the model has none."""
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads · head_dim] to [batch, heads, length, head_dim], a view."""
    batch, length, _ = x.shape
    return x.view(batch, length, heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, length, head_dim] to [batch, length, heads · head_dim], contiguous."""
    batch, heads, length, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * head_dim)


def attention(query: Tensor, key: Tensor, value: Tensor, arguments: Arguments, scale: float) -> Tensor:
    """Causal attention: softmax(scale · Q Kᵀ + bias) V, over cached tokens too where ``arguments`` has a cache,
    within each text alone where it has a packing.

    ``query`` [batch, heads, length, head_dim]; ``key`` and ``value`` may have fewer heads, each serving a
    group of query heads. The bias is additive and holds the causal mask, or is None for plain causal.
    Returns [batch, length, heads · head_dim].
    """
    bias = arguments.bias
    if arguments.packing is not None:
        query, key, value = (arguments.packing.apart(x) for x in (query, key, value))
        return arguments.packing.together(attention(query, key, value, Arguments(bias=bias), scale))
    if arguments.cache is not None:
        key, value = arguments.cache.extend(key, value)
        if query.shape[2] == 1:
            return _attend_last(query, key, value, bias, scale)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and bias is not None:
        # With a bias, grouped heads would leave the fused kernels on CUDA.
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        groups = 1
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=bias is None, scale=scale, enable_gqa=groups > 1
    )
    return merge_heads(mixed)


def _attend_last(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Attention of one token [batch, heads, 1, head_dim], which sees every key."""
    batch, heads, _, head_dim = query.shape
    shared = key.shape[1]
    if shared != heads and bias is None:
        # query heads that share keys stand where tokens would: nothing is repeated
        query = query.reshape(batch, shared, heads // shared, head_dim)
    elif shared != heads:
        groups = heads // shared
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    return mixed.reshape(batch, 1, heads * head_dim)


def padding(mask: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor | None:
    """The mask as bool [batch, length] on ``device``, or None where every token is real.

    Raises ValueError for a mask of another shape.
    """
    if mask is None:
        return None
    if mask.shape != (batch, length):
        raise ValueError(f"mask is {list(mask.shape)}: it must be [{batch}, {length}], as the tokens are")
    real = mask.to(device=device, dtype=torch.bool)
    return None if bool(real.all()) else real


def causal_bias(real: Tensor | None, length: int, like: Tensor, extra: Tensor | None = None) -> Tensor:
    """Additive bias [batch or 1, heads or 1, length, length] in ``like``'s dtype: causal, padding, ``extra``.

    ``real`` is bool [batch, length] or None. Masked entries hold half the dtype's lowest value, not -inf:
    their weight is 0 in any row with a real token, rows of left padding stay finite, and kernels that scale
    scores by log2(e) do not overflow.
    """
    position = torch.arange(length, device=like.device)
    allowed = (position[None, :] <= position[:, None])[None, None]
    if real is not None:
        allowed = allowed & real[:, None, None, :]
    floor = torch.finfo(like.dtype).min / 2
    if extra is None:
        return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill_(~allowed, floor)
    return extra.to(like.dtype).masked_fill(~allowed, floor)


def token_rows(outer: OuterTensors, name: str, tokens: Tensor, vocabulary: int) -> Tensor:
    """Embedding rows of ``tokens`` [batch, length]. Raises CheckpointError for one that is not in it."""
    if tokens.numel():
        low, high = (int(bound) for bound in torch.aminmax(tokens))
        if low < 0 or high >= vocabulary:
            raise CheckpointError(
                f"token {low if low < 0 else high} is outside the model's {vocabulary} embeddings: "
                "tokenizer and model do not belong together"
            )
    return outer.rows(name, tokens)


def linear_tensors(matrix: Matrix, *, bias: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one linear layer's parameters."""
    shapes: dict[str, tuple[int, ...]] = {f"{matrix.name}.weight": (matrix.rows, matrix.columns)}
    if bias:
        shapes[f"{matrix.name}.bias"] = (matrix.rows,)
    return shapes


def norm_tensors(name: str, width: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one norm's parameters."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)} if bias else {f"{name}.weight": (width,)}


def run_block(stages: Sequence[Stage], block: Block, hidden: Tensor, arguments: Arguments) -> Tensor:
    """A whole block at once: hidden states [batch, length, width] in and out."""
    carry: tuple[Tensor, ...] = (hidden,)
    for stage in stages:
        carry = stage.advance(block, carry, stage.inputs(block, carry, arguments), arguments)
    return carry[0]
