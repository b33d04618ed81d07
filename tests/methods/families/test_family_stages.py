"""Stages: what each linear reads, and what a weight changed half-way does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, logits, tiny
from torch import Tensor

from methods.families import family_of, shape_of
from methods.interface import Carry

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("opt", {}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    ("bloom", {}),
    ("bloom", {"n_head": 3, "apply_residual_connection_post_layernorm": True}),
    ("llama", {}),
    ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def masked_tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 101, (3, 11), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    return tokens, mask


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_every_linear_reads_what_transformers_gives_it(family: str, changes: dict[str, Any]) -> None:
    model, source = tiny(family, **changes)
    tokens, mask = masked_tokens()
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    adapter = source.family
    wanted = [
        f"{adapter.block_prefix(index)}{matrix.name}"
        for index in range(source.shape.blocks)
        for matrix in adapter.matrices(source.shape)
    ]
    for name in wanted:
        modules[name].register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].reshape(3, 11, -1))
        )
    model(tokens, attention_mask=mask)

    real = mask.bool()
    hidden = adapter.embed(source.outer, source.config, tokens, mask)
    arguments = adapter.arguments(source.config, mask, 3, 11, hidden)
    visited: list[str] = []
    for index in range(source.shape.blocks):
        block, carry = source.block(index), (hidden,)
        for stage in adapter.stages(source.config):
            inputs = stage.inputs(block, carry, arguments)
            for linear in stage.linears:
                name = f"{adapter.block_prefix(index)}{linear}"
                torch.testing.assert_close(inputs[real], seen[name][real], **CLOSE)
                visited.append(name)
            carry = stage.advance(block, carry, inputs, arguments)
        (hidden,) = carry
    assert visited == wanted, "matrices come in the order of stages"


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_a_weight_changed_between_inputs_and_advance_counts(family: str, changes: dict[str, Any]) -> None:
    model, source = tiny(family, **changes)
    tokens, mask = masked_tokens()
    real = mask.bool()
    adapter, state = source.family, model.state_dict()
    arguments = adapter.arguments(source.config, mask, 3, 11, torch.zeros(3, 11, source.shape.width))
    for number, stage in enumerate(adapter.stages(source.config)):
        for linear in stage.linears:
            name = f"{linear}.weight"
            parameter = state[f"{adapter.block_prefix(1)}{name}"]
            dense = parameter.clone()
            pruned = dense * (torch.arange(dense.numel()).view_as(dense) % 2)

            hidden = adapter.embed(source.outer, source.config, tokens, mask)
            for index in range(source.shape.blocks):
                block = source.block(index)
                carry: Carry = (hidden,)
                for step, each in enumerate(adapter.stages(source.config)):
                    inputs = each.inputs(block, carry, arguments)
                    if index == 1 and step == number:
                        block[name] = pruned
                    carry = each.advance(block, carry, inputs, arguments)
                hidden = carry[0]
            hidden = adapter.finish(source.outer, source.config, hidden)
            ours = hidden @ adapter.head(source.outer, source.config).T

            parameter.copy_(pruned)
            expected = model(tokens, attention_mask=mask).logits
            parameter.copy_(dense)
            untouched = model(tokens, attention_mask=mask).logits
            assert (expected - untouched)[real].abs().max() > 1e-3
            torch.testing.assert_close(ours[real], expected[real], **CLOSE)


@pytest.mark.parametrize("family", CONFIGS)
def test_stages_leave_their_arguments_alone(family: str) -> None:
    _, source = tiny(family)
    tokens, mask = masked_tokens()
    hidden = source.family.embed(source.outer, source.config, tokens, mask)
    arguments = source.family.arguments(source.config, mask, 3, 11, hidden)
    carry: Carry = (hidden,)
    block = source.block(0)
    copy = {name: value.clone() for name, value in block.items()}
    for stage in source.family.stages(source.config):
        before = [value.clone() for value in carry]
        inputs = stage.inputs(block, carry, arguments)
        held = inputs.clone()
        after = stage.advance(block, carry, inputs, arguments)
        assert torch.equal(inputs, held)
        assert all(torch.equal(new, old) for new, old in zip(carry, before, strict=True))
        carry = after
    assert all(torch.equal(block[name], copy[name]) for name in copy)


@pytest.mark.parametrize("family", CONFIGS)
def test_batches_may_shrink(family: str) -> None:
    _, source = tiny(family)
    tokens = torch.randint(0, 101, (5, 8), generator=torch.Generator().manual_seed(2))
    whole = logits(source, tokens)
    parts = torch.cat([logits(source, tokens[:2]), logits(source, tokens[2:4]), logits(source, tokens[4:])])
    torch.testing.assert_close(parts, whole, **CLOSE)


@pytest.mark.parametrize("family", CONFIGS)
def test_outer_tensors_are_fetched_by_the_row_where_they_can_be(family: str) -> None:
    _, source = tiny(family)
    tokens, _ = masked_tokens()
    whole: list[str] = []
    fetch = source.outer.tensor

    def tensor(name: str) -> Tensor:
        whole.append(name)
        return fetch(name)

    source.outer.tensor = tensor  # type: ignore[method-assign]
    source.family.embed(source.outer, source.config, tokens, None)
    assert not [name for name in whole if "embeddings.weight" in name or "embed_" in name]


@pytest.mark.parametrize("family", CONFIGS)
def test_aliases_are_the_bare_decoder_names(family: str) -> None:
    adapter = family_of({"model_type": family})
    shape = shape_of({"model_type": family, **CONFIGS[family]})
    expected = {
        "opt": ("model.decoder.layers.2.fc1.weight", "decoder.layers.2.fc1.weight"),
        "bloom": ("transformer.h.2.mlp.dense_h_to_4h.weight", "h.2.mlp.dense_h_to_4h.weight"),
        "llama": ("model.layers.2.mlp.up_proj.weight", "layers.2.mlp.up_proj.weight"),
    }
    full, bare = expected[family]
    assert full.startswith(adapter.block_prefix(2))
    assert adapter.aliases(full) == (bare,)
    assert adapter.aliases("lm_head.weight") == ()
    assert all(adapter.aliases(name) for name in adapter.outer_tensors(shape) if name != "lm_head.weight")
