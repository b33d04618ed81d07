"""One token through a served model as one native program: the stages of a block with nothing but float32 vectors between.

Equal to the stages of the family up to rounding, and the same for dense, packed and sliced linears.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from methods.families.sliced import SHORTCUTS, Sliced
from methods.inference.cache import BlockCache
from methods.interface import Arguments, Sublayer
from methods.kernels import decode
from methods.kernels.prepared import BitmapProduct

if TYPE_CHECKING:
    from methods.inference.served import DenseLinear, Joined, Served

__all__ = ["TokenStep", "token_step"]

_KINDS: Final = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations of configs that the library has."""
_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


def token_step(model: Served, caches: tuple[BlockCache, ...], arguments: Arguments) -> TokenStep | None:
    """The step of ``model`` with ``caches`` and the ``arguments`` of a whole context; None where stages must serve.

    That is on a GPU, without the library, and for models whose norms or residuals lie otherwise than before attention
    and feed-forward (OPT-350M), or whose activation the library does not have.
    """
    shape = model.shape
    if model.device.type != "cpu" or model.dtype not in _DTYPES or not decode.available():
        return None
    if shape.post_norm or shape.residual_after_norm or model.family.activation(model.config) not in _KINDS:
        return None
    return TokenStep(model, caches, arguments)


class TokenStep:
    """The program and its buffers; ``run`` takes one token further."""

    def __init__(self, model: Served, caches: tuple[BlockCache, ...], arguments: Arguments) -> None:
        self._model, self._caches, self._bias = model, caches, arguments.bias
        self._program = decode.Program(torch.get_num_threads())
        cos, sin = (
            None if table is None else table[0].float().contiguous()
            for table in (arguments.cos, arguments.sin)
        )
        self._place = decode.Place(cos=cos, sin=sin)
        family = model.family
        self._sliced = isinstance(family, Sliced)
        self._centred = family.residual.centred and not self._sliced
        self._eps = family.norm_eps(model.config)
        self._divisor = model.shape.width if self._sliced else None
        self._kind = _KINDS[family.activation(model.config)]
        self._gated = model.shape.gated
        first = model.blocks[0].product(family.residual.sublayers[0].reads[0])
        self._entry = self._hidden = torch.empty(first.columns)
        self._update: Tensor | None = None
        for block, cache in zip(model.blocks, caches, strict=True):
            self._block(block, cache)
        self._program.add_norm(self._hidden, None, update=self._update)

    def run(self, hidden: Tensor, position: int) -> Tensor:
        """The state [1, 1, width] before the first block to that behind the last, in the model's dtype."""
        self._entry.copy_(hidden[0, 0])
        bias = self._bias
        row = None if bias is None else bias[0, :, position, : position + 1].float().contiguous()
        self._place.at(position, row)
        self._program.run()
        for cache in self._caches:
            cache.length = position + 1
        return self._hidden.to(hidden.dtype)[None, None]

    def _block(self, block: Joined, cache: BlockCache) -> None:
        attention, feedforward = self._model.family.residual.sublayers
        shape, program = self._model.shape, self._program
        fused = self._read(block, attention)
        heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.head_dim
        if len(attention.reads) == 1:  # q, k, v of a head side by side
            query, key, value = fused.view(heads, 3, dim).unbind(1)
        else:
            parts = fused.split([heads * dim, kv_heads * dim, kv_heads * dim])
            query, key, value = (part.view(-1, dim) for part in parts)
        mixed = torch.empty(heads * dim)
        program.attend(self._place, query, key, value, cache.keys[0], cache.values[0], mixed, scale=dim**-0.5)
        self._write(block, attention, 0, mixed)
        inner = self._read(block, feedforward)
        active = torch.empty(inner.shape[0] // 2 if self._gated else inner.shape[0])
        program.activate(inner, active, self._kind, gated=self._gated)
        self._write(block, feedforward, 1, active)

    def _read(self, block: Joined, sublayer: Sublayer) -> Tensor:
        """The pending sum, its norm, and the linears that read it, one behind another."""
        product = block.product(sublayer.reads[0])
        normed = torch.empty(product.columns)
        weight, bias = (
            None if tensor is None else tensor.float()
            for tensor in (block.get(f"{sublayer.norm}.weight"), block.get(f"{sublayer.norm}.bias"))
        )
        self._program.add_norm(
            self._hidden,
            normed,
            update=self._update,
            weight=weight,
            bias=bias,
            eps=self._eps,
            divisor=self._divisor,
            centred=self._centred,
        )
        self._update = None
        return self._product(product, normed)

    def _write(self, block: Joined, sublayer: Sublayer, number: int, x: Tensor) -> None:
        """The linear that writes to the residual stream, which a shortcut may lead to another basis first."""
        self._update = self._product(block.product(sublayer.writes), x)
        if self._sliced:
            self._hidden = self._product(block.product(SHORTCUTS[number]), self._hidden)

    def _product(self, product: DenseLinear | BitmapProduct, x: Tensor) -> Tensor:
        y = torch.empty(product.rows)
        if isinstance(product, BitmapProduct):
            self._program.product(product, x, y)
        elif product.own is not None:
            self._program.product(product.own, x, y)
        else:
            self._program.call(_by_torch(product, x, y))
        return y


def _by_torch(product: DenseLinear, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Torch's product of a dense weight, into ``y``."""
    weight, bias = product.weight, product.bias
    row, out, turned = x[None], y[None], weight.t()

    if weight.dtype != torch.float32:
        return lambda: y.copy_(functional.linear(x.to(weight.dtype), weight, bias))
    if bias is None:
        return lambda: torch.mm(row, turned, out=out)
    offset = bias
    return lambda: torch.addmm(offset, row, turned, out=out)
