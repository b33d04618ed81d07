"""Hutchinson's traces against Hessians formed whole, and the loss against transformers' own."""

from __future__ import annotations

import pytest
import torch
from tiny_models import MemorySource, tiny
from torch import Tensor

from methods.interface import Run, Silent
from methods.sensitivity.hutchinson import hutchinson, loss
from methods.sensitivity.precise import Precise

SMALL = {
    "opt": {"hidden_size": 6, "ffn_dim": 8, "num_attention_heads": 2, "word_embed_proj_dim": 6},
    "bloom": {"hidden_size": 6, "n_head": 2},
    "llama": {
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
"""Hessians of a few hundred rows; GELU and SiLU are smooth, ReLU (OPT) is away from its kinks."""


def small(family: str) -> MemorySource:
    layers = "n_layer" if family == "bloom" else "num_hidden_layers"
    _, source = tiny(family, dtype=torch.float64, vocab_size=13, **{layers: 2}, **SMALL[family])
    return source


def tokens(windows: int, length: int, seed: int = 0, vocabulary: int = 13) -> Tensor:
    return torch.randint(0, vocabulary, (windows, length), generator=torch.Generator().manual_seed(seed))


def exact_traces(source: MemorySource, ids: Tensor) -> Tensor:
    """tr(H_W) / weights from every matrix's whole Hessian of the mean loss, float64."""
    model = Precise(source, torch.float64)
    blocks = [model.block(index) for index in range(model.shape.blocks)]
    found = []
    for block in blocks:
        for matrix in model.matrices:
            name = f"{matrix.name}.weight"
            dense = block[name]

            def of(weight: Tensor, block: dict[str, Tensor] = block, name: str = name) -> Tensor:
                block[name] = weight
                return loss(model, blocks, model.head(), ids)

            hessian = torch.autograd.functional.hessian(of, dense)
            block[name] = dense
            found.append(hessian.view(matrix.size, matrix.size).trace() / matrix.size)
    return torch.stack(found)


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_the_loss_is_the_models(family: str) -> None:
    model, source = tiny(family)
    ids = tokens(3, 11, vocabulary=101)
    precise = Precise(source)
    ours = loss(precise, [source.block(i) for i in range(source.shape.blocks)], precise.head(), ids)
    torch.testing.assert_close(ours, model(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_converges_to_the_exact_trace(family: str, gaussian: bool) -> None:
    source = small(family)
    ids = tokens(1, 5)
    exact = exact_traces(source, ids)
    assert bool((exact != 0).all())
    probes = 300
    drawn = hutchinson(source, ids.expand(probes, 1, 5), Run(), gaussian=gaussian, dtype=torch.float64)
    error = drawn.std(0) / probes**0.5
    off = (drawn.mean(0) - exact) / error
    # each of some dozen matrices within five standard errors, and on the whole as far as chance takes it
    assert float(off.abs().max()) < 5
    assert float(off.square().mean().sqrt()) < 2
    assert float(error.mean() / exact.abs().mean()) < 0.5, "the probes must say something"


def test_windows_are_averaged_and_matrices_scaled_by_their_size() -> None:
    source = small("llama")
    ids = tokens(6, 7).view(1, 6, 7)
    together = hutchinson(source, ids, Run(), dtype=torch.float64)
    apart = hutchinson(source, ids.view(6, 1, 7), Run(), dtype=torch.float64)
    torch.testing.assert_close(together[0], apart.mean(0))


def test_the_seed_decides_the_probes_and_progress_is_told() -> None:
    source = small("bloom")
    ids = tokens(4, 5).view(2, 2, 5)
    steps: list[int] = []

    class Told(Silent):
        def step(self, done: int, note: str = "") -> None:
            steps.append(done)

    first = hutchinson(source, ids, Run(seed=3, observer=Told()))
    assert torch.equal(first, hutchinson(source, ids, Run(seed=3)))
    assert not torch.equal(first, hutchinson(source, ids, Run(seed=4)))
    assert steps == [1, 2, 3, 4]


def test_half_precision_sources_are_computed_in_float32() -> None:
    _, source = tiny("opt", dtype=torch.float16)
    ids = tokens(2, 6).view(1, 2, 6)
    traces = hutchinson(source, ids, Run())
    wide = MemorySource(source.config, {k: v.float() for k, v in source._state.items()})
    torch.testing.assert_close(traces, hutchinson(wide, ids, Run()))
