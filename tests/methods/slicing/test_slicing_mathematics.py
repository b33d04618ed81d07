"""The identities behind slicing: folded norms, rotations, and cut models against dense ones with projections."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sliced_models import TOKENS, VARIANTS, saved_variant, sliced, streamed
from torch import Tensor
from torch.nn import functional

from methods.errors import NonFiniteError
from methods.families.sliced import root_mean_square
from methods.slicing.fuse import fuse_reading, fuse_rows, fuse_writing
from methods.slicing.rotate import basis, principal, random_rotation
from methods.stream.source import CheckpointSource


def _random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_layer_norm_is_folded_away() -> None:
    """LayerNorm(x) W' + b = RMS(xM) W'' + b'': equation 6 of the paper, for a linear that has a bias and one that has none."""
    x, weight, scale, shift, bias = _random(5, 12), _random(7, 12), _random(12), _random(12), _random(7)
    normed = functional.layer_norm(x, (12,), scale, shift, 1e-5)
    centred = fuse_rows(x, centred=True)
    for given in (bias, None):
        fused, moved = fuse_reading(weight, given, scale, shift)
        expected = functional.linear(normed, weight, given)
        found = functional.linear(root_mean_square(centred, 12, 1e-5), fused, moved)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_an_rms_norm_brings_no_bias_and_no_centring() -> None:
    weight, scale = _random(7, 12), _random(12)
    fused, bias = fuse_reading(weight, None, scale, None)
    assert bias is None
    torch.testing.assert_close(fused, weight * scale)
    written, bias = fuse_writing(weight, None, centred=False)
    assert bias is None and torch.equal(written, weight)


def test_writing_a_centred_stream_is_centring_what_was_written() -> None:
    weight, bias, x = _random(12, 7), _random(12), _random(5, 7)
    fused, moved = fuse_writing(weight, bias, centred=True)
    expected = fuse_rows(functional.linear(x, weight, bias), centred=True)
    torch.testing.assert_close(functional.linear(x, fused, moved), expected, rtol=0, atol=1e-12)


def test_a_norm_over_embeddings_folds_into_the_table() -> None:
    table, scale, shift = _random(30, 12), _random(12), _random(12)
    found = fuse_rows(table, centred=False, norm=(scale, shift), eps=1e-5)
    torch.testing.assert_close(found, functional.layer_norm(table, (12,), scale, shift, 1e-5))
    assert torch.allclose(
        fuse_rows(table, centred=True, norm=(scale, shift)).mean(-1), torch.zeros(30).double()
    )


def test_nothing_is_written_into_what_is_given() -> None:
    weight, scale, shift = _random(12, 12), _random(12), _random(12)
    before = weight.clone()
    fuse_reading(weight, None, scale, shift)
    fuse_writing(weight, None, centred=True)
    fuse_rows(weight, centred=True)
    gram = weight.T @ weight
    kept = gram.clone()
    principal(gram, "here")
    assert torch.equal(weight, before) and torch.equal(gram, kept)


def test_root_mean_square_commutes_with_rotations_but_not_with_cuts() -> None:
    x, turn = _random(5, 12), random_rotation(12, torch.Generator().manual_seed(1))
    torch.testing.assert_close(root_mean_square(x @ turn, 12, 1e-5), root_mean_square(x, 12, 1e-5) @ turn)
    # what is cut off is missing from the mean: it is that of the whole width
    cut = x[:, :9]
    expected = cut / (cut.square().sum(-1, keepdim=True) / 12 + 1e-5).sqrt()
    torch.testing.assert_close(root_mean_square(cut, 12, 1e-5), expected)


def test_half_precision_states_are_squared_in_float32() -> None:
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # its squares overflow float16
    torch.testing.assert_close(root_mean_square(x, 8, 1e-5), torch.ones(1, 8, dtype=torch.float16))


