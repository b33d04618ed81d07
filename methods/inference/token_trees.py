"""Token sequences that begin alike, joined to trees so that every distinct beginning is computed once.

A node is a token behind all the tokens on its way from the root; it attends to these and to itself, at the position
that its depth is. Trees are packed behind one another into one row of tokens without padding: only attention, which
is per tree, sees them side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.families.sizes import prunable
from methods.interface import Arguments, ModelShape

__all__ = ["Pack", "Packing", "Tree", "alone", "arguments_of", "grow", "packs"]

_BIAS_BYTES = 64 << 20
"""Bytes of a pack's attention bias beyond which no further tree joins it."""
_SCORES_COST = 3
"""What a multiplication in attention costs, next to one in a large matrix product; measured on a CPU."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tree:
    """Sequences ``members`` by number, each a path of nodes from the root; ``tokens`` and ``depth`` by node."""

    members: tuple[int, ...]
    paths: tuple[Ids, ...]
    tokens: Ids
    depth: Ids

    def __len__(self) -> int:
        return len(self.tokens)

    def ancestors(self) -> NDArray[np.bool_]:
        """Whether the row's node attends to the column's, [nodes, nodes]."""
        found = np.zeros((len(self), len(self)), dtype=bool)
        for path in self.paths:
            # ids grow along a path, and an inner node's row is the same whichever path writes it
            found[np.ix_(path, path)] = np.tri(len(path), dtype=bool)
        return found


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the nodes of a pack's trees lie when attention sees the trees side by side, padded to the longest.

    ``spread`` int64 [trees, longest] holds nodes of the pack, ``gather`` int64 [nodes] places in trees · longest.
    """

    spread: Tensor
    gather: Tensor

    def apart(self, x: Tensor) -> Tensor:
        """[1, heads, nodes, head_dim] to [trees, heads, longest, head_dim]."""
        return x[0][:, self.spread].transpose(0, 1)

    def together(self, x: Tensor) -> Tensor:
        """[trees, longest, width] to [1, nodes, width]."""
        return x.flatten(0, 1)[self.gather][None]


@dataclass(frozen=True, slots=True)
class Pack:
    """Trees computed in one pass; ``starts`` are the first nodes of each."""

    trees: tuple[Tree, ...]
    starts: tuple[int, ...]

    @property
    def nodes(self) -> int:
        """Tokens computed."""
        return self.starts[-1] + len(self.trees[-1])

    @property
    def longest(self) -> int:
        """Tokens of the longest path."""
        return max(len(path) for tree in self.trees for path in tree.paths)

    def rows(self) -> tuple[Ids, Ids, Ids]:
        """Paths, padded at their end with token 0 [paths, longest], and each node's path and place in it [nodes]."""
        paths = [path for tree in self.trees for path in tree.paths]
        tokens = np.zeros((len(paths), max(map(len, paths))), dtype=np.int64)
        row, column = np.empty(self.nodes, dtype=np.int64), np.empty(self.nodes, dtype=np.int64)
        number = 0
        for tree, start in zip(self.trees, self.starts, strict=True):
            for path in tree.paths:
                tokens[number, : len(path)] = tree.tokens[path]
                row[start + path] = number
                column[start + path] = np.arange(len(path))
                number += 1
        return tokens, row, column


def grow(sequences: Sequence[Ids], shape: ModelShape, most: int) -> list[Tree]:
    """Trees that hold every sequence once, the longest first; none of more than ``most`` nodes but for single sequences.

    Neighbours in lexicographic order join where what they share saves more in the linears than their wider attention
    costs, so results differ by rounding only, whatever is joined.
    """
    linear = 2 * prunable(shape) / shape.blocks
    scores = _SCORES_COST * 4 * shape.heads * shape.head_dim
    trees: list[Tree] = []
    members: list[int] = []
    paths: list[Ids] = []
    tokens: list[Ids] = []
    count = 0

    def finish() -> None:
        if members:
            flat = np.concatenate(tokens)
            depth = np.empty(count, dtype=np.int64)
            for path in paths:
                depth[path] = np.arange(len(path))
            trees.append(Tree(tuple(members), tuple(paths), flat, depth))

    last: Ids = np.empty(0, dtype=np.int64)
    for number in sorted(range(len(sequences)), key=lambda index: sequences[index].tolist()):
        sequence = sequences[number]
        same = _shared(last, sequence)
        joined = count + len(sequence) - same
        wider = joined**2 - count**2 - len(sequence) ** 2
        if not members or joined > most or linear * same <= scores * wider:
            finish()
            members, paths, tokens, count, same = [], [], [], 0, 0
        members.append(number)
        before = paths[-1][:same] if same else np.empty(0, dtype=np.int64)
        paths.append(np.concatenate((before, np.arange(count, count + len(sequence) - same))))
        tokens.append(sequence[same:])
        count += len(sequence) - same
        last = sequence
    finish()
    return sorted(trees, key=len, reverse=True)


