"""A model whole in memory, ready to decode: blocks whose linears are dense or packed products.

Linears that read one input are joined to one product, which saves calls: q, k, v of attention and gate, up of a gated
feed-forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.families.base import ServedBlock
from methods.inference.swap import Swap, pack_linear
from methods.interface import Block, Family, ModelShape
from methods.kernels.formats import DTYPE_IDS
from methods.kernels.prepared import BitmapProduct, DenseProduct
from methods.stream.source import CheckpointSource

__all__ = ["Served", "serve", "serve_model"]


_FEW = 4
"""Tokens up to which our dense product is a choice: it reads weights faster, a GEMM computes faster."""
_ROUNDS = 5


class DenseLinear:
    """A dense product: for few tokens by whichever is faster of torch's and ours, for many by torch's."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.own: DenseProduct | None = None

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        """Inputs."""
        return self.weight.shape[1]

    @property
    def eligible(self) -> bool:
        """Whether our product can serve at all."""
        return self.weight.device.type == "cpu" and self.weight.dtype in DTYPE_IDS

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., columns] to [..., rows]."""
        if self.own is not None and x.shape[-2] <= _FEW:
            return self.own(x)
        return functional.linear(x, self.weight, self.bias)


Product = DenseLinear | BitmapProduct


class Joined(ServedBlock):
    """A block whose linears are products, one for each stage: the first of a stage computes for all of it."""

    def __init__(self, rest: Mapping[str, Tensor]) -> None:
        super().__init__(rest)
        self._products: dict[str, tuple[Product, tuple[tuple[str, int, int], ...]]] = {}
        self._ready: dict[str, Tensor] = {}

    def serve(self, names: tuple[str, ...], rows: tuple[int, ...], product: Product) -> None:
        """Have ``product`` compute the linears ``names``, whose outputs of ``rows`` lie one behind another."""
        ends = [sum(rows[: index + 1]) for index in range(len(rows))]
        places = tuple((name, end - count, end) for name, end, count in zip(names, ends, rows, strict=True))
        self._products[names[0]] = (product, places)

    def product(self, name: str) -> Product:
        """The product that computes the linear ``name``, the first of its stage, and those joined to it."""
        return self._products[name][0]

    def products(self) -> Iterator[Product]:
        """Every product."""
        return (product for product, _ in self._products.values())

    def dense(self) -> Iterator[tuple[str, Tensor]]:
        """Linears that dense products compute, each with its rows of the product's weight."""
        for product, places in self._products.values():
            if isinstance(product, DenseLinear):
                yield from ((name, product.weight[begin:end]) for name, begin, end in places)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One linear's output; the others of its stage are kept until they are asked for."""
        found = self._products.get(name)
        if found is None:
            return self._ready.pop(name)
        product, places = found
        y = product(x)
        if len(places) == 1:
            return y
        for other, begin, end in places[1:]:
            self._ready[other] = y[..., begin:end]
        return y[..., : places[0][2]]


@dataclass(frozen=True, slots=True)
class Outer:
    """Parameters outside the blocks, by full name, as ``OuterTensors``."""

    tensors: Mapping[str, Tensor]

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of a table."""
        return self.tensors[name][index]

    def tensor(self, name: str) -> Tensor:
        """A whole parameter."""
        return self.tensors[name]


@dataclass(frozen=True, slots=True)
class Served:
    """A model to decode with.

    ``head``: the product that gives logits. ``swap`` says what is packed, ``kernels`` which dense product serves each
    shape, as ``rowsxcolumns``.
    """

    family: Family
    config: Mapping[str, Any]
    shape: ModelShape
    dtype: torch.dtype
    device: torch.device
    outer: Outer
    blocks: list[Joined]
    head: DenseLinear
    swap: Swap
    kernels: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are held."""
        held = [*self.outer.tensors.values(), *(tensor for block in self.blocks for tensor in block.values())]
        total = sum(tensor.nbytes for tensor in held)
        for product in (product for block in self.blocks for product in block.products()):
            if isinstance(product, DenseLinear | BitmapProduct):
                total += product.weight.nbytes
            bias = getattr(product, "bias", None)
            total += 0 if bias is None else bias.nbytes
        return total


def serve(
    source: CheckpointSource,
    *,
    format: str = "dense",  # noqa: A002
    keep: int = 0,
    group: int = 0,
    tune: bool = True,
) -> Served:
    """The model of ``source`` with linears as ``format`` says: ``dense``, or as ``methods.inference.swap`` has them.

    ``tune``: give dense products of few tokens to the faster of torch's kernel and ours, timed here; without it torch
    computes all of them, so that results do not depend on a timing. Blocks are packed as they are read, so that the model
    never lies in memory twice. Raises as ``swap`` does.
    """
    outer = {
        name: source.raw_outer(name).to(device=source.device, dtype=source.dtype, copy=True)
        for name in source.family.outer_tensors(source.shape)
    }
    return _served(source, outer, source.block, format=format, keep=keep, group=group, tune=tune)


