"""Configs are read with suspicion: every refusal is one line that names key and value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONFIGS, logits, tiny

from methods.errors import CheckpointError, UnsupportedModel, UserError
from methods.families import family_of, shape_of
from methods.families.base import ACTIVATIONS
from methods.families.bloom import alibi_slopes
from methods.families.rope import REQUIRED
from methods.families.sizes import parameters, prunable

HUGE = 10**30
KEYS = [
    "apply_residual_connection_post_layernorm",
    "enable_bias",
    "head_dim",
    "hidden_act",
    "n_embed",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
]
ROPE_KEYS = [
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("opt", {"hidden_size": None}, "opt config has no hidden_size"),
    ("opt", {"hidden_size": "24"}, "hidden_size is '24'"),
    ("opt", {"hidden_size": -24}, "hidden_size is -24; allowed is a whole number from 1"),
    ("opt", {"hidden_size": 0}, "hidden_size is 0"),
    ("opt", {"hidden_size": 24.0}, "hidden_size is 24.0"),
    ("opt", {"hidden_size": True}, "hidden_size is True"),
    ("opt", {"hidden_size": [24]}, r"hidden_size is \[24\]"),
    ("opt", {"hidden_size": HUGE}, "hidden_size is 10000"),
    ("opt", {"hidden_size": 25}, "hidden_size 25 is not divisible by num_attention_heads 4"),
    ("opt", {"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000; allowed is .* to 10000"),
    ("opt", {"ffn_dim": None}, "no ffn_dim"),
    ("opt", {"max_position_embeddings": None}, "no max_position_embeddings"),
    (
        "opt",
        {"activation_function": "__import__"},
        "activation_function is '__import__'; allowed is one of",
    ),
    ("opt", {"activation_function": ["relu"]}, "activation_function is"),
    ("opt", {"enable_bias": "false"}, "enable_bias is 'false'; allowed is true or false"),
    ("opt", {"do_layer_norm_before": 1}, "do_layer_norm_before is 1"),
    ("opt", {"hidden_size": "a\nb" * 100}, r"hidden_size is 'a\\nb.*\.\.\."),
    ("bloom", {"n_head": None}, "no n_head or num_attention_heads"),
    ("bloom", {"n_layer": 3, "num_hidden_layers": 4}, "contradicts itself: n_layer 3, num_hidden_layers 4"),
    ("bloom", {"n_head": 7}, "hidden_size 24 is not divisible by n_head 7"),
    ("bloom", {"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0; allowed is a finite number above 0"),
    ("bloom", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
    ("bloom", {"apply_residual_connection_post_layernorm": "no"}, "post_layernorm is 'no'"),
    ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 is not divisible by num_key_value_heads 3"),
    ("llama", {"head_dim": 5}, "head_dim 5 is not divisible"),
    ("llama", {"hidden_size": 20}, "head_dim 5 is not divisible"),
    ("llama", {"intermediate_size": {}}, "intermediate_size is {}"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
    ("llama", {"hidden_act": "exec"}, "hidden_act is 'exec'"),
    ("llama", {"rope_theta": -1}, "rope_theta is -1"),
    ("llama", {"rope_theta": 10**400}, "rope_theta is 1000"),
    ("llama", {"rope_scaling": [1]}, r"rope_scaling is \[1\]; allowed is an object"),
    (
        "llama",
        {"rope_scaling": {"type": "magic"}},
        "rope_scaling config: type is 'magic'; allowed",
    ),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling config has no factor"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor is '4'"),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 4,
            }
        },
        "high_freq_factor is 4; allowed is above low_freq_factor",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1, 1, 1]}},
        r"short_factor is \[1\]; allowed is a list of 3 positive numbers",
    ),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "weights are quantised \\('gptq'\\)"),
    ("opt", {"quantization_config": "x"}, "weights are quantised"),
]


@pytest.mark.parametrize(("family", "changes", "said"), BAD, ids=[f"{f}-{s[:40]}" for f, _, s in BAD])
def test_impossible_configs_are_refused_in_one_line(family: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said) as caught:
        shape_of({"model_type": family, **CONFIGS[family], **changes})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(list(REQUIRED)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ROPE_KEYS), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(family=st.sampled_from(sorted(CONFIGS)), data=st.data())
def test_any_json_gives_a_shape_or_a_named_refusal(family: str, data: st.DataObject) -> None:
    keys = sorted(CONFIGS[family]) + KEYS
    changes = data.draw(st.dictionaries(st.sampled_from(keys), ANYTHING, min_size=1, max_size=3))
    refusal, config = "", {"model_type": family, **CONFIGS[family], **changes}
    try:
        shape = shape_of(config)
    except UnsupportedModel as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
    else:
        assert shape.heads % shape.kv_heads == 0
        assert parameters(shape) > prunable(shape) > 0


@pytest.mark.parametrize("named", ["gpt2", None, 7, ["opt"], "Opt", "x" * 500, "a\nb"])
def test_other_architectures_are_named_with_those_supported(named: object) -> None:
    with pytest.raises(UnsupportedModel, match=r"supported are bloom, llama, opt") as caught:
        family_of({"model_type": named})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_shape_leads_back_to_its_family() -> None:
    for name, config in CONFIGS.items():
        shape = shape_of({"model_type": name, **config})
        assert family_of(shape).name == name
        assert family_of(shape).shape(config) == shape


def test_keys_that_published_configs_leave_out_take_transformers_defaults() -> None:
    llama = {"model_type": "llama", **CONFIGS["llama"]}
    del llama["num_key_value_heads"], llama["max_position_embeddings"]
    shape = shape_of(llama)
    assert (shape.kv_heads, shape.positions, shape.tied, shape.head_dim) == (4, 2048, False, 6)
    opt = {"model_type": "opt", **CONFIGS["opt"], "word_embed_proj_dim": None}
    assert shape_of(opt).embedding_width == 24
    old = {
        "model_type": "bloom",
        "vocab_size": 101,
        "n_embed": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "seq_length": 32,
    }
    assert shape_of(old) == shape_of({"model_type": "bloom", **CONFIGS["bloom"]})


def test_a_published_style_config_runs_as_the_saved_one_does() -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    model, source = tiny("llama", rope_theta=300.0, rope_scaling=llama3)
    assert "rope_theta" not in source.config, "transformers 5 saves rope_parameters"
    tokens = torch.arange(20)[None]
    source.config = {"model_type": "llama", **CONFIGS["llama"], "rope_theta": 300.0, "rope_scaling": llama3}
    torch.testing.assert_close(logits(source, tokens), model(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("token", [101, -1])
def test_tokens_outside_the_table_are_named(family: str, token: int) -> None:
    _, source = tiny(family)
    with pytest.raises(CheckpointError, match=f"token {token} is outside the model's 101 embeddings"):
        source.family.embed(source.outer, source.config, torch.tensor([[3, token]]), None)


def test_windows_longer_than_the_position_table_are_refused() -> None:
    _, source = tiny("opt")
    tokens = torch.zeros(2, 33, dtype=torch.long)
    with pytest.raises(
        UserError, match=r"windows of 33 tokens .* 32 positions: choose a length of at most 32"
    ):
        source.family.embed(source.outer, source.config, tokens, None)
    mask = torch.ones_like(tokens)
    mask[:, 0] = 0
    assert source.family.embed(source.outer, source.config, tokens, mask).shape == (2, 33, 24)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_mask_of_another_shape_is_refused(family: str) -> None:
    _, source = tiny(family)
    with pytest.raises(ValueError, match=r"mask is \[2, 5\]: it must be \[2, 6\]"):
        source.family.arguments(source.config, torch.ones(2, 5), 2, 6, torch.zeros(2, 6, 24))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_transformers(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-8, 8, 1001)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 16, 32, 70, 112])
def test_slopes_equal_transformers(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), theirs, rtol=1e-6, atol=0)
