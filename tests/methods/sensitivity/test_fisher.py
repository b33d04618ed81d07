"""The streamed Gauss-Newton traces against whole-model autograd and against the exact trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import MemorySource, tiny
from torch import Tensor
from torch.nn import functional

from methods.interface import Run
from methods.sensitivity.fisher import drawn_labels, fisher

FAMILIES = ["opt", "bloom", "llama"]


def tokens(probes: int, windows: int, length: int, seed: int = 0, vocabulary: int = 101) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (probes, windows, length), generator=generator)


def parameters(model: torch.nn.Module, source: MemorySource) -> list[torch.nn.Parameter]:
    """transformers' own parameters of every prunable matrix, in our order."""
    named = dict(model.named_parameters())
    matrices = source.family.matrices(source.shape)
    return [
        named[f"{source.family.block_prefix(index)}{matrix.name}.weight"]
        for index in range(source.shape.blocks)
        for matrix in matrices
    ]


def whole_model(model: torch.nn.Module, source: MemorySource, ids: Tensor, number: int, run: Run) -> Tensor:
    """|g_W|² of one window by backpropagation through transformers' model, over tokens and weights."""
    weights = parameters(model, source)
    for weight in weights:
        weight.requires_grad_()
    logits = model(input_ids=ids[None]).logits[0, :-1]
    uniform = torch.rand(len(ids), dtype=torch.float64, generator=run.generator(number, "fisher labels"))
    labels = drawn_labels(torch.softmax(logits.detach(), -1), uniform[:-1])
    value = functional.cross_entropy(logits, labels, reduction="sum")
    gradients = torch.autograd.grad(value, weights)
    norms = [gradient.double().square().mean() / (len(ids) - 1) for gradient in gradients]
    return torch.stack(norms)


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_gradients_are_those_of_the_whole_model(family: str) -> None:
    model, source = tiny(family)
    run = Run(seed=5)
    ids = tokens(2, 3, 9)
    streamed = fisher(source, ids, run)
    for probe in range(2):
        wanted = [whole_model(model, source, ids[probe, w], 3 * probe + w, run) for w in range(3)]
        torch.testing.assert_close(streamed[probe], torch.stack(wanted).mean(0), rtol=2e-4, atol=0)


def test_a_post_norm_model_with_projections_is_walked_too() -> None:
    model, source = tiny("opt", do_layer_norm_before=False, word_embed_proj_dim=12)
    run = Run()
    ids = tokens(1, 1, 8)
    wanted = whole_model(model, source, ids[0, 0], 0, run)
    torch.testing.assert_close(fisher(source, ids, run)[0], wanted, rtol=2e-4, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_unbiased_for_the_gauss_newton_trace(family: str) -> None:
    layers = "n_layer" if family == "bloom" else "num_hidden_layers"
    model, source = tiny(family, vocab_size=11, **{layers: 2})
    ids = tokens(1, 1, 6, vocabulary=11)
    weights = parameters(model, source)
    for weight in weights:
        weight.requires_grad_()
    log = torch.log_softmax(model(input_ids=ids[0]).logits[0, :-1], -1)
    exact = torch.zeros(len(weights), dtype=torch.float64)
    for token in log:
        for label in range(11):
            gradients = torch.autograd.grad(token[label], weights, retain_graph=True)
            norms = torch.stack([gradient.double().square().mean() for gradient in gradients])
            exact += float(token[label].detach().exp()) * norms / len(log)
    probes = 300
    drawn = fisher(source, ids.expand(probes, 1, 6), Run())
    off = (drawn.mean(0) - exact) / (drawn.std(0) / probes**0.5)
    assert float(off.abs().max()) < 5
    assert float(off.square().mean().sqrt()) < 2


def test_never_negative() -> None:
    _, source = tiny("llama")
    assert bool((fisher(source, tokens(4, 2, 8), Run()) >= 0).all())


@pytest.mark.parametrize("batch_tokens", [1, 16, 10_000])
def test_neither_passes_nor_the_disk_change_a_bit(batch_tokens: int, tmp_path: Path) -> None:
    _, source = tiny("bloom")
    ids = tokens(5, 2, 8)
    wanted = fisher(source, ids, Run(seed=1, batch_tokens=batch_tokens))
    each = 4 * 2 * 8 * 24 * 4  # (3 blocks and the output) x windows x tokens x width x 4 bytes
    for budget in (2 * each, each - 1, 0):
        run = Run(seed=1, batch_tokens=batch_tokens, hidden_budget=budget, work=tmp_path)
        assert torch.equal(fisher(source, ids, run), wanted)
    torch.testing.assert_close(fisher(source, ids, Run(seed=1)), wanted, rtol=1e-5, atol=0)
    assert list(tmp_path.iterdir()) == [], "the file of hidden states goes when the pass ends"


def test_reads_every_block_twice_a_pass_and_holds_one() -> None:
    _, source = tiny("opt")
    read: list[int] = []
    original = source.raw_block

    def counted(index: int) -> dict[str, Tensor]:
        read.append(index)
        return original(index)

    source.raw_block = counted  # type: ignore[method-assign]
    fisher(source, tokens(3, 2, 8), Run())
    assert read == [0, 1, 2, 2, 1, 0]


def test_half_precision_sources_are_computed_in_float32() -> None:
    _, source = tiny("llama", dtype=torch.float16)
    wide = MemorySource(source.config, {name: tensor.float() for name, tensor in source._state.items()})
    ids = tokens(1, 2, 8)
    torch.testing.assert_close(fisher(source, ids, Run()), fisher(wide, ids, Run()))


def test_the_seed_decides_the_labels() -> None:
    _, source = tiny("opt")
    ids = tokens(1, 2, 8)
    assert torch.equal(fisher(source, ids, Run(seed=1)), fisher(source, ids, Run(seed=1)))
    assert not torch.equal(fisher(source, ids, Run(seed=1)), fisher(source, ids, Run(seed=2)))


def test_labels_follow_the_distribution() -> None:
    share = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0])
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    labels = drawn_labels(share.expand(4000, 6), uniform)
    assert torch.bincount(labels, minlength=6).tolist() == [0, 2000, 0, 1000, 1000, 0]
    edges = drawn_labels(share.expand(2, 6), torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64))
    assert edges.tolist() == [1, 4], "no label of probability 0, even at the ends"
