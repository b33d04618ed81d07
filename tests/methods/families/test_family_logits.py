"""A model walked block by block gives the logits that transformers gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import logits, tiny
from torch import Tensor

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("opt", {}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    ("opt", {"do_layer_norm_before": False}),
    ("opt", {"word_embed_proj_dim": 12}),
    ("opt", {"_remove_final_layer_norm": True}),
    ("opt", {"enable_bias": False}),
    ("opt", {"layer_norm_elementwise_affine": False}),
    ("opt", {"activation_function": "gelu"}),
    ("opt", {"activation_function": "gelu_new", "tie_word_embeddings": False}),
    ("opt", {"activation_function": "silu", "num_attention_heads": 1}),
    ("bloom", {}),
    ("bloom", {"n_head": 1}),
    ("bloom", {"n_head": 3}),
    ("bloom", {"n_head": 5, "hidden_size": 40}),
    ("bloom", {"n_head": 12}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("bloom", {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-2}),
    ("bloom", {"pretraining_tp": 4}),
    ("llama", {}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
    ("llama", {"head_dim": 10}),
    ("llama", {"rope_theta": 500.0}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 200.0}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}},
    ),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0, 1.5, 2.0],
                "long_factor": [2.0, 4.0, 6.0],
                "original_max_position_embeddings": 16,
            }
        },
    ),
]
NAMED = [
    pytest.param(family, changes, id="-".join([family, *(f"{k}={v}"[:40] for k, v in changes.items())]))
    for family, changes in VARIANTS
]
FAMILIES = ("opt", "bloom", "llama")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def tokens_of(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 101, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("family", "changes"), NAMED)
def test_logits_equal_transformers(family: str, changes: dict[str, Any]) -> None:
    model, source = tiny(family, **changes)
    # Odd batches, one token, and the context limit.
    for batch, length in ((3, 17), (1, 1), (5, 1), (2, 32)):
        tokens = tokens_of(batch, length)
        expected = model(tokens).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(logits(source, tokens), expected, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right", "both", "inside"])
@pytest.mark.parametrize(("family", "changes"), NAMED)
def test_padded_logits_equal_transformers_on_real_tokens(
    family: str, changes: dict[str, Any], side: str
) -> None:
    model, source = tiny(family, **changes)
    tokens = tokens_of(4, 12)
    mask = torch.ones_like(tokens)
    for row, missing in enumerate((0, 3, 7, 11)):
        if side == "left":
            mask[row, :missing] = 0
        elif side == "right":
            mask[row, 12 - missing :] = 0
        elif side == "both":
            mask[row, : missing // 2] = 0
            mask[row, 12 - missing // 2 :] = 0
        else:
            mask[row, 1 : missing + 1] = 0
    ours = logits(source, tokens, mask)
    assert torch.isfinite(ours).all()
    real = mask.bool()
    torch.testing.assert_close(ours[real], model(tokens, attention_mask=mask).logits[real], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_leaves_the_real_tokens_as_they_were(family: str) -> None:
    _, source = tiny(family)
    tokens = tokens_of(1, 10)
    mask = torch.tensor([[0, 0, 0, *[1] * 7]])
    alone = logits(source, tokens[:, 3:])
    torch.testing.assert_close(logits(source, tokens, mask)[:, 3:], alone, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_window_of_padding_alone_stays_finite(family: str, dtype: torch.dtype) -> None:
    _, source = tiny(family, dtype=dtype)
    tokens = tokens_of(3, 9)
    mask = torch.ones_like(tokens)
    mask[1] = 0
    assert torch.isfinite(logits(source, tokens, mask)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_of_ones_is_no_mask(family: str) -> None:
    _, source = tiny(family)
    tokens = tokens_of(3, 9)
    for mask in (torch.ones_like(tokens), torch.ones(3, 9, dtype=torch.bool), torch.ones(3, 9)):
        assert torch.equal(logits(source, tokens, mask), logits(source, tokens))
    arguments = source.family.arguments(
        source.config, torch.ones_like(tokens), 3, 9, torch.zeros(3, 9, source.shape.width)
    )
    if family == "bloom":
        assert arguments.bias is not None
        assert arguments.bias.shape == (1, 4, 9, 9), "windows without padding share one bias"
    else:
        assert arguments.bias is None, "plain causal attention takes the fast path"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("opt", {}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 12}),
        ("bloom", {}),
        ("bloom", {"n_head": 3}),
        ("llama", {}),
        ("llama", {"num_key_value_heads": 1, "rope_theta": 5e5, "rope_scaling": LLAMA3}),
    ],
)
def test_half_precision_is_as_exact_as_transformers(
    family: str, changes: dict[str, Any], padded: bool, dtype: torch.dtype
) -> None:
    # Both against the same rounded weights in float32: ours may err at most twice as much as transformers.
    model, source = tiny(family, dtype=dtype, **changes)
    tokens = tokens_of(3, 24)
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, :5] = 0
        mask[2, 20:] = 0
    real = mask.bool()
    ours = logits(source, tokens, mask)[real]
    theirs = model(tokens, attention_mask=mask).logits[real]
    exact = model.float()(tokens, attention_mask=mask).logits[real]
    assert ours.dtype == dtype
    allowed = 2 * (theirs.float() - exact).square().mean().sqrt()
    assert (ours.float() - exact).square().mean().sqrt() <= allowed
    assert (ours.float() - exact).abs().max() <= 2 * (theirs.float() - exact).abs().max()


def test_dynamic_rope_grows_with_the_window_and_forgets() -> None:
    changes = {"rope_scaling": {"type": "dynamic", "factor": 4.0}}
    model, source = tiny("llama", **changes)
    short, long = tokens_of(2, 20), tokens_of(2, 60)
    before = logits(source, short)
    torch.testing.assert_close(logits(source, long), model(long).logits, **CLOSE)
    assert torch.equal(logits(source, short), before)


def test_alibi_and_rotary_positions_go_beyond_the_trained_length() -> None:
    for family in ("bloom", "llama"):
        model, source = tiny(family)
        tokens = tokens_of(1, 50)
        torch.testing.assert_close(logits(source, tokens), model(tokens).logits, **CLOSE)


@pytest.mark.gpu
@pytest.mark.parametrize(("family", "changes"), NAMED)
def test_a_gpu_gives_the_same_logits(family: str, changes: dict[str, Any]) -> None:
    from tiny_models import MemorySource

    model, source = tiny(family, **changes)
    device = MemorySource(source.config, model.state_dict(), device="cuda")
    tokens = tokens_of(3, 17)
    mask = torch.ones_like(tokens)
    mask[1, :6] = 0
    for given in (None, mask):
        real = mask.bool() if given is not None else torch.ones_like(mask).bool()
        ours = logits(device, tokens.cuda(), None if given is None else given.cuda()).cpu()
        expected = model(tokens, attention_mask=given).logits
        torch.testing.assert_close(ours[real], expected[real], rtol=1e-4, atol=1e-4)