def serve_model(model: nn.Module, source: CheckpointSource) -> Served:
    """An assembled ``model`` of ``source`` served dense, sharing its memory: its joined weights become views."""
    family, parameters = source.family, dict(model.named_parameters(remove_duplicate=False))
    outer = {name: parameters[name].data for name in family.outer_tensors(source.shape)}

    def block(index: int) -> Block:
        names = family.block_tensors(source.shape, index)
        return {name: parameters[family.block_prefix(index) + name].data for name in names}

    served = _served(source, outer, block)
    for index, made in enumerate(served.blocks):
        for name, rows in made.dense():
            parameters[f"{family.block_prefix(index)}{name}.weight"].data = rows
    return served


def _served(
    source: CheckpointSource,
    outer: dict[str, Tensor],
    read: Callable[[int], Block],
    *,
    format: str = "dense",  # noqa: A002
    keep: int = 0,
    group: int = 0,
    tune: bool = True,
) -> Served:
    family, config, shape = source.family, source.config, source.shape
    stages = [stage.linears for stage in family.stages(config)]
    blocks: list[Joined] = []
    swap = Swap()
    for index in range(shape.blocks):
        tensors = read(index)
        linears = {name: tensors.pop(f"{name}.weight") for names in stages for name in names}
        biases = {name: tensors.pop(f"{name}.bias", None) for name in linears}
        # what is linear but not prunable, the shortcuts of sliced models
        extra = {name: tensors.pop(name) for name in [*tensors] if tensors[name].dim() == 2}
        made = Joined(tensors)
        for names in stages:
            weight, bias, rows = _join([(linears.pop(name), biases.pop(name)) for name in names])
            packed = (
                None
                if format == "dense"
                else pack_linear(
                    weight, bias, f"block {index} {'+'.join(names)}", format=format, keep=keep, group=group
                )
            )
            if packed is None:
                made.serve(names, rows, DenseLinear(weight, bias))
                swap += Swap(dense=len(names), bytes_before=weight.nbytes, bytes_after=weight.nbytes)
            else:
                made.serve(names, rows, BitmapProduct(packed.packed, bias))
                swap += Swap(len(names), 0, weight.nbytes, packed.packed.nbytes)
        for full, weight in extra.items():
            name = full.removesuffix(".weight")
            made.serve((name,), (weight.shape[0],), DenseLinear(weight, tensors.pop(f"{name}.bias", None)))
        blocks.append(made)
    held = Outer(outer)
    head = DenseLinear(family.head(held, config), family.head_bias(held, config))
    products: list[Product] = [*(product for block in blocks for product in block.products()), head]
    kernels = _choose(products, source.dtype) if tune else {}
    return Served(family, config, shape, source.dtype, source.device, held, blocks, head, swap, kernels)


def _join(linears: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    """One weight and bias of several linears, with the rows of each."""
    rows = tuple(weight.shape[0] for weight, _ in linears)
    if len(linears) == 1:
        return linears[0][0].contiguous(), linears[0][1], rows
    biases = [bias for _, bias in linears]
    joined = None
    if any(bias is not None for bias in biases):
        joined = torch.cat(
            [weight.new_zeros(weight.shape[0]) if bias is None else bias for (weight, bias) in linears]
        )
    return torch.cat([weight for weight, _ in linears]), joined, rows


def _choose(all_products: Iterable[Product], dtype: torch.dtype) -> dict[str, str]:
    """Give every dense product the faster of torch's and ours at one token, timed here shape by shape."""
    alike: dict[str, list[DenseLinear]] = {}
    for product in all_products:
        if isinstance(product, DenseLinear) and product.eligible:
            alike.setdefault("x".join(map(str, product.weight.shape)), []).append(product)
    chosen: dict[str, str] = {}
    for size, products in alike.items():
        x = torch.ones(1, 1, products[0].weight.shape[1], dtype=dtype)
        ours = [DenseProduct(product.weight, product.bias) for product in products]
        torchs, owns = _times([products, ours], x)
        chosen[size] = "own" if owns < torchs else "torch"
        if owns < torchs:
            for product, own in zip(products, ours, strict=True):
                product.own = own
    return chosen


@torch.inference_mode()
def _times(candidates: list[Any], x: Tensor) -> list[float]:
    """Median seconds of a pass over each list of products, in turns; at most a second in all."""
    found: list[list[float]] = [[] for _ in candidates]
    began = time.perf_counter()
    for turn in range(_ROUNDS + 1):
        for times, products in zip(found, candidates, strict=True):
            start = time.perf_counter()
            for product in products:
                product(x)
            if turn:  # the first warms up
                times.append(time.perf_counter() - start)
        if turn and time.perf_counter() - began > 1:
            break
    return [median(times) for times in found]
