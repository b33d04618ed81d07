"""Sizes in closed form, from a shape alone: what plans and reports need before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from methods.families import family_of
from methods.interface import ModelShape, matrix_sizes

__all__ = [
    "bitmap_bytes",
    "block_parameters",
    "checkpoint_bytes",
    "flops_per_token",
    "outer_parameters",
    "parameters",
    "prunable",
]


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def block_parameters(shape: ModelShape, index: int = 0) -> int:
    """Parameters of one decoder block; only those of a sliced model differ."""
    return _count(family_of(shape).block_tensors(shape, index).values())


def outer_parameters(shape: ModelShape) -> int:
    """Parameters outside the blocks; a tied head counts once, with the token table."""
    return _count(family_of(shape).outer_tensors(shape).values())


def parameters(shape: ModelShape) -> int:
    """Parameters of the whole model."""
    return _over_blocks(shape, block_parameters) + outer_parameters(shape)


def prunable(shape: ModelShape) -> int:
    """Weights in the matrices that pruning methods act on, over all blocks."""
    family = family_of(shape)
    return _over_blocks(shape, lambda shape, index: matrix_sizes(family.matrices(shape, index), 1))


def flops_per_token(shape: ModelShape, context: int) -> int:
    """Floating-point operations of a forward pass for one token that attends to ``context`` tokens, zeros included.

    A multiply-add counts as two. Counted: linears of the blocks (shortcuts of sliced ones too), scores and mixing
    in attention, the projections of OPT-350M and the head; not counted: norms, activations, softmax, biases.
    """
    linears = _over_blocks(shape, _block_linears)
    if shape.embedding_width != shape.width:
        linears += 2 * shape.embedding_width * shape.width
    linears += shape.vocabulary * (shape.slices.head if shape.slices else shape.embedding_width)
    mixing = 2 * shape.blocks * shape.heads * shape.head_dim * context
    return 2 * (linears + mixing)


def checkpoint_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """Bytes of all parameters in ``dtype``, without file headers."""
    return parameters(shape) * dtype.itemsize


def bitmap_bytes(weights: int, kept: int, itemsize: int) -> int:
    """Bytes of a matrix of ``weights`` weights as a bitmap and its ``kept`` packed non-zeros of ``itemsize`` bytes.

    One bit a weight, in whole bytes. This is what ``bytes-30%`` reckons with.
    """
    return (weights + 7) // 8 + kept * itemsize


def _block_linears(shape: ModelShape, index: int) -> int:
    sizes = family_of(shape).block_tensors(shape, index).values()
    return _count(size for size in sizes if len(size) == 2)


def _over_blocks(shape: ModelShape, count: Callable[[ModelShape, int], int]) -> int:
    """The sum over all blocks, each of which must be looked at in sliced models only."""
    if shape.slices is None:
        return shape.blocks * count(shape, 0)
    return sum(count(shape, index) for index in range(shape.blocks))
