"""Sliced OPT, BLOOM and LLaMA models (SliceGPT, arXiv 2401.15024) for transformers; needs nothing else.

Each is the transformers model of its family with three changes: linears are as narrow as the config's
``sliced_widths`` say, norms have no parameters, and the residual passes through a shortcut matrix before each sum.
"""

# transformers' modules are partly untyped, and these take the place of some of them:
# mypy: disable-error-code="assignment, no-any-return, no-untyped-call, override"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BloomConfig, LlamaConfig, OPTConfig
from transformers.models.bloom.modeling_bloom import BloomBlock, BloomForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM
from transformers.models.opt.modeling_opt import (
    OPTDecoderLayer,
    OPTForCausalLM,
    OPTLearnedPositionalEmbedding,
)

__all__ = [
    "SlicedBloomConfig",
    "SlicedBloomForCausalLM",
    "SlicedLlamaConfig",
    "SlicedLlamaForCausalLM",
    "SlicedOPTConfig",
    "SlicedOPTForCausalLM",
]


class SlicedOPTConfig(OPTConfig):
    """``sliced_widths``: ``attention``, ``feedforward`` (one width a layer) and ``head``; sizes are those of the whole model."""

    model_type = "sliced_opt"
    tie_word_embeddings: bool = False
    sliced_widths: dict[str, Any] | None = None


class SlicedBloomConfig(BloomConfig):
    """As ``SlicedOPTConfig``."""

    model_type = "sliced_bloom"
    tie_word_embeddings: bool = False
    sliced_widths: dict[str, Any] | None = None


class SlicedLlamaConfig(LlamaConfig):
    """As ``SlicedOPTConfig``."""

    model_type = "sliced_llama"
    tie_word_embeddings: bool = False
    sliced_widths: dict[str, Any] | None = None


