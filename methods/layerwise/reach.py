"""The sparsity at which a model reaches a size: ``params-20%`` counts non-zeros, ``bytes-30%`` bitmaps and packed non-zeros."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from methods.errors import UnsupportedTarget
from methods.families import family_of, sizes
from methods.interface import BlockSource, ModelShape
from methods.layerwise.select import round_half_up
from methods.target import Target

__all__ = ["SIZES", "Inventory", "sized"]

SIZES = ("params", "bytes")
"""Kinds of targets that ask for a size."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a dense model holds: ``parameters`` and ``bytes`` in all; ``matrices``: weights of every prunable one.

    ``itemsize``: bytes of a prunable weight, the most where matrices differ; ``matrix_bytes``: of all of them.
    """

    parameters: int
    bytes: int
    matrices: tuple[int, ...]
    matrix_bytes: int
    itemsize: int

    @classmethod
    def of_shape(cls, shape: ModelShape) -> Inventory:
        """From sizes alone, every parameter taking ``shape.itemsize`` bytes."""
        matrices = [matrix.size for matrix in family_of(shape).matrices(shape)] * shape.blocks
        parameters = sizes.parameters(shape)
        return cls(
            parameters,
            parameters * shape.itemsize,
            tuple(matrices),
            sum(matrices) * shape.itemsize,
            shape.itemsize,
        )

    @classmethod
    def of_source(cls, source: BlockSource) -> Inventory:
        """From what is stored, read block by block."""
        names = [f"{matrix.name}.weight" for matrix in source.family.matrices(source.shape)]
        rest: list[tuple[int, int]] = [
            _size(source.raw_outer(name)) for name in source.family.outer_tensors(source.shape)
        ]
        matrices: list[tuple[int, int]] = []
        itemsize = 1
        for index in range(source.shape.blocks):
            block = source.raw_block(index)
            pruned = [block.pop(name) for name in names]
            itemsize = max(itemsize, *(weight.itemsize for weight in pruned))
            matrices += map(_size, pruned)
            rest += map(_size, block.values())
        weights, matrix_bytes = _sum(matrices)
        others, other_bytes = _sum(rest)
        return cls(
            weights + others,
            matrix_bytes + other_bytes,
            tuple(size for size, _ in matrices),
            matrix_bytes,
            itemsize,
        )

    def size_without(self, removed: int, kind: str) -> int:
        """Non-zero parameters, or bytes with matrices as bitmaps, once ``removed`` weights are gone."""
        if kind == "params":
            return self.parameters - removed
        bitmaps = sum(sizes.bitmap_bytes(weights, 0, self.itemsize) for weights in self.matrices)
        kept = sum(self.matrices) - removed
        return self.bytes - self.matrix_bytes + bitmaps + kept * self.itemsize

    def to_remove(self, target: Target) -> int:
        """Fewest weights that must go for the target's size. Raises UnsupportedTarget, with figures, if there are too few."""
        dense, unit, each = (
            (self.parameters, "parameters", 1)
            if target.kind == "params"
            else (self.bytes, "bytes", self.itemsize)
        )
        most = int((1 - target.amount) * dense)
        weights = sum(self.matrices)
        least = self.size_without(weights, target.kind)
        if least > most:
            raise UnsupportedTarget(
                f"{target} allows {most:,} of {dense:,} {unit}; with all {weights:,} prunable weights removed "
                f"{least:,} are left (embeddings, head, norms and biases are not pruned)"
            )
        over = self.size_without(0, target.kind) - most
        return max(0, -(-over // each))


def sized(target: Target, inventory: Inventory) -> Target:
    """A target of a size as the sparsity that reaches it; other targets as they are.

    Matrices may round their shares down, so the share is raised until their sum suffices: less than one weight
    a matrix goes too much. Raises UnsupportedTarget where the size cannot be reached.
    """
    if target.kind not in SIZES:
        return target
    needed = inventory.to_remove(target)
    weights, count = sum(inventory.matrices), needed
    while count < weights:
        share = Fraction(count, weights)
        short = needed - sum(round_half_up(share * size) for size in inventory.matrices)
        if short <= 0:
            break
        count = min(weights, count + short)
    if count == weights:
        raise UnsupportedTarget(f"{target} would remove every prunable weight")
    return Target("unstructured", Fraction(count, weights), bits=target.bits)


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.numel(), tensor.nbytes


def _sum(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    counts, totals = zip(*pairs, strict=True)
    return sum(counts), sum(totals)
