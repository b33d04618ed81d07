"""Answers scored over shared beginnings, against lm-evaluation-harness' own scorer of transformers models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruned_nanos import NANOS, nano, pruned
from saved_models import saved
from sliced_models import sliced

from methods.families.base import run_block
from methods.inference.answers import Request, score_answers
from methods.inference.assemble import assemble
from methods.inference.served import Served, serve
from methods.inference.token_trees import grow, packs
from methods.stream.source import CheckpointSource

CONTEXT = 48
MODELS = (*NANOS, "sliced bloom", "sliced opt", "pruned")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")


def _requests(vocabulary: int, seed: int = 0) -> list[Request]:
    """Items with 1 to 5 answers, shared and lone contexts of 1 to 80 tokens, twins, answers that begin alike."""
    draw = np.random.default_rng(seed)

    def some(low: int, high: int) -> list[int]:
        return draw.integers(3, vocabulary, draw.integers(low, high)).tolist()

    requests: list[Request] = []
    for _ in range(14):
        context, start = some(1, 40), some(0, 4)
        requests += [(context, start + some(1, 9)) for _ in range(draw.integers(1, 6))]
        requests += [(context, [3]), (context, [4]), (context, [3])]
    requests += [(some(60, 80), some(1, 12)) for _ in range(3)]
    requests += [([*context, 5], [6, 7]) for context, _ in requests[:6]]
    return [*requests, ([1], some(CONTEXT, CONTEXT + 1)), ([1], [9])]


def _source(kind: str, tmp_path: Path) -> CheckpointSource:
    if kind == "pruned":
        return pruned("nano-llama", tmp_path)
    if kind.startswith("sliced"):
        family = kind.partition(" ")[2]
        more = {"max_position_embeddings": 64} if family == "opt" else {}
        return sliced(saved(tmp_path / "dense", family, vocab_size=101, **more), tmp_path / "out")[1]
    return CheckpointSource(nano(kind))


def _harness(source: CheckpointSource, requests: list[Request]) -> list[tuple[float, bool]]:
    from byte_tokenizer import byte_tokenizer
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(assemble(source), tokenizer=byte_tokenizer(), batch_size=8, max_length=CONTEXT)
    found: Any = scorer._loglikelihood_tokens(
        [((str(number), ""), [*text], [*answer]) for number, (text, answer) in enumerate(requests)],
        disable_tqdm=True,
    )
    return [(float(score), bool(greedy)) for score, greedy in found]


@pytest.mark.parametrize("kind", MODELS)
def test_answers_score_as_the_harness_scores_them(kind: str, tmp_path: Path) -> None:
    source = _source(kind, tmp_path)
    requests = _requests(min(101, source.shape.vocabulary))
    expected = _harness(source, requests)
    served = serve(source, tune=False)
    for batch_tokens in (1, 96, 4096):
        found = score_answers(served, requests, context=CONTEXT, batch_tokens=batch_tokens)
        assert found.loglikelihoods == pytest.approx([score for score, _ in expected], abs=2e-4, rel=1e-5)
        assert found.greedy.tolist() == [greedy for _, greedy in expected]
        assert found.cut == sum(len(text) + len(answer) > CONTEXT + 1 for text, answer in requests) > 0
        assert found.tokens == sum(min(CONTEXT, len(text) + len(answer) - 1) for text, answer in requests)
    assert found.computed < 0.6 * found.tokens, "what requests share is computed once"


def test_greedy_answers_are_found_so() -> None:
    served = serve(CheckpointSource(nano("nano-llama")), tune=False)
    text = [5, 90, 400, 31]
    answer: list[int] = []
    for _ in range(4):
        tokens = torch.tensor([text + answer])
        hidden = served.family.embed(served.outer, served.config, tokens, None)
        arguments = served.family.arguments(served.config, None, 1, tokens.shape[1], hidden)
        for block in served.blocks:
            hidden = run_block(served.family.stages(served.config), block, hidden, arguments)
        logits = served.head(served.family.finish(served.outer, served.config, hidden))[0, -1]
        answer.append(int(logits.argmax()))
    other = [*answer[:-1], answer[-1] + 1]
    found = score_answers(served, [(text, answer), (text, other)], context=64, batch_tokens=64)
    assert found.greedy.tolist() == [True, False]


def test_packed_linears_score_as_dense_ones(tmp_path: Path) -> None:
    source = pruned("nano-llama", tmp_path)
    requests = _requests(500)
    dense, packed = (
        score_answers(serve(source, format=name, tune=False), requests, context=CONTEXT, batch_tokens=256)
        for name in ("dense", "bitmap")
    )
    assert packed.loglikelihoods == pytest.approx(dense.loglikelihoods, abs=2e-4, rel=1e-5)
    assert packed.computed == dense.computed


@pytest.mark.parametrize("kind", NANOS)
def test_what_is_not_finite_spoils_nothing_it_is_joined_with(kind: str) -> None:
    served: Served = serve(CheckpointSource(nano(kind)), tune=False)
    stem = [5, *range(20, 50)]
    requests: list[Request] = [
        *[([5, 7], [9]), ([5, 6], [9]), ([5, 6], [9, 11])],
        *[([*stem, 7], [9]), ([*stem, 8], [9]), ([*stem, 8], [9, 7]), ([*stem, 8], [7, 9]), ([7, 12], [13])],
        ([7, *stem, *range(60, 70)], [9]),  # first in its pack, where padding is taken from
    ]
    whole = score_answers(served, requests, context=CONTEXT, batch_tokens=1)
    (name,) = (
        name for name in served.outer.tensors if name.endswith(("embed_tokens.weight", "embeddings.weight"))
    )
    served.outer.tensors[name] = served.outer.tensors[name].clone()
    served.outer.tensors[name][7] = torch.nan
    served.head.weight = served.head.weight.clone().nan_to_num_(0.0)
    broken = [0, 3, 6, 7, 8]
    for batch_tokens in (1, 64, 4096):
        heard: list[int] = []
        found = score_answers(
            served, requests, context=CONTEXT, batch_tokens=batch_tokens, progress=heard.append
        )
        assert np.isnan(found.loglikelihoods).nonzero()[0].tolist() == broken
        assert not found.greedy[broken].any()
        kept = np.delete(np.arange(len(requests)), broken)
        assert found.loglikelihoods[kept] == pytest.approx(whole.loglikelihoods[kept], abs=2e-4, rel=1e-5)
        assert (found.greedy == whole.greedy)[kept].all()
        assert heard == sorted(heard) and heard[-1] == len(requests)
        assert found.tokens == whole.tokens


@pytest.mark.parametrize(("text", "answer"), [([], [1]), ([1], []), ([1], [1] * 9)])
def test_requests_that_cannot_be_scored_are_named(text: list[int], answer: list[int]) -> None:
    served = serve(CheckpointSource(nano("nano-opt")), tune=False)
    with pytest.raises(ValueError, match="pass one each at least, and answers of at most 8"):
        score_answers(served, [(text, answer)], context=8, batch_tokens=64)


def test_trees_hold_every_sequence_and_packs_every_tree() -> None:
    shape = CheckpointSource(nano("nano-llama")).shape
    draw = np.random.default_rng(1)
    stem = draw.integers(0, 9, 30)
    sequences = [np.concatenate((stem[:cut], draw.integers(0, 9, 6))) for cut in (2, 15, 30, 30, 30, 0, 29)]
    trees = grow(sequences, shape, most=200)
    held = {
        member: tree.tokens[path]
        for tree in trees
        for member, path in zip(tree.members, tree.paths, strict=True)
    }
    assert sorted(held) == list(range(len(sequences)))
    assert all((held[number] == sequence).all() for number, sequence in enumerate(sequences))
    assert sum(map(len, trees)) < sum(map(len, sequences))
    for tree in trees:
        for path in tree.paths:
            assert (tree.depth[path] == np.arange(len(path))).all()
            assert (tree.ancestors()[path[-1]].nonzero()[0] == path).all()
    for most in (1, 40, 1000):
        made = list(packs(trees, most, bias_bytes=4))
        assert [tree for pack in made for tree in pack.trees] == trees
        assert all(pack.nodes <= most or len(pack.trees) == 1 for pack in made)