class RootMeanSquare(nn.Module):
    """x / sqrt(Σx² / width + eps), ``width`` being that before slicing."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width = width
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., any width]; computed in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.width + self.eps)).to(x.dtype)


class SlicedOPTLayer(OPTDecoderLayer):
    """A decoder layer between residual streams of three widths."""

    def __init__(self, config: SlicedOPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        read, middle, written = _widths(config, layer_idx)
        attention, bias = self.self_attn, config.enable_bias
        reads = bias or config.layer_norm_elementwise_affine
        _resize(attention, ("q_proj", "k_proj", "v_proj"), columns=read, bias=reads)
        _resize(attention, ("out_proj",), rows=middle, bias=bias)
        _resize(self, ("fc1",), columns=middle, bias=reads)
        _resize(self, ("fc2",), rows=written, bias=bias)
        self.self_attn_layer_norm = RootMeanSquare(config.hidden_size, 1e-5)
        self.final_layer_norm = RootMeanSquare(config.hidden_size, 1e-5)
        self.attn_shortcut = nn.Linear(read, middle, bias=False)
        self.mlp_shortcut = nn.Linear(middle, written, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """States [batch, length, width read] to [batch, length, width written]."""
        kwargs.pop("use_cache", None)  # the cache itself is what attention takes
        mixed, _ = self.self_attn(hidden_states=self.self_attn_layer_norm(hidden_states), **kwargs)
        hidden_states = self.attn_shortcut(hidden_states) + self._drop(mixed)
        inner = self.activation_fn(self.fc1(self.final_layer_norm(hidden_states)))
        return self.mlp_shortcut(hidden_states) + self._drop(self.fc2(inner))

    def _drop(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, p=self.dropout, training=self.training)


class SlicedBloomBlock(BloomBlock):
    """A block between residual streams of three widths."""

    def __init__(self, config: SlicedBloomConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        read, middle, written = _widths(config, layer_idx)
        _resize(self.self_attention, ("query_key_value",), columns=read, bias=True)
        _resize(self.self_attention, ("dense",), rows=middle, bias=True)
        _resize(self.mlp, ("dense_h_to_4h",), columns=middle, bias=True)
        _resize(self.mlp, ("dense_4h_to_h",), rows=written, bias=True)
        # the slow path cuts products by the whole model's width
        self.self_attention.slow_but_exact = self.mlp.slow_but_exact = False
        self.input_layernorm = RootMeanSquare(config.hidden_size, config.layer_norm_epsilon)
        self.post_attention_layernorm = RootMeanSquare(config.hidden_size, config.layer_norm_epsilon)
        self.attn_shortcut = nn.Linear(read, middle, bias=False)
        self.mlp_shortcut = nn.Linear(middle, written, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """States [batch, length, width read] to [batch, length, width written], and attention weights."""
        # attention and feed-forward add the residual that they are given
        hidden, weights = self.self_attention(
            self.input_layernorm(hidden_states), self.attn_shortcut(hidden_states), **kwargs
        )
        return self.mlp(self.post_attention_layernorm(hidden), self.mlp_shortcut(hidden)), weights


class SlicedLlamaLayer(LlamaDecoderLayer):
    """A decoder layer between residual streams of three widths."""

    def __init__(self, config: SlicedLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        read, middle, written = _widths(config, layer_idx)
        _resize(self.self_attn, ("q_proj", "k_proj", "v_proj"), columns=read, bias=config.attention_bias)
        _resize(self.self_attn, ("o_proj",), rows=middle, bias=config.attention_bias)
        _resize(self.mlp, ("gate_proj", "up_proj"), columns=middle, bias=config.mlp_bias)
        _resize(self.mlp, ("down_proj",), rows=written, bias=config.mlp_bias)
        self.input_layernorm = RootMeanSquare(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RootMeanSquare(config.hidden_size, config.rms_norm_eps)
        self.attn_shortcut = nn.Linear(read, middle, bias=False)
        self.mlp_shortcut = nn.Linear(middle, written, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """States [batch, length, width read] to [batch, length, width written]."""
        mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = self.attn_shortcut(hidden_states) + mixed
        return self.mlp_shortcut(hidden_states) + self.mlp(self.post_attention_layernorm(hidden_states))


class SlicedOPTForCausalLM(OPTForCausalLM):
    """OPT with a sliced residual stream and a head of its own."""

    config_class = SlicedOPTConfig
    _tied_weights_keys = {}  # noqa: RUF012 - transformers' own attribute
    _no_split_modules = ["SlicedOPTLayer"]  # noqa: RUF012

    def __init__(self, config: SlicedOPTConfig) -> None:
        super().__init__(config)
        first, decoder = _widths(config, 0)[0], self.model.decoder
        decoder.embed_tokens = nn.Embedding(config.vocab_size, first, config.pad_token_id)
        decoder.embed_positions = OPTLearnedPositionalEmbedding(config.max_position_embeddings, first)
        decoder.final_layer_norm = RootMeanSquare(config.hidden_size, 1e-5)
        decoder.layers = nn.ModuleList(SlicedOPTLayer(config, i) for i in range(config.num_hidden_layers))
        self.lm_head = _head(config, bias=config.layer_norm_elementwise_affine)
        self.post_init()


class SlicedBloomForCausalLM(BloomForCausalLM):
    """BLOOM with a sliced residual stream, the norm over embeddings in the table, and a head of its own."""

    config_class = SlicedBloomConfig
    _tied_weights_keys = {}  # noqa: RUF012
    _no_split_modules = ["SlicedBloomBlock"]  # noqa: RUF012

    def __init__(self, config: SlicedBloomConfig) -> None:
        super().__init__(config)
        decoder = self.transformer
        decoder.word_embeddings = nn.Embedding(config.vocab_size, _widths(config, 0)[0])
        decoder.word_embeddings_layernorm = nn.Identity()
        decoder.ln_f = RootMeanSquare(config.hidden_size, config.layer_norm_epsilon)
        decoder.h = nn.ModuleList(SlicedBloomBlock(config, i) for i in range(config.num_hidden_layers))
        self.lm_head = _head(config, bias=True)
        self.post_init()


class SlicedLlamaForCausalLM(LlamaForCausalLM):
    """LLaMA with a sliced residual stream and a head of its own."""

    config_class = SlicedLlamaConfig
    _tied_weights_keys = {}  # noqa: RUF012
    _no_split_modules = ["SlicedLlamaLayer"]  # noqa: RUF012

    def __init__(self, config: SlicedLlamaConfig) -> None:
        super().__init__(config)
        decoder = self.model
        decoder.embed_tokens = nn.Embedding(config.vocab_size, _widths(config, 0)[0], config.pad_token_id)
        decoder.norm = RootMeanSquare(config.hidden_size, config.rms_norm_eps)
        decoder.layers = nn.ModuleList(SlicedLlamaLayer(config, i) for i in range(config.num_hidden_layers))
        self.lm_head = _head(config, bias=False)
        self.post_init()


def _widths(config: Any, layer: int) -> tuple[int, int, int]:
    """Widths of the residual stream before a layer, between its halves and behind it."""
    widths = config.sliced_widths
    if not widths:
        raise ValueError(f"a {config.model_type} config needs sliced_widths: attention, feedforward, head")
    attention = widths["attention"]
    last = layer + 1 == len(attention)
    return attention[layer], widths["feedforward"][layer], widths["head"] if last else attention[layer + 1]


def _head(config: Any, *, bias: bool) -> nn.Linear:
    return nn.Linear(config.sliced_widths["head"], config.vocab_size, bias=bias)


def _resize(module: nn.Module, names: Sequence[str], *, rows: int = 0, columns: int = 0, bias: bool) -> None:
    """Replace linears by ones with other rows (outputs) or columns (inputs)."""
    for name in names:
        dense = getattr(module, name)
        setattr(module, name, nn.Linear(columns or dense.in_features, rows or dense.out_features, bias=bias))