def alone(sequences: Sequence[Ids], numbers: Iterable[int]) -> list[Tree]:
    """A tree of its own for each of the sequences ``numbers``, the longest first."""
    trees = []
    for number in numbers:
        path = np.arange(len(sequences[number]))
        trees.append(Tree((number,), (path,), sequences[number], path))
    return sorted(trees, key=len, reverse=True)


def _shared(one: Ids, other: Ids) -> int:
    """Length of the common beginning."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def packs(trees: Sequence[Tree], most: int, bias_bytes: int) -> Iterator[Pack]:
    """Trees, longest first, in packs of up to ``most`` nodes; ``bias_bytes`` is what a pair of nodes takes in the bias."""
    held: list[Tree] = []
    nodes = 0
    for tree in trees:
        square = len(held[0]) ** 2 if held else 0
        if held and (nodes + len(tree) > most or (len(held) + 1) * square * bias_bytes > _BIAS_BYTES):
            yield _pack(held)
            held, nodes = [], 0
        held.append(tree)
        nodes += len(tree)
    if held:
        yield _pack(held)


def _pack(trees: list[Tree]) -> Pack:
    ends = np.cumsum([len(tree) for tree in trees]).tolist()
    return Pack(tuple(trees), (0, *ends[:-1]))


def arguments_of(pack: Pack, whole: Arguments, like: Tensor) -> Arguments:
    """What a block needs for ``pack``, out of the family's arguments for one plain sequence at least as long.

    The bias [trees, 1 or heads, longest, longest] lets a node attend to its ancestors and, where ``whole`` has a bias
    that depends on the key's position (ALiBi), adds it.
    """
    longest = len(pack.trees[0])
    # Padding repeats the tree's root, which all its nodes attend to: a root that is not finite spoils no other tree.
    spread = np.repeat(np.array(pack.starts)[:, None], longest, axis=1)
    gather = np.empty(pack.nodes, dtype=np.int64)
    # Padding attends to itself; what comes out of it is never read.
    allowed = np.broadcast_to(np.eye(longest, dtype=bool), (len(pack.trees), longest, longest)).copy()
    depth = np.zeros((len(pack.trees), longest), dtype=np.int64)
    for number, (tree, start) in enumerate(zip(pack.trees, pack.starts, strict=True)):
        size = len(tree)
        spread[number, :size] = np.arange(start, start + size)
        gather[start : start + size] = number * longest + np.arange(size)
        allowed[number, :size, :size] = tree.ancestors()
        depth[number, :size] = tree.depth
    device = like.device
    hidden = ~torch.from_numpy(allowed).to(device)[:, None]
    floor = torch.finfo(like.dtype).min / 2
    if whole.bias is None:
        bias = torch.zeros(hidden.shape, dtype=like.dtype, device=device).masked_fill_(hidden, floor)
    else:
        # the last position sees every key, so its row is the bias by key position alone
        by_key = whole.bias[0, :, -1][:, torch.from_numpy(depth).to(device)].transpose(0, 1)
        bias = by_key[:, :, None].masked_fill(hidden, floor)
    place = torch.from_numpy(np.concatenate([tree.depth for tree in pack.trees])).to(device)
    return Arguments(
        bias=bias,
        cos=None if whole.cos is None else whole.cos[:, place],
        sin=None if whole.sin is None else whole.sin[:, place],
        packing=Packing(torch.from_numpy(spread).to(device), torch.from_numpy(gather).to(device)),
    )
