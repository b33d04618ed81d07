"""Sizes in closed form, from a shape alone: what plans and reports need before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from methods.families import family_of
from methods.interface import ModelShape, matrix_sizes

__all__ = [
    "block_parameters",
    "checkpoint_bytes",
    "flops_per_token",
    "outer_parameters",
    "parameters",
    "prunable",
]


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def block_parameters(shape: ModelShape) -> int:
    """Parameters of one decoder block."""
    return _count(family_of(shape).block_tensors(shape).values())


def outer_parameters(shape: ModelShape) -> int:
    """Parameters outside the blocks; a tied head counts once, with the token table."""
    return _count(family_of(shape).outer_tensors(shape).values())


def parameters(shape: ModelShape) -> int:
    """Parameters of the whole model."""
    return shape.blocks * block_parameters(shape) + outer_parameters(shape)


def prunable(shape: ModelShape) -> int:
    """Weights in the matrices that pruning methods act on, over all blocks."""
    return matrix_sizes(family_of(shape).matrices(shape), shape.blocks)


def flops_per_token(shape: ModelShape, context: int) -> int:
    """Floating-point operations of a dense forward pass for one token that attends to ``context`` tokens.

    A multiply-add counts as two. Counted: linears of the blocks, scores and mixing in attention, the
    projections of OPT-350M and the head; not counted: norms, activations, softmax, biases.
    """
    linears = prunable(shape)
    if shape.embedding_width != shape.width:
        linears += 2 * shape.embedding_width * shape.width
    linears += shape.vocabulary * shape.embedding_width
    mixing = 2 * shape.blocks * shape.heads * shape.head_dim * context
    return 2 * (linears + mixing)


def checkpoint_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """Bytes of all parameters in ``dtype``, without file headers."""
    return parameters(shape) * dtype.itemsize