def test_principal_directions_are_orthonormal_sorted_and_signed() -> None:
    x = _random(200, 12) * torch.linspace(1, 5, 12, dtype=torch.float64)
    gram = x.T @ x
    found = principal(gram, "here")
    torch.testing.assert_close(found.T @ found, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-12)
    energy = (x @ found).square().sum(0)
    assert bool((energy.diff() <= 0).all())
    torch.testing.assert_close(energy.sum(), gram.trace())
    assert bool((found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all())
    # no other basis of that width keeps more (the optimality of PCA)
    other = random_rotation(12, torch.Generator().manual_seed(3))[:, :5]
    assert float((x @ found[:, :5]).square().sum()) > float((x @ other).square().sum())


def test_a_singular_stream_still_has_a_basis() -> None:
    """A centred stream lies in a hyperplane, a constant one on a line, a dead one nowhere."""
    line = torch.ones(40, 1, dtype=torch.float64) @ _random(1, 12)
    for x in (fuse_rows(_random(40, 12), centred=True), line, torch.zeros(40, 12, dtype=torch.float64)):
        found = basis(x.T @ x, 11, "pca", torch.Generator(), "here")
        torch.testing.assert_close(found.T @ found, torch.eye(11, dtype=torch.float64), rtol=0, atol=1e-10)
        torch.testing.assert_close(x @ found @ found.T, x, rtol=0, atol=1e-10)


def test_a_stream_with_nan_is_named() -> None:
    gram = torch.eye(4, dtype=torch.float64)
    gram[1, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="block 3 behind fc2: the residual stream holds NaN"):
        principal(gram, "block 3 behind fc2")


def test_a_random_orientation_turns_the_kept_directions_among_themselves() -> None:
    x = _random(100, 12)
    gram = x.T @ x
    plain = basis(gram, 5, "pca", torch.Generator())
    turned = basis(gram, 5, "random", torch.Generator().manual_seed(1))
    again = basis(gram, 5, "random", torch.Generator().manual_seed(1))
    other = basis(gram, 5, "random", torch.Generator().manual_seed(2))
    assert torch.equal(turned, again) and not torch.allclose(turned, other)
    torch.testing.assert_close(turned @ turned.T, plain @ plain.T, rtol=0, atol=1e-12)
    assert not torch.allclose(turned, plain)


def test_random_rotations_are_uniform() -> None:
    """Column means and second moments of 400 draws: 0 and 1/n, within five standard errors."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_rotation(4, generator) for _ in range(400)])
    assert float(drawn.mean(0).abs().max()) < 5 * (0.25 / 400) ** 0.5
    assert float((drawn.square().mean(0) - 0.25).abs().max()) < 5 * 0.2 / 400**0.5
    assert {int(value) for value in torch.linalg.det(drawn).round().unique()} == {-1, 1}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parameters", [{}, {"orientation": "random", "slice_head": True}], ids=str)
def test_full_width_keeps_the_logits(tmp_path: Path, variant: str, parameters: dict[str, object]) -> None:
    """0 % slicing rotates every segment and cuts nothing: equal to the dense model up to the rounding of weights."""
    model = saved_variant(tmp_path / "model", variant)
    report, full = sliced(model, tmp_path, "slice0%", dtype=torch.float64, **parameters)
    dense = CheckpointSource(model, dtype=torch.float64)
    assert sum(matrix.removed for matrix in report.matrices) == 0
    # weights are stored as float32: a rounding of 2^-24, and llama's own norm is computed in float32
    torch.testing.assert_close(streamed(full), streamed(dense), rtol=0, atol=2e-5)
    rotated = full.block(1)["attn_shortcut.weight"]
    assert not torch.allclose(rotated, torch.eye(24, dtype=torch.float64), atol=1e-2), "a rotation was made"


@pytest.mark.parametrize("variant", ["opt", "bloom", "llama with biases, tied"])
@pytest.mark.parametrize("parameters", [{}, {"slice_head": True, "slope": 0.3}], ids=str)
def test_a_cut_model_is_the_dense_one_with_projections(
    tmp_path: Path, variant: str, parameters: dict[str, object]
) -> None:
    """The slow twin: transformers' own model, each segment of its residual stream projected by a hook.

    Its norms read the projected stream, mean taken off, and divide by its root mean square, which is that of the
    cut stream over the whole width. The projections are those that the sliced model's shortcuts chain together.
    """
    model = saved_variant(tmp_path / "model", variant)
    _, cut = sliced(model, tmp_path, "slice30%", dtype=torch.float64, **parameters)
    torch.testing.assert_close(streamed(cut), _projected(model, cut), rtol=0, atol=2e-4)
    assert not torch.allclose(
        streamed(cut), streamed(CheckpointSource(model, dtype=torch.float64)), atol=1e-1
    )


def _projected(model: Path, cut: CheckpointSource) -> Tensor:
    from methods.inference.assemble import assemble

    dense = CheckpointSource(model, dtype=torch.float64)
    whole = assemble(dense)
    bases = _bases(dense, cut)
    residual = dense.family.residual
    prefix = dense.family.block_prefix(0).removesuffix("0.")
    blocks = whole.get_submodule(prefix.removesuffix("."))
    centre = (lambda x: x - x.mean(-1, keepdim=True)) if residual.centred else (lambda x: x)

    for index, block in enumerate(blocks):
        projections = bases[2 * index], bases[2 * index + 1]

        def enter(
            _module: object, inputs: tuple[Tensor, ...], *, onto: Tensor = projections[0]
        ) -> tuple[Tensor, ...]:
            return (centre(inputs[0]) @ onto @ onto.T, *inputs[1:])

        block.register_forward_pre_hook(enter)
        _project_between(block, residual.sublayers, projections[1], centre)
    final = whole.get_submodule(residual.final_norm)
    last = bases[-1]
    final.register_forward_pre_hook(lambda _module, inputs: (centre(inputs[0]) @ last @ last.T,))
    return whole(TOKENS).logits


def _project_between(block: object, sublayers: object, onto: Tensor, centre: object) -> None:
    """Project the sum behind attention: by changing what attention adds to it."""
    attention, _ = sublayers  # type: ignore[misc]
    kept: dict[str, Tensor] = {}
    block.register_forward_pre_hook(lambda _module, inputs: kept.update(state=inputs[0]))  # type: ignore[attr-defined]
    writes = block.get_submodule(attention.writes)  # type: ignore[attr-defined]

    def add(_module: object, _inputs: object, output: Tensor) -> Tensor:
        state = kept["state"].view(output.shape)
        return centre(state + output) @ onto @ onto.T - state  # type: ignore[operator]

    writes.register_forward_hook(add)


def _bases(dense: CheckpointSource, cut: CheckpointSource) -> list[Tensor]:
    """Q of every segment [D, d], from the tables (first) and the chain of shortcuts, in the dense basis.

    A writing linear W' = Qᵀ MW gives Q by least squares, since its dense form has full row rank off the mean.
    """
    residual = dense.family.residual
    outer, tables = dense.outer, residual.tables[0]
    norm = None
    if residual.table_norm is not None:
        norm = (outer.tensor(f"{residual.table_norm}.weight"), outer.tensor(f"{residual.table_norm}.bias"))
    rows = fuse_rows(outer.tensor(tables), centred=residual.centred, norm=norm, eps=1e-5)
    found = [torch.linalg.lstsq(rows, cut.outer.tensor(tables), driver="gelsd").solution]
    for index in range(dense.shape.blocks):
        block, narrow = dense.block(index), cut.block(index)
        for sublayer in residual.sublayers:
            weight, _ = fuse_writing(block[f"{sublayer.writes}.weight"], None, centred=residual.centred)
            written = narrow[f"{sublayer.writes}.weight"]
            found.append(torch.linalg.lstsq(weight.T, written.T, driver="gelsd").solution)
    return found
