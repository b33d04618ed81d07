"""Zeros stay zeros: what a pruning removed is kept out of gradients, steps and merged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.errors import CheckpointError
from methods.selection import Selection
from methods.stream.source import CheckpointSource

__all__ = ["Places", "check_zeros", "hold", "places_of"]


@dataclass(frozen=True, slots=True)
class Places:
    """What may train, by full name.

    ``matrices``: weights of the pruned matrices, each with its mask (bool, True where a weight stays), or with
    None in a model that was made narrower instead; ``vectors``: weights and biases of norms, biases of linears.
    """

    matrices: Mapping[str, Tensor | None]
    vectors: tuple[str, ...]

    def trainable(self, name: str, parameter: Tensor) -> int:
        """How many weights of a trained parameter can change: of a masked matrix those that stay."""
        mask = self.matrices.get(name)
        return parameter.numel() if mask is None else int(torch.count_nonzero(mask))


def places_of(
    source: CheckpointSource,
    dense: CheckpointSource,
    layers: Selection,
    removed: Mapping[tuple[int, str], int] | None = None,
    group: int = 0,
) -> Places:
    """What may train of a pruned model, read block by block; of the matrices those of ``layers``.

    A weight stays where it is not zero as stored, so a weight that was zero by chance does not come back either.
    With ``removed``, how many weights the last pruning chose of a (block, matrix), zeros beyond that number train
    again from zero, those first that are largest in the ``dense`` model (ties by index): an allocation that gave a
    matrix less in this stage than in the one before would else leave it with more zeros than its budget has.
    ``group``: M of N:M, whose groups have so many zeros each; 0 for budgets of whole matrices.
    """
    family, shape = source.family, source.shape
    reshaped = shape != dense.shape
    matrices: dict[str, Tensor | None] = {}
    vectors = [name for name, size in family.outer_tensors(shape).items() if len(size) == 1 and not reshaped]
    for index in range(shape.blocks):
        prefix = family.block_prefix(index)
        block = source.raw_block(index)
        whole = dense.raw_block(index) if removed is not None else {}
        for matrix in family.matrices(shape, index):
            if layers.holds(index, matrix.name, shape.blocks):
                name = f"{matrix.name}.weight"
                kept = block[name] != 0
                if removed is not None:
                    _free(kept, whole[name], removed[index, matrix.name], group)
                matrices[prefix + name] = None if reshaped else kept.to(source.device)
        vectors += [prefix + name for name, tensor in block.items() if tensor.ndim == 1]
    return Places(matrices, tuple(vectors))


def _free(kept: Tensor, dense: Tensor, removed: int, group: int) -> None:
    """Let zeros beyond ``removed`` train (of each ``group`` its share), those of the largest dense weights first."""
    groups = kept.view(-1, group or kept.numel())
    spare = (~groups).sum(dim=1) - removed // len(groups)
    over = (spare > 0).nonzero().flatten()
    if len(over):
        score = dense.reshape(groups.shape)[over].float().abs().masked_fill(groups[over], -1.0)
        order = torch.argsort(score, dim=1, descending=True, stable=True)
        rank = torch.argsort(order, dim=1)
        groups[over] |= rank < spare[over, None]


def hold(parameter: nn.Parameter, mask: Tensor) -> None:
    """Zero the gradient of what is masked out, as soon as it is there.

    AdamW's moments then stay zero in these places, and so do its steps: 0 / (0 + eps).
    """

    def zero(given: Tensor) -> None:
        if given.grad is not None:
            given.grad.mul_(mask)

    parameter.register_post_accumulate_grad_hook(zero)


def check_zeros(name: str, weight: Tensor, mask: Tensor | None) -> None:
    """Raises CheckpointError where a weight came back that had been removed: a defect, never the user's."""
    if mask is not None and bool(torch.count_nonzero(weight[~mask])):
        raise CheckpointError(f"{name}: recovery brought removed weights back; please report this")
