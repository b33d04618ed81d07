"""The sparsity at which a model reaches a size: ``params-20%`` counts non-zeros, ``bytes-30%`` bitmaps and packed non-zeros."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from methods.errors import UnsupportedTarget
from methods.families import family_of, sizes
from methods.interface import BlockSource, ModelShape
from methods.layerwise.select import round_half_up
from methods.selection import EVERYTHING, Selection
from methods.target import Target

__all__ = ["SIZES", "Inventory", "sized"]

SIZES = ("params", "bytes")
"""Kinds of targets that ask for a size."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a dense model holds: ``parameters`` and ``bytes`` in all; ``matrices``: weights of every one that is pruned.

    ``itemsize``: bytes of a pruned matrix' weight, the most where they differ; ``matrix_bytes``: of all of them.
    """

    parameters: int
    bytes: int
    matrices: tuple[int, ...]
    matrix_bytes: int
    itemsize: int

    @classmethod
    def of_shape(cls, shape: ModelShape, layers: Selection = EVERYTHING) -> Inventory:
        """From sizes alone, every parameter taking ``shape.itemsize`` bytes; ``layers`` are pruned."""
        matrices = [matrix.size for _, matrix in layers.of(family_of(shape).matrices(shape), shape.blocks)]
        parameters = sizes.parameters(shape)
        return cls(
            parameters,
            parameters * shape.itemsize,
            tuple(matrices),
            sum(matrices) * shape.itemsize,
            shape.itemsize,
        )

    @classmethod
    def of_source(cls, source: BlockSource, layers: Selection = EVERYTHING) -> Inventory:
        """From what is stored, read block by block; ``layers`` are pruned."""
        family, shape = source.family, source.shape
        selected = {(index, matrix.name) for index, matrix in layers.of(family.matrices(shape), shape.blocks)}
        total = [source.raw_outer(name) for name in family.outer_tensors(shape)]
        parameters, size = sum(tensor.numel() for tensor in total), sum(tensor.nbytes for tensor in total)
        matrices: list[int] = []
        matrix_bytes, itemsize = 0, 1
        for index in range(shape.blocks):
            block = source.raw_block(index)
            for matrix in family.matrices(shape, index):
                if (index, matrix.name) in selected:
                    weight = block[f"{matrix.name}.weight"]
                    matrices.append(weight.numel())
                    matrix_bytes += weight.nbytes
                    itemsize = max(itemsize, weight.itemsize)
            parameters += sum(tensor.numel() for tensor in block.values())
            size += sum(tensor.nbytes for tensor in block.values())
        return cls(parameters, size, tuple(matrices), matrix_bytes, itemsize)

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
    if target.kind == "bytes" and target.bits:
        raise UnsupportedTarget(
            f"{target}: bytes are reckoned with weights as they are stored, not on a grid; ask for params-… or a share"
        )
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
