"""Closed-form sizes equal what transformers builds and what is published."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, tiny
from torch.utils.flop_counter import FlopCounterMode

from methods.families import family_of, shape_of
from methods.families.sizes import (
    block_parameters,
    checkpoint_bytes,
    flops_per_token,
    outer_parameters,
    parameters,
    prunable,
)

# As in the published config.json files, old keys included.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "opt-125m": (
        {
            "model_type": "opt",
            "vocab_size": 50272,
            "hidden_size": 768,
            "word_embed_proj_dim": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "ffn_dim": 3072,
            "max_position_embeddings": 2048,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "activation_function": "relu",
        },
        125_239_296,
    ),
    "opt-350m": (
        {
            "model_type": "opt",
            "vocab_size": 50272,
            "hidden_size": 1024,
            "word_embed_proj_dim": 512,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "ffn_dim": 4096,
            "max_position_embeddings": 2048,
            "do_layer_norm_before": False,
        },
        331_196_416,
    ),
    "bloom-560m": (
        {
            "model_type": "bloom",
            "vocab_size": 250880,
            "n_embed": 1024,
            "n_layer": 24,
            "num_attention_heads": 16,
            "n_inner": None,
            "seq_length": 2048,
        },
        559_214_592,
    ),
    "llama-2-7b": (
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
            "rope_scaling": None,
        },
        6_738_415_616,
    ),
    "smollm2-135m": (
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
        },
        134_515_008,
    ),
}


def on_meta(config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    given = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **given))


def state_shapes(model: Any, tied: bool) -> dict[str, tuple[int, ...]]:
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if tied:
        state.pop("lm_head.weight", None)
    return state


def our_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shape, family = shape_of(config), family_of(config)
    found = dict(family.outer_tensors(shape))
    for index in range(shape.blocks):
        found |= {
            family.block_prefix(index) + name: size for name, size in family.block_tensors(shape).items()
        }
    return found


def random_config(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    family = ("opt", "bloom", "llama")[seed % 3]
    heads = draw.choice((1, 2, 3, 6, 8))
    width = heads * 2 * draw.randint(1, 20)
    config: dict[str, Any] = {
        "model_type": family,
        "vocab_size": draw.randint(3, 300),
        "hidden_size": width,
        "tie_word_embeddings": draw.random() < 0.5,
    }
    blocks = draw.randint(1, 4)
    if family == "bloom":
        return config | {"n_head": heads, "n_layer": blocks}
    config |= {"num_attention_heads": heads, "num_hidden_layers": blocks}
    if family == "opt":
        pre_norm = draw.random() < 0.5
        return config | {
            "ffn_dim": draw.randint(1, 200),
            "max_position_embeddings": draw.randint(1, 99),
            "word_embed_proj_dim": draw.choice((width, max(1, width // 2), width + 3)),
            "do_layer_norm_before": pre_norm,
            "_remove_final_layer_norm": draw.random() < 0.3,
            "enable_bias": draw.random() < 0.5,
            "layer_norm_elementwise_affine": draw.random() < 0.6,
        }
    return config | {
        "intermediate_size": draw.randint(1, 200),
        "num_key_value_heads": draw.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "attention_bias": draw.random() < 0.5,
        "mlp_bias": draw.random() < 0.5,
        "head_dim": draw.choice((None, 6)),
    }


@pytest.mark.parametrize("seed", range(36))
def test_names_shapes_and_counts_equal_transformers(seed: int) -> None:
    config = random_config(seed)
    model, shape = on_meta(config), shape_of(config)
    assert our_shapes(config) == state_shapes(model, shape.tied)
    assert parameters(shape) == sum(parameter.numel() for parameter in model.parameters())
    linears = {
        name: module.weight.shape for name, module in model.named_modules() if hasattr(module, "out_features")
    }
    family = family_of(shape)
    for matrix in family.matrices(shape):
        assert linears[family.block_prefix(0) + matrix.name] == (matrix.rows, matrix.columns)
    inside = sum(size.numel() for name, size in linears.items() if name.startswith(family.block_prefix(0)))
    assert prunable(shape) == shape.blocks * inside


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    config, total = PUBLISHED[name]
    shape = shape_of(config)
    assert parameters(shape) == total
    assert parameters(shape) == shape.blocks * block_parameters(shape) + outer_parameters(shape)
    assert checkpoint_bytes(shape, torch.float16) == 2 * total
    assert checkpoint_bytes(shape, torch.float32) == 4 * total


@pytest.mark.parametrize("name", ["opt-125m", "opt-350m", "bloom-560m"])
def test_published_configs_describe_the_transformers_model(name: str) -> None:
    config, _ = PUBLISHED[name]
    assert our_shapes(config) == state_shapes(on_meta(config), tied=True)


def test_shape_of_a_published_config() -> None:
    shape = shape_of(PUBLISHED["opt-350m"][0])
    assert (shape.blocks, shape.width, shape.embedding_width, shape.head_dim) == (24, 1024, 512, 64)
    assert (shape.positions, shape.position_rows) == (2048, 2050)
    assert shape.post_norm
    assert not shape.final_norm
    shape = shape_of(PUBLISHED["smollm2-135m"][0])
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.gated) == (9, 3, 64, True)
    assert shape_of(PUBLISHED["llama-2-7b"][0]).kv_heads == 32


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("opt", {}),
        ("opt", {"word_embed_proj_dim": 12}),
        ("bloom", {}),
        ("llama", {}),
        ("llama", {"head_dim": 10}),
    ],
)
def test_operations_equal_those_counted_in_transformers(family: str, changes: dict[str, Any]) -> None:
    model, source = tiny(family, **changes)
    model.set_attn_implementation("eager")
    length = 20
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.long))
    # Eager attention computes every score, so each token pays for the whole window.
    assert counter.get_total_flops() == length * flops_per_token(source.shape, length)


@pytest.mark.parametrize("family", CONFIGS)
def test_operations_grow_by_the_attended_tokens(family: str) -> None:
    shape = shape_of({"model_type": family, **CONFIGS[family]})
    step = 4 * shape.blocks * shape.heads * shape.head_dim
    assert flops_per_token(shape, 11) - flops_per_token(shape, 10) == step
    assert flops_per_token(shape, 0) == 2 * (prunable(shape) + shape.vocabulary * shape.width)
