"""LLaMA: RMS norm, rotary positions, grouped-query attention, gated feed-forward (arXiv 2302.13971)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.families import base, rope
from methods.families.fields import MOST_BLOCKS, Fields
from methods.families.rope import Rope
from methods.interface import (
    Arguments,
    Block,
    Carry,
    Matrix,
    ModelShape,
    OuterTensors,
    Residual,
    Stage,
    Sublayer,
)

__all__ = ["Llama"]

ATTENTION = "self_attn"
FEEDFORWARD = "mlp"
ATTENTION_NORM = "input_layernorm.weight"
FEEDFORWARD_NORM = "post_attention_layernorm.weight"
TOKENS = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x² + eps) · weight over the last dimension (arXiv 1910.07467).

    Computed in float32 and rounded to ``x``'s dtype before the weight is applied, as transformers does.
    """
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


class Llama:
    """The LLaMA family, 1 to 3.2, and models of its architecture such as SmolLM2."""

    name = "llama"
    residual = Residual(
        sublayers=(
            Sublayer(
                ATTENTION_NORM.removesuffix(".weight"),
                (f"{ATTENTION}.q_proj", f"{ATTENTION}.k_proj", f"{ATTENTION}.v_proj"),
                f"{ATTENTION}.o_proj",
            ),
            Sublayer(
                FEEDFORWARD_NORM.removesuffix(".weight"),
                (f"{FEEDFORWARD}.gate_proj", f"{FEEDFORWARD}.up_proj"),
                f"{FEEDFORWARD}.down_proj",
            ),
        ),
        tables=(TOKENS,),
        table_norm=None,
        final_norm=FINAL_NORM.removesuffix(".weight"),
        head="lm_head",
        centred=False,
    )

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """Sizes from a config. Raises UnsupportedModel where a value is missing or cannot be."""
        fields = Fields(self.name, config)
        width = fields.integer("hidden_size")
        heads = fields.integer("num_attention_heads")
        share = fields.divisible("hidden_size", width, "num_attention_heads", heads)
        head_dim = fields.integer("head_dim", default=share)
        fields.divisible("head_dim", head_dim, "the 2 halves that rotary positions pair:", 2)
        kv_heads = fields.integer("num_key_value_heads", default=heads)
        fields.divisible("num_attention_heads", heads, "num_key_value_heads", kv_heads)
        fields.choice("hidden_act", base.ACTIVATIONS, default="silu")
        shape = ModelShape(
            family=self.name,
            blocks=fields.integer("num_hidden_layers", high=MOST_BLOCKS),
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feedforward=fields.integer("intermediate_size"),
            vocabulary=fields.integer("vocab_size"),
            positions=fields.integer("max_position_embeddings", default=2048),
            position_rows=0,
            embedding_width=width,
            tied=fields.flag("tie_word_embeddings", default=False),
            post_norm=False,
            final_norm=True,
            attention_bias=fields.flag("attention_bias", default=False),
            feedforward_bias=fields.flag("mlp_bias", default=False),
            gated=True,
        )
        self.norm_eps(config)
        self._rope(config, shape)
        return shape

    def norm_eps(self, config: Mapping[str, Any]) -> float:
        """``rms_norm_eps``."""
        return Fields(self.name, config).positive("rms_norm_eps", default=1e-6)

    def activation(self, config: Mapping[str, Any]) -> str:
        """``hidden_act``."""
        return str(config.get("hidden_act") or "silu")

    def _rope(self, config: Mapping[str, Any], shape: ModelShape) -> Rope:
        return Rope.read(Fields(self.name, config), shape.head_dim, shape.positions)

    def matrices(self, shape: ModelShape, index: int = 0) -> tuple[Matrix, ...]:  # noqa: ARG002 - all blocks alike
        """q, k, v, o, gate, up, down."""
        width, inner = shape.width, shape.feedforward
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        return (
            Matrix(f"{ATTENTION}.q_proj", queries, width),
            Matrix(f"{ATTENTION}.k_proj", keys, width),
            Matrix(f"{ATTENTION}.v_proj", keys, width),
            Matrix(f"{ATTENTION}.o_proj", width, queries),
            Matrix(f"{FEEDFORWARD}.gate_proj", inner, width),
            Matrix(f"{FEEDFORWARD}.up_proj", inner, width),
            Matrix(f"{FEEDFORWARD}.down_proj", width, inner),
        )

    def block_tensors(self, shape: ModelShape, index: int = 0) -> dict[str, tuple[int, ...]]:  # noqa: ARG002 - all blocks alike
        """Linears, with biases where the config asks for them, and two norms."""
        tensors: dict[str, tuple[int, ...]] = {}
        for matrix in self.matrices(shape):
            inside = matrix.name.startswith(ATTENTION)
            bias = shape.attention_bias if inside else shape.feedforward_bias
            tensors |= base.linear_tensors(matrix, bias=bias)
        return tensors | {ATTENTION_NORM: (shape.width,), FEEDFORWARD_NORM: (shape.width,)}

    def outer_tensors(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Token table, final norm, untied head."""
        tensors: dict[str, tuple[int, ...]] = {
            TOKENS: (shape.vocabulary, shape.width),
            FINAL_NORM: (shape.width,),
        }
        if not shape.tied:
            tensors[HEAD] = (shape.vocabulary, shape.width)
        return tensors

    def block_prefix(self, index: int) -> str:
        """``model.layers.3.``"""
        return f"model.layers.{index}."

    def aliases(self, name: str) -> tuple[str, ...]:
        """Checkpoints saved from the bare decoder lack ``model.``."""
        return (name.removeprefix("model."),) if name.startswith("model.") else ()

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """q, k, v | o | gate, up | down."""
        shape, eps = self.shape(config), self.norm_eps(config)
        activation = base.ACTIVATIONS[self.activation(config)]

        def attention_input(block: Block, carry: Carry, _: Arguments) -> Tensor:
            return rms_norm(carry[0], block[ATTENTION_NORM], eps)

        def attend(block: Block, carry: Carry, inputs: Tensor, arguments: Arguments) -> Carry:
            if arguments.cos is None or arguments.sin is None:
                raise ValueError("a llama block needs rotary tables: make its arguments with Llama.arguments")
            query = base.split_heads(base.linear(block, f"{ATTENTION}.q_proj", inputs), shape.heads)
            key = base.split_heads(base.linear(block, f"{ATTENTION}.k_proj", inputs), shape.kv_heads)
            value = base.split_heads(base.linear(block, f"{ATTENTION}.v_proj", inputs), shape.kv_heads)
            query = rope.rotate(query, arguments.cos, arguments.sin)
            key = rope.rotate(key, arguments.cos, arguments.sin)
            return carry[0], base.attention(query, key, value, arguments, shape.head_dim**-0.5)

        def second(_block: Block, carry: Carry, _: Arguments) -> Tensor:
            return carry[1]

        def attention_output(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            return (carry[0] + base.linear(block, f"{ATTENTION}.o_proj", inputs),)

        def feedforward_input(block: Block, carry: Carry, _: Arguments) -> Tensor:
            return rms_norm(carry[0], block[FEEDFORWARD_NORM], eps)

        def expand(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            gate = activation(base.linear(block, f"{FEEDFORWARD}.gate_proj", inputs))
            return carry[0], gate * base.linear(block, f"{FEEDFORWARD}.up_proj", inputs)

        def contract(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            return (carry[0] + base.linear(block, f"{FEEDFORWARD}.down_proj", inputs),)

        return (
            Stage(tuple(f"{ATTENTION}.{part}_proj" for part in ("q", "k", "v")), attention_input, attend),
            Stage((f"{ATTENTION}.o_proj",), second, attention_output),
            Stage((f"{FEEDFORWARD}.gate_proj", f"{FEEDFORWARD}.up_proj"), feedforward_input, expand),
            Stage((f"{FEEDFORWARD}.down_proj",), second, contract),
        )

    def arguments(
        self, config: Mapping[str, Any], mask: Tensor | None, batch: int, length: int, like: Tensor
    ) -> Arguments:
        """Rotary tables, and a bias where there is padding; positions count padding, as in transformers."""
        real = base.padding(mask, batch, length, like.device)
        bias = None if real is None else base.causal_bias(real, length, like)
        cos, sin = rope.tables(self._rope(config, self.shape(config)), length, like)
        return Arguments(bias=bias, cos=cos, sin=sin)

    def embed(
        self,
        outer: OuterTensors,
        config: Mapping[str, Any],
        tokens: Tensor,
        mask: Tensor | None,  # noqa: ARG002 - positions enter in attention
        first: int = 0,  # noqa: ARG002
    ) -> Tensor:
        """Tokens [batch, length] to their embeddings."""
        return base.token_rows(outer, TOKENS, tokens, self.shape(config).vocabulary)

    def finish(self, outer: OuterTensors, config: Mapping[str, Any], hidden: Tensor) -> Tensor:
        """Final norm."""
        return rms_norm(hidden, outer.tensor(FINAL_NORM), self.norm_eps(config))

    def head(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor:
        """Output matrix [vocabulary, width]."""
        return outer.tensor(TOKENS if self.shape(config).tied else HEAD)

    def head_bias(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor | None:  # noqa: ARG002 - the contract
        """None: the published head has no bias."""
        return None
