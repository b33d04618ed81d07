"""Log-likelihoods of answers behind their contexts: what every multiple-choice task asks of a language model.

Beginnings that requests share are computed once, nothing is padded but inside attention, and logits are made at the
tokens that answers are read from only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.families.base import run_block
from methods.inference.served import Served
from methods.inference.token_trees import Ids, Pack, alone, arguments_of, grow, packs
from methods.interface import Arguments, Carry

__all__ = ["Answers", "Request", "score_answers"]

Request = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context, one at least, and of the answer behind it, one at least."""

_LOGIT_BYTES = 32 << 20
"""Bytes of float32 logits at a time."""


@dataclass(frozen=True, slots=True)
class Answers:
    """For each request the answer's log-likelihood in nats, float64, and whether greedy decoding would give it.

    ``tokens`` is the work as the requests state it, context and answer less its last token each; ``computed`` what went
    through the blocks, ``logits`` the positions that the head was computed at. ``cut`` requests lost the start of
    their context.
    """

    loglikelihoods: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    tokens: int
    computed: int
    logits: int
    cut: int


@torch.inference_mode()
def score_answers(
    model: Served,
    requests: Sequence[Request],
    *,
    context: int,
    batch_tokens: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """Score every request, texts cut at their start to the last ``context`` tokens that are read.

    ``batch_tokens`` go through the model at a time, more where a single text is longer. ``progress`` hears how many
    requests are done. Outputs that are not finite give NaN and False, and change nothing for requests they share tokens
    with. Raises ValueError for an empty context or answer and for an answer longer than ``context``.
    """
    sequences, unique, asked, cut = _sequences(requests, context)
    sums = np.zeros(len(requests))
    greedy = np.ones(len(requests), dtype=bool)
    tokens = sum(len(sequences[number]) for number in unique)
    if not requests:
        return Answers(sums, greedy, tokens, 0, 0, cut)
    by_sequence: list[list[int]] = [[] for _ in sequences]
    for number, sequence in enumerate(unique):
        by_sequence[sequence].append(number)
    like = torch.empty(0, dtype=model.dtype, device=model.device)
    heads = _plain(model, 1, like).bias
    pair = model.dtype.itemsize * (1 if heads is None else heads.shape[1])
    computed = logits = done = 0
    trees = grow(sequences, model.shape, batch_tokens)
    while trees:
        spoilt: list[int] = []
        for pack in packs(trees, batch_tokens, pair):
            rows, owners, targets = _asked_rows(pack, by_sequence, asked)
            read, inverse = np.unique(rows, return_inverse=True)
            hidden = _last_states(
                model, pack, arguments_of(pack, _plain(model, pack.longest, like), like), read
            )
            scores, best = _log_probabilities(model, hidden, inverse, targets)
            mine = np.unique(owners)
            sums[mine], greedy[mine] = 0, True
            np.add.at(sums, owners, scores)
            np.logical_and.at(greedy, owners, best & np.isfinite(scores))
            computed, logits = computed + pack.nodes, logits + len(read)
            broken = _joined(pack, by_sequence, sums)
            spoilt += broken
            done += len(mine) - sum(len(by_sequence[member]) for member in broken)
            progress(done)
        # Attention gives a hidden node no weight, but nothing times NaN is NaN: only by itself is a sequence sure to be
        # what is not finite.
        trees = alone(sequences, spoilt)
    sums[~np.isfinite(sums)] = np.nan
    return Answers(sums, greedy, tokens, computed, logits, cut)


def _joined(pack: Pack, by_sequence: Sequence[Sequence[int]], sums: NDArray[np.float64]) -> list[int]:
    """Sequences that shared their tree with others and have a request whose sum is not finite."""
    return [
        member
        for tree in pack.trees
        if len(tree.members) > 1
        for member in tree.members
        if not np.isfinite(sums[by_sequence[member]]).all()
    ]


def _plain(model: Served, length: int, like: Tensor) -> Arguments:
    """The family's arguments for one text of ``length`` tokens."""
    return model.family.arguments(model.config, None, 1, length, like)


def _sequences(requests: Sequence[Request], context: int) -> tuple[list[Ids], list[int], list[Ids], int]:
    """Distinct sequences that are read, each request's among them, its answer, and how many were cut."""
    numbers: dict[bytes, int] = {}
    sequences: list[Ids] = []
    unique: list[int] = []
    asked: list[Ids] = []
    cut = 0
    for before, answer in requests:
        if not len(before) or not 0 < len(answer) <= context:
            raise ValueError(
                f"a context of {len(before)} tokens and an answer of {len(answer)}: pass one each at least, and answers of "
                f"at most {context}, the model's context"
            )
        joined = np.concatenate((np.asarray(before, dtype=np.int64), np.asarray(answer, dtype=np.int64)))
        cut += len(joined) > context + 1
        sequence = joined[-(context + 1) :][:-1]
        key = sequence.tobytes()
        if key not in numbers:
            numbers[key] = len(sequences)
            sequences.append(sequence)
        unique.append(numbers[key])
        asked.append(joined[len(joined) - len(answer) :])
    return sequences, unique, asked, cut


def _asked_rows(
    pack: Pack, by_sequence: Sequence[Sequence[int]], asked: Sequence[Ids]
) -> tuple[Ids, Ids, Ids]:
    """Nodes of the pack that answers are read from, with the request and the token that each is read for."""
    rows: list[Ids] = []
    owners: list[Ids] = []
    for tree, start in zip(pack.trees, pack.starts, strict=True):
        for member, path in zip(tree.members, tree.paths, strict=True):
            for number in by_sequence[member]:
                rows.append(start + path[len(path) - len(asked[number]) :])
                owners.append(np.full(len(asked[number]), number))
    targets = np.concatenate([asked[owner[0]] for owner in owners])
    return np.concatenate(rows), np.concatenate(owners), targets


def _last_states(model: Served, pack: Pack, arguments: Arguments, read: Ids) -> Tensor:
    """Hidden states [1, rows, width] behind the last block at the nodes ``read``."""
    tokens, row, column = pack.rows()
    device = model.device
    embedded = model.family.embed(model.outer, model.config, torch.from_numpy(tokens).to(device), None)
    hidden = embedded[torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)][None]
    stages = model.family.stages(model.config)
    for block in model.blocks[:-1]:
        hidden = run_block(stages, block, hidden, arguments)
    first, *others = stages
    block = model.blocks[-1]
    carry: Carry = (hidden,)
    carry = first.advance(block, carry, first.inputs(block, carry, arguments), arguments)
    # behind the last attention no token reads another: only those asked for go on
    chosen = torch.from_numpy(read).to(device)
    carry = tuple(part[:, chosen] for part in carry)
    for stage in others:
        carry = stage.advance(block, carry, stage.inputs(block, carry, arguments), arguments)
    return model.family.finish(model.outer, model.config, carry[0])


def _log_probabilities(
    model: Served, hidden: Tensor, rows: Ids, targets: Ids
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-probability of each target at its row of ``hidden`` [1, rows, width], and whether it is the likeliest."""
    scores, best = np.empty(len(rows)), np.empty(len(rows), dtype=bool)
    step = max(1, _LOGIT_BYTES // (4 * model.shape.vocabulary))
    order = np.argsort(rows, kind="stable")
    bounds = np.searchsorted(rows[order], np.arange(0, hidden.shape[1] + step, step))
    for number, begin in enumerate(range(0, hidden.shape[1], step)):
        mine = order[bounds[number] : bounds[number + 1]]
        logits = model.head(hidden[:, begin : begin + step])[0].float()
        place = torch.from_numpy(rows[mine] - begin).to(logits.device)
        token = torch.from_numpy(targets[mine]).to(logits.device)
        total = torch.logsumexp(logits, dim=-1)
        scores[mine] = (logits[place, token] - total[place]).double().cpu().numpy()
        best[mine] = (logits.argmax(dim=-1)[place] == token).cpu().numpy()
    return scores, best
